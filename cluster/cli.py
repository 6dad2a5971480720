"""Parsing and running the qfleet commands.

Owns arguments, exit statuses and printed answers; heavy imports wait until a command needs them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.config import RunConfig
from cluster.load_config import dump_config, load_config, preset_for_env, preset_paths
from cluster.signals import Interrupted

EXIT_OK, EXIT_ERROR, EXIT_BAD_INPUT = 0, 1, 2


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
        default="CartPole-v1",
        metavar="ENV_ID | module:factory | CONFIG.yaml",
        help="default: %(default)s",
    )
    train.add_argument("--runtime", choices=("local", "cluster", "serial"), help="default: local")
    train.add_argument("--run-dir", type=Path, help="default: runs/ENV-TIME")
    train.add_argument("--seed", type=int, help="default: 0")
    _add_set(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="play greedy episodes with what a run learned")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--episodes", type=int, default=100, help="default: %(default)s")
    evaluate.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object with every return")
    evaluate.set_defaults(run=_eval)

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
    if preset is not None:
        return load_config(preset, overrides)
    return load_config(None, [f"env.id={json.dumps(source)}", *overrides])


def _train(options: argparse.Namespace) -> int:
    from cluster.api import train
    from cluster.coordinator import RunFailed

    flags = {"run.runtime": options.runtime, "run.seed": options.seed}
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    config = _config(options.source, [*options.set, *given])
    try:
        result = train(config, options.run_dir)
    except RunFailed as failure:
        print(f"{failure}", file=sys.stderr)
        return EXIT_ERROR
    outcome = result.outcome
    best = (
        "no version was evaluated"
        if outcome.best_return_mean is None
        else (f"best version {outcome.best_version}: greedy return {outcome.best_return_mean:.1f}, confirmed")
    )
    print(f"{outcome.reason} after {result.seconds:.1f} s; {best}")
    print(f"evaluate it: qfleet eval {result.run_dir} --episodes 100")
    return EXIT_OK if result.signal is None else 128 + result.signal


def _eval(options: argparse.Namespace) -> int:
    from cluster.evaluate import evaluate_run

    played = evaluate_run(options.run_dir, options.episodes, options.seed)
    mean, std = statistics.fmean(played.returns), statistics.pstdev(played.returns)
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
        print(json.dumps(line))
    else:
        low, high = min(played.returns), max(played.returns)
        print(
            f"{played.weights} weights, version {played.version}: mean return {mean:.2f}, std {std:.2f} "
            f"over {len(played.returns)} greedy episodes (min {low:g}, max {high:g})"
        )
    return EXIT_OK


def _check_env(options: argparse.Namespace) -> int:
    from cluster.check_env import describe

    print(describe(_config(options.source, options.set)))
    return EXIT_OK


def _plan(options: argparse.Namespace) -> int:
    from cluster.api import prepare
    from cluster.machine import this_machine
    from cluster.plan import make_plan, refuse_what_cannot_fit

    prepared = prepare(_config(options.source, options.set))
    plan = make_plan(prepared.config, prepared.spec, this_machine())
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
