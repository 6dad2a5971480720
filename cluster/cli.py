"""Parsing and running the qfleet commands.

Owns arguments, exit statuses and printed answers; heavy imports wait until a command needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from cluster.engines.signals import Interrupted
from cluster.policies.scores import beside_human, reference
from cluster.record.logs import last_words, log_path
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.load_config import (
    SHARED_PRESETS,
    dump_config,
    load_config,
    preset_for_env,
    preset_paths,
)

EXIT_OK, EXIT_ERROR, EXIT_BAD_INPUT = 0, 1, 2
_LAST_WORDS = 20


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status: 0, 1, 2 for bad input, 128 + n after signal n."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ValueError as error:  # ConfigError and EnvError: the user's input
        if type(error).__name__ not in ("ConfigError", "EnvError"):
            raise
        print(f"qfleet: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qfleet", description="Distributed DQN: train, evaluate, inspect.")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train on an environment id, a factory or a config file")
    train.add_argument(
        "source",
        nargs="?",
        metavar="ENV_ID | module:factory | CONFIG.yaml",
        help="default: CartPole-v1, or the run that is resumed",
    )
    train.add_argument(
        "--runtime",
        choices=("local", "cluster", "serial"),
        help="default: cluster where RAY_ADDRESS is set, else local",
    )
    train.add_argument("--run-dir", type=Path, help="default: runs/ENV-TIME")
    train.add_argument("--seed", type=int, help="default: 0")
    train.add_argument(
        "--resume",
        nargs="?",
        const="must",
        choices=("must", "auto"),
        default="never",
        help="go on with the run in --run-dir from its newest good checkpoint; auto: if there is one",
    )
    train.add_argument(
        "--metrics-addr",
        metavar="HOST:PORT",
        help="where /metrics is served; default: a free port of 127.0.0.1, which port 0 means, too",
    )
    _add_set(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="play greedy episodes with what a run learned")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--episodes", type=int, default=100, help="default: %(default)s")
    evaluate.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object with every return")
    evaluate.set_defaults(run=_eval)

    status = commands.add_parser("status", help="say how a run stands, also one elsewhere")
    status.add_argument("run_dir", type=Path, nargs="?", help="default: the newest below runs/")
    status.add_argument(
        "--address", metavar="HOST:PORT", help="of the run's metrics, where its folder is out of reach"
    )
    status.add_argument("--watch", action="store_true", help="look again every second, until the run ends")
    status.set_defaults(run=_status)

    report = commands.add_parser("report", help="write one HTML page about one run or several")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument("--out", type=Path, help="default: report.html in the first RUN_DIR")
    report.add_argument("--png", type=Path, metavar="DIR", help="write each chart as a PNG, too")
    report.set_defaults(run=_report)

    export = commands.add_parser("export", help="write what a run learned for other programs")
    export.add_argument("run_dir", type=Path)
    export.add_argument("--format", choices=("onnx", "safetensors"), required=True)
    export.add_argument("--which", choices=("best", "latest"), help="default: best, else latest")
    export.add_argument("--out", type=Path, help="default: RUN_DIR/policy.FORMAT")
    export.set_defaults(run=_export)

    video = commands.add_parser("video", help="film greedy episodes of a run as a GIF")
    video.add_argument("run_dir", type=Path)
    video.add_argument("--episodes", type=int, default=1, help="default: %(default)s")
    video.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    video.add_argument("--out", type=Path, help="default: RUN_DIR/video.gif")
    video.set_defaults(run=_video)

    check_env = commands.add_parser("check-env", help="say how an environment would be run")
    check_env.add_argument("source", metavar="ENV_ID | module:factory | CONFIG.yaml")
    _add_set(check_env)
    check_env.set_defaults(run=_check_env)

    plan = commands.add_parser("plan", help="say what memory a run needs, and whether it fits")
    plan.add_argument("source", metavar="ENV_ID | module:factory | CONFIG.yaml")
    _add_set(plan)
    plan.set_defaults(run=_plan)

    presets = commands.add_parser("presets", help="list the presets, or show one")
    presets.add_argument("name", nargs="?")
    presets.set_defaults(run=_presets)
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.name=value", help="override one setting"
    )


def _config(source: str, overrides: Sequence[str]) -> RunConfig:
    """The config that `source` means: a file, the preset of this very environment, or defaults for it."""
    if source.endswith((".yaml", ".yml")):
        return load_config(Path(source), overrides)
    preset = preset_for_env(source)
    config = load_config(preset, [f"env.id={json.dumps(source)}", *overrides])
    if preset is not None and preset.stem in SHARED_PRESETS:
        print(f"settings of the preset {preset.stem} (qfleet presets {preset.stem} shows them)")
    return config


def _address(text: str | None) -> tuple[str | None, str | None]:
    """HOST:PORT in its two parts; ConfigError for anything else. The config checks the port's range."""
    if text is None:
        return None, None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--metrics-addr is {text}; give HOST:PORT, for instance 127.0.0.1:9401")
    return host, port


def _train(options: argparse.Namespace) -> int:
    from cluster.api import train
    from cluster.runtime.failure import RunFailed

    host, port = _address(options.metrics_addr)
    flags = {
        "run.runtime": options.runtime,
        "run.seed": options.seed,
        "metrics.host": host,
        "metrics.port": port,
    }
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    config = _train_config(options, given)
    try:
        result = train(config, options.run_dir, resume=options.resume)
    except RunFailed as failure:
        if failure.role and failure.logs:
            said = last_words(failure.logs, failure.role, _LAST_WORDS)
            if said:
                where = log_path(failure.logs, failure.role)
                print(f"the last lines of {where}:", file=sys.stderr)
                print(*(f"  {line}" for line in said), sep="\n", file=sys.stderr)
        print(f"{failure}", file=sys.stderr)
        return EXIT_ERROR
    outcome = result.outcome
    best = (
        "no version was evaluated"
        if outcome.best_return_mean is None
        else (
            f"best version {outcome.best_version}: greedy return {outcome.best_return_mean:.1f}, confirmed"
            + beside_human(config.env.id, outcome.best_return_mean)
        )
    )
    print(f"{outcome.reason} after {result.seconds:.1f} s; {best}")
    print(f"evaluate it: qfleet eval {result.run_dir} --episodes 100")
    return EXIT_OK if result.signal is None else 128 + result.signal


def _train_config(options: argparse.Namespace, flags: Sequence[str]) -> RunConfig:
    """What to train: the source that was named, or the very config of the run that is resumed."""
    from cluster.record.run_dir import holds_run, read_config

    overrides = [*options.set, *flags]
    if options.resume != "never" and options.run_dir is None:
        raise ConfigError("--resume goes on with a certain run: name its folder by --run-dir")
    if options.resume == "must" or (options.resume == "auto" and holds_run(options.run_dir)):
        read_config(options.run_dir)
        if options.source is None:
            return load_config(options.run_dir / "config.yaml", overrides)
    return _config(options.source or "CartPole-v1", overrides)


def _eval(options: argparse.Namespace) -> int:
    from cluster.policies.evaluate import evaluate_run
    from cluster.record.run_dir import read_config

    played = evaluate_run(options.run_dir, options.episodes, options.seed)
    mean, std = statistics.fmean(played.returns), statistics.pstdev(played.returns)
    env_id = read_config(options.run_dir).env.id
    scores = reference(env_id)
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
        if scores is not None:
            line |= {"human_normalized": scores.normalized(mean), **asdict(scores)}
        print(json.dumps(line))
    else:
        low, high = min(played.returns), max(played.returns)
        print(
            f"{played.weights} weights, version {played.version}: mean return {mean:.2f}, std {std:.2f} "
            f"over {len(played.returns)} greedy episodes (min {low:g}, max {high:g})"
            + beside_human(env_id, mean)
        )
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from cluster.show.status import newest_run, show, status_of_address, status_of_directory

    if options.address is not None and options.run_dir is not None:
        raise ConfigError("give a run directory or --address, not both")
    if options.address is not None:
        look = partial(status_of_address, options.address)
    else:
        look = partial(status_of_directory, options.run_dir or newest_run())
    show(look, watch=options.watch)
    return EXIT_OK


def _report(options: argparse.Namespace) -> int:
    from cluster.report.report import write_report

    for path in write_report(options.run_dirs, options.out, options.png):
        print(path)
    return EXIT_OK


def _export(options: argparse.Namespace) -> int:
    from cluster.policies.export import export_run
    from cluster.policies.onnx_export import ExportError

    try:
        exported = export_run(options.run_dir, options.format, options.which, options.out)
    except ExportError as error:
        print(f"qfleet: {error}", file=sys.stderr)
        return EXIT_ERROR
    checked = (
        ""
        if exported.max_abs_difference is None
        else f"; on {exported.observations} recorded observations its Q-values differ from the policy's "
        f"by at most {exported.max_abs_difference:.2g}"
    )
    print(f"{exported.path}: {exported.weights} weights, version {exported.version}{checked}")
    return EXIT_OK


def _video(options: argparse.Namespace) -> int:
    from cluster.policies.video import film_run

    video = film_run(options.run_dir, options.episodes, options.seed, options.out)
    returns = ", ".join(f"{one:g}" for one in video.returns)
    print(f"{video.path}: {video.seconds:.0f} s, returns {returns}")
    return EXIT_OK


def _check_env(options: argparse.Namespace) -> int:
    from cluster.check_env import describe

    print(describe(_config(options.source, options.set)))
    return EXIT_OK


def _plan(options: argparse.Namespace) -> int:
    from cluster.api import ask_for_placement, prepare
    from cluster.engines.machine import this_machine
    from cluster.settings.plan import make_plan, refuse_what_cannot_fit

    prepared = prepare(_config(options.source, options.set))
    plan = make_plan(prepared.config, prepared.spec, this_machine())
    if prepared.config.run.runtime == "cluster" and "RAY_ADDRESS" in os.environ:
        plan = replace(plan, placement=ask_for_placement(prepared, plan))
    print(plan.text)
    refuse_what_cannot_fit(plan)
    return EXIT_OK


def _presets(options: argparse.Namespace) -> int:
    paths = preset_paths()
    if options.name is None:
        for name, path in paths.items():
            first = path.read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:20} {first.removeprefix('# ')}")
        return EXIT_OK
    if options.name not in paths:
        print(f"qfleet: no preset {options.name}; there are: {', '.join(paths)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(paths[options.name].read_text(encoding="utf-8"), end="")
    print("\n# With every default filled in:\n" + _commented(dump_config(load_config(paths[options.name]))))
    return EXIT_OK


def _commented(text: str) -> str:
    return "\n".join(f"# {line}" for line in text.splitlines())
