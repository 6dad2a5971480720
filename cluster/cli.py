"""The qfleet commands: their arguments, and what each prints.

Owns parsing, exit statuses and the answers on the terminal. Heavy imports wait until a command needs them.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import signal
import statistics
import sys
import textwrap
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from actors.envs.errors import EnvError
from cluster import __version__
from cluster.engines.signals import EndingSignals, Interrupted
from cluster.policies.scores import human_comparison, reference
from cluster.record.logs import last_lines, log_path
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.load_config import dump_config, load_config, preset_paths
from cluster.settings.names import nearest
from cluster.settings.quantities import parsed
from cluster.settings.resolved import preset_text
from cluster.wording import quantity, short, wrapped

EXIT_OK, EXIT_ERROR, EXIT_BAD_INPUT = 0, 1, 2
_LAST_WORDS = 20
_SOURCE = "ENV_ID | module:factory | CONFIG.yaml"
_EXAMPLES: Mapping[str, Sequence[str]] = {
    "train": (
        "train CartPole-v1",
        "train ALE/Pong-v5 --set stop.seconds=30m --set replay.capacity=200k",
        "train my_package.my_module:make_env --set run.preset=rainbow --seed 3",
        "train --run-dir runs/a --resume",
        "train CartPole-v1 --seeds 0 1 2 3 4 --parallel 2 --run-dir runs/five",
    ),
    "eval": ("eval runs/a --episodes 100 --which latest",),
    "status": ("status", "status runs/a --watch", "status --address 10.0.0.5:9401"),
    "runs": ("runs",),
    "report": (
        "report runs/a runs/b --out page.html",
        "report runs/new --baseline runs/old --x time --open",
    ),
    "export": ("export runs/a --format onnx",),
    "video": ("video runs/a --episodes 2 --out film.gif",),
    "check-env": ("check-env ALE/Pong-v5", "check-env my_package.my_module:make_env"),
    "plan": ("plan ALE/Pong-v5 --set replay.capacity=1M",),
    "settings": ("settings", "settings epsilon", "settings gamma"),
    "presets": ("presets", "presets rainbow"),
}


def run(arguments: Sequence[str], *, forked: bool = False) -> int:
    """Runs one command and returns its exit status: 0, 1, 2 for bad input, 128 + n after signal n.

    A reader that closes the pipe early, as `| head` does, ends a command without a word, like SIGPIPE.
    forked: see ForkServers.start.
    """
    options, unknown = make_parser().parse_known_args(arguments, argparse.Namespace(forked=forked))
    try:
        if unknown:
            raise ConfigError(_unknown_option(unknown, arguments))
        with EndingSignals():
            status: int = options.run(options)
        sys.stdout.flush()
    except (ConfigError, EnvError) as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if not _output_is_broken():
            raise
        _drop_output()
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"qfleet: standard output cannot be written: {error}", file=sys.stderr)
        return EXIT_ERROR
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that names the nearest command."""

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, and exits with status 2."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)


def _unknown_option(unknown: Sequence[str], arguments: Sequence[str]) -> str:
    """What to write instead of the first argument that no command knows."""
    first, equals, value = unknown[0].partition("=")
    if not equals:
        value = unknown[1] if len(unknown) > 1 and not unknown[1].startswith("-") else "VALUE"
    known: tuple[str, ...] = (
        "--runtime",
        "--run-dir",
        "--seed",
        "--seeds",
        "--parallel",
        "--resume",
        "--metrics-addr",
        "--set",
    )
    known += ("--episodes", "--out")
    # Above 0.71: --steps is what others call stop.env_steps, and is not meant as --seeds.
    near = difflib.get_close_matches(first, known, n=1, cutoff=0.75)
    meant = nearest(first.lstrip("-"), RunConfig)
    hint = near[0] if near else f"--set {meant}={value}" if meant else ""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    help_text = f"qfleet {command} --help lists what it takes"
    kind = "option" if first.startswith("-") else "argument"
    return f"unknown {kind} {unknown[0]}; {f'did you mean {hint}? ' if hint else ''}{help_text}"


def _output_is_broken() -> bool:
    """Whether standard output refuses one more line, so that an error may be one of printing."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Discards standard output from now on; else Python's own flush at exit would fail, too."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the options that returns the exit status."""
    parser = _Parser(prog="qfleet", description="Distributed DQN: train, evaluate, inspect.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    run_dir, source, overrides = (_Parser(add_help=False) for _ in range(3))
    run_dir.add_argument("run_dir", type=Path)
    source.add_argument(
        "source", nargs="?", default="CartPole-v1", metavar=_SOURCE, help="default: %(default)s"
    )
    overrides.add_argument(
        "--set", action="append", default=[], metavar="section.name=value", help="override one setting"
    )

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, *parents: _Parser) -> _Parser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=parents,
        )
        added.set_defaults(run=command)
        return added

    train = add("train", _train, "train on an environment id, a factory or a config file", overrides)
    _add_train_options(train)

    evaluate = add("eval", _eval, "play greedy episodes with the weights of a run", run_dir)
    evaluate.add_argument("--episodes", type=_whole, default=100, help="default: %(default)s")
    evaluate.add_argument("--seed", type=_whole, default=0, help="default: %(default)s")
    evaluate.add_argument("--which", choices=("best", "latest"), help="default: best, else latest")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object with every return")

    status = add("status", _status, "print the state of a run, on this machine or elsewhere")
    status.add_argument("run_dir", type=Path, nargs="?", help="default: the newest below runs/")
    status.add_argument(
        "--address", metavar="HOST:PORT", help="ask the run's metrics server instead of reading its folder"
    )
    status.add_argument("--watch", action="store_true", help="print again every second until the run ends")

    add("runs", _runs, "list this user's runs, newest first, wherever they were started")

    report = add("report", _report, "write one HTML page about one run or several, or a group of seeds")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument("--out", type=Path, help="default: report.html in the first RUN_DIR")
    report.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN_DIR",
        help="say of each other group whether it differs from this",
    )
    report.add_argument(
        "--x",
        choices=("steps", "updates", "time"),
        help="axis of all charts; default: the one that suits each",
    )
    report.add_argument("--open", action="store_true", help="show the page in a browser")
    report.add_argument("--png", type=Path, metavar="DIR", help="write each chart as a PNG as well")

    export = add("export", _export, "write the weights of a run for other programs", run_dir)
    export.add_argument("--format", choices=("onnx", "safetensors"), required=True)
    export.add_argument("--which", choices=("best", "latest"), help="default: best, else latest")
    export.add_argument("--out", type=Path, help="default: RUN_DIR/policy.FORMAT")

    video = add("video", _video, "film greedy episodes of a run as a GIF", run_dir)
    video.add_argument("--episodes", type=_whole, default=1, help="default: %(default)s")
    video.add_argument("--seed", type=_whole, default=0, help="default: %(default)s")
    video.add_argument("--out", type=Path, help="default: RUN_DIR/video.gif")

    add("check-env", _check_env, "print how a run would use an environment", source, overrides)
    add("plan", _plan, "print the memory that a run needs, and whether it fits", source, overrides)
    settings = add("settings", _settings, "list the settings with default, type, unit and meaning")
    settings.add_argument(
        "pattern", nargs="?", default="", help="show those whose name or meaning holds this"
    )
    presets = add("presets", _presets, "list the presets, or print one")
    presets.add_argument("name", nargs="?")
    return parser


def _whole(text: str) -> int:
    """The type of an argument: a whole number as people write it, such as 100, 10k or 1e6."""
    with suppress(ValueError):
        return int(text)
    value = parsed(text, "number")
    if value is None or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, such as 100, 10k or 1e6")
    return int(value)


def _examples(command: str) -> str:
    """The examples below the help of a command."""
    examples = _EXAMPLES[command]
    return "\n".join(
        [f"example{'s' if len(examples) > 1 else ''}:", *(f"  qfleet {one}" for one in examples)]
    )


def _add_train_options(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "source", nargs="?", metavar=_SOURCE, help="default: CartPole-v1, or the run that is resumed"
    )
    train.add_argument(
        "--runtime",
        choices=("local", "ray", "cluster", "serial"),
        help="default: cluster where RAY_ADDRESS is set, else local",
    )
    train.add_argument("--run-dir", type=Path, help="default: runs/ENV-TIME")
    train.add_argument("--seed", type=_whole, help="default: 0")
    train.add_argument(
        "--seeds",
        type=_whole,
        nargs="+",
        metavar="N",
        help="train once with each of these seeds, in one folder, and summarize them",
    )
    train.add_argument("--parallel", type=_whole, metavar="K", help="of --seeds: runs at a time; default: 1")
    train.add_argument(
        "--resume",
        nargs="?",
        const="must",
        choices=("must", "auto"),
        default="never",
        help="continue the run in --run-dir from its newest good checkpoint; "
        "auto: begin a run if there is none",
    )
    train.add_argument(
        "--metrics-addr",
        metavar="HOST:PORT",
        help="serve /metrics at this address; default: 127.0.0.1 and a free port, as with port 0",
    )


def _train(options: argparse.Namespace) -> int:
    from cluster.runtime.failure import RunFailed
    from cluster.runtime.preload import fork_servers, forks_roles

    if options.seeds is not None or _resumes_group(options):
        return _train_seeds(options)
    if options.parallel is not None:
        raise ConfigError("--parallel is the number of runs at a time: name them with --seeds")
    config = train_config(options)
    try:
        with closing(fork_servers()) as servers:
            # They load what roles need while this process loads the rest, which takes as long.
            if forks_roles(config.run):
                servers.start(forked=options.forked)
            from cluster.api import ALREADY_ENDED, train

            result = train(config, options.run_dir, resume=options.resume, servers=servers)
    except RunFailed as failure:
        if failure.role and failure.logs and (said := last_lines(failure.logs, failure.role, _LAST_WORDS)):
            print(f"the last lines of {log_path(failure.logs, failure.role)}:", file=sys.stderr)
            print(*(f"  {line}" for line in said), sep="\n", file=sys.stderr)
        print(f"{failure}", file=sys.stderr)
        return EXIT_ERROR
    outcome = result.outcome
    best = "no version was confirmed by a second evaluation"
    if outcome.best_return_mean is not None:
        best = (
            f"version {outcome.best_version} is the best: greedy return {short(outcome.best_return_mean)}, "
            "confirmed" + human_comparison(config.env.id, outcome.best_return_mean)
        )
    following = [f"{best}; evaluate it:", f"  qfleet eval {shlex.quote(str(result.run_dir))} --episodes 100"]
    if outcome.reason.startswith(ALREADY_ENDED):
        following = [f"{outcome.reason}; give it another limit or target to go on", *following]
    elif outcome.final.updates_total == 0:
        following = ["it holds no weights to evaluate"]
    try:
        print("\n".join(following), flush=True)
    except OSError:
        # The run has ended well and holds all this; a terminal that is gone does not make it a failure.
        _drop_output()
    return EXIT_OK if result.signal is None else 128 + result.signal


def _resumes_group(options: argparse.Namespace) -> bool:
    """Whether the folder to resume is that of several seeds."""
    from cluster.record.seed_group import holds_group

    return options.resume != "never" and options.run_dir is not None and holds_group(options.run_dir)


def _train_seeds(options: argparse.Namespace) -> int:
    """Trains once with each seed and prints the summary; status 1 if a run failed, 128 + n after signal n."""
    from cluster.api import default_run_dir
    from cluster.record.seed_group import holds_group
    from cluster.report.report import write_report
    from cluster.report.seed_summary import write_summary
    from cluster.seeds import train_seeds

    if options.seed is not None:
        raise ConfigError(f"--seed is {options.seed}, but each of --seeds has a run of its own: leave it out")
    if options.resume == "must" and options.run_dir is not None and not holds_group(options.run_dir):
        raise ConfigError(f"{options.run_dir} holds no group of seeds to resume; leave --resume out")
    config = train_config(options)
    path = options.run_dir or default_run_dir(config)

    def say(text: str) -> None:
        print(wrapped(text, 120, "  "), flush=True)

    parallel = 1 if options.parallel is None else options.parallel
    ended = train_seeds(config, path, options.seeds or (), parallel=parallel, resume=options.resume, say=say)
    summary = write_summary(ended.group)
    print(summary.text)
    if any(result.updates for result in summary.results):
        print(*write_report([path]), sep="\n", flush=True)
    if ended.signal is not None:
        print(f"go on with\n  qfleet train --run-dir {shlex.quote(str(path))} --resume")
        return 128 + ended.signal
    return EXIT_ERROR if ended.failed else EXIT_OK


def train_config(options: argparse.Namespace) -> RunConfig:
    """The config to train: that of the named source, or that of the run or group of seeds to resume.

    Flags win over --set.
    """
    from cluster.record.run_dir import holds_run, read_config
    from cluster.record.seed_group import read_group

    flags = {"run.runtime": options.runtime, "run.seed": options.seed}
    if options.metrics_addr is not None:
        address = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]+)", options.metrics_addr)
        if address is None:
            raise ConfigError(
                f"--metrics-addr is {options.metrics_addr}; give HOST:PORT, for instance 127.0.0.1:9401 "
                "or [::1]:9401"
            )
        # In quotes, because YAML would not read every address as text.
        flags |= {"metrics.host": json.dumps(address[1] or address[2]), "metrics.port": address[3]}
    overrides = [*options.set, *(f"{name}={value}" for name, value in flags.items() if value is not None)]
    if options.resume != "never" and options.run_dir is None:
        raise ConfigError("--resume needs the folder of the run to continue: give it with --run-dir")
    if options.source is None and _resumes_group(options):
        return load_config(read_group(options.run_dir).settings, overrides)
    goes_on = options.resume == "must" or (options.resume == "auto" and holds_run(options.run_dir))
    if goes_on and options.source is None:
        read_config(options.run_dir)
        return load_config(options.run_dir / "config.yaml", overrides)
    return load_config(options.source or "CartPole-v1", overrides)


def _eval(options: argparse.Namespace) -> int:
    from cluster.policies.evaluate import evaluate_run
    from cluster.record.run_dir import read_config

    played = evaluate_run(options.run_dir, options.episodes, options.seed, options.which)
    mean, std = statistics.fmean(played.returns), statistics.pstdev(played.returns)
    env_id = read_config(options.run_dir).env.id
    if options.json:
        line = {
            "weights": played.weights,
            "version": played.version,
            "episodes": len(played.returns),
            "seed": options.seed,
            "mean": mean,
            "std": std,
            "returns": played.returns,
        }
        if (scores := reference(env_id)) is not None:
            line |= {"human_normalized": scores.normalized(mean), **asdict(scores)}
        print(json.dumps(line))
    else:
        low, high = min(played.returns), max(played.returns)
        print(
            f"{played.weights} weights, version {played.version}: mean return {mean:.2f}, std {std:.2f} "
            f"over {len(played.returns)} greedy episodes (min {low:g}, max {high:g})"
            + human_comparison(env_id, mean)
        )
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from cluster.show.status import newest_run, show, status_of_address, status_of_directory

    if options.address is None:
        look = partial(status_of_directory, options.run_dir or newest_run())
    elif options.run_dir is None:
        look = partial(status_of_address, options.address)
    else:
        raise ConfigError("give a run directory or --address, not both")
    show(look, watch=options.watch)
    return EXIT_OK


def _runs(options: argparse.Namespace) -> int:
    from cluster.record.known_runs import known_runs
    from cluster.show.status import runs_table

    found = known_runs()
    print(runs_table(found) if found else "there are no runs yet; qfleet train CartPole-v1 makes one")
    return EXIT_OK


def _report(options: argparse.Namespace) -> int:
    from cluster.report.report import write_report

    written = write_report(
        options.run_dirs, options.out, options.png, baseline=options.baseline, axis=options.x
    )
    print(*written, sep="\n")
    if options.open and not webbrowser.open(written[0].absolute().as_uri()):
        raise ConfigError(f"--open found no browser; the page is {written[0]}")
    return EXIT_OK


def _export(options: argparse.Namespace) -> int:
    from cluster.policies.export import export_run
    from cluster.policies.onnx_export import ExportError

    try:
        exported = export_run(options.run_dir, options.format, options.which, options.out)
    except ExportError as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return EXIT_ERROR
    text = f"{exported.path}: {exported.weights} weights, version {exported.version}"
    if exported.comparison is not None:
        text += (
            f"; on {exported.comparison.observations} recorded observations its Q-values differ from the "
            f"policy's by at most {exported.comparison.max_abs_difference:.2g}"
        )
    print(text)
    return EXIT_OK


def _video(options: argparse.Namespace) -> int:
    from cluster.policies.video import MAX_STEPS, film_run

    def tell(steps: int) -> None:
        print(f"filmed {quantity(steps, 'step')}", file=sys.stderr)

    video = film_run(options.run_dir, options.episodes, options.seed, options.out, tell)
    returns = ", ".join(f"{one:g}" for one in video.returns)
    print(f"{video.path}: {video.seconds:.0f} s, returns {returns}")
    if video.unfinished:
        many = quantity(video.unfinished, "episode")
        print(f"{many} had not ended after {MAX_STEPS:,} steps, and only these are shown")
    return EXIT_OK


def _check_env(options: argparse.Namespace) -> int:
    from cluster.check_env import describe

    print(describe(load_config(options.source, options.set)))
    return EXIT_OK


def _plan(options: argparse.Namespace) -> int:
    from cluster.api import ask_for_placement, prepare
    from cluster.engines.machine import cluster_address, this_machine
    from cluster.settings.plan import make_plan, require_fit

    prepared = prepare(load_config(options.source, options.set))
    plan = make_plan(prepared.config, prepared.spec, this_machine())
    if prepared.config.run.runtime == "cluster" and cluster_address():
        plan = replace(plan, placement=ask_for_placement(prepared, plan))
    print(*filter(None, (preset_text(prepared.config), plan.text)), sep="\n")
    require_fit(plan)
    return EXIT_OK


def _settings(options: argparse.Namespace) -> int:
    from cluster.settings import catalog

    try:
        found = catalog.settings(options.pattern)
    except re.error as error:
        raise ConfigError(f"{options.pattern!r} is no pattern: {error}") from None
    if not found and (meant := nearest(options.pattern, RunConfig)):
        found = catalog.settings(rf"^{re.escape(meant)}\b")
    if not found:
        raise ConfigError(f"no setting holds {options.pattern!r}; qfleet settings lists all")
    print(catalog.text(found))
    return EXIT_OK


def _presets(options: argparse.Namespace) -> int:
    paths = preset_paths()
    if options.name is None:
        for name, path in paths.items():
            first = path.read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:20} {first.removeprefix('# ')}")
    elif options.name not in paths:
        near = difflib.get_close_matches(options.name, paths, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise ConfigError(f"no preset {options.name}; {hint} are: {', '.join(paths)}")
    else:
        print(paths[options.name].read_text(encoding="utf-8"))
        print("# With every default filled in:")
        print(textwrap.indent(dump_config(load_config(paths[options.name])), "# "), end="")
    return EXIT_OK
