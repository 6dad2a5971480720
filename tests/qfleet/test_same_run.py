"""`qfleet train X`, `qfleet.train(X)` and the configuration that a run saves train with the same settings.

Each goes its own whole way, up to the moment at which the first process would start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import qfleet
from actors.envs import trial
from actors.envs.errors import EnvError
from actors.envs.make import Probed
from cluster import api, cli
from cluster.engines import process_engine
from cluster.settings.load_config import dump_config, load_config, preset_paths
from cluster.settings.resolved import ResolvedConfig

IDS_WITHOUT_PRESET = (
    *("Blackjack-v1", "CliffWalking-v1", "Taxi-v4", "FrozenLake8x8-v1", "CartPole-v0", "gymnasium:Taxi-v4"),
    *("qfleet_test_envs:Corridor", "qfleet_test_envs:Chain", "qfleet_test_envs:Recall"),
    "CliffWalkingSlippery-v1",
)
SOURCES = (
    *(str(path) for path in preset_paths().values()),
    *dict.fromkeys(load_config(path).env.id for path in preset_paths().values()),
    *IDS_WITHOUT_PRESET,
)


class Taken(Exception):  # noqa: N818 - no error: the settings with which a run would begin
    def __init__(self, config: ResolvedConfig, *_: Any) -> None:
        self.config = config


@pytest.fixture(scope="module")
def known() -> dict[str, Probed]:
    """The environments that were tried out, by their settings."""
    return {}


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch, known: dict[str, Probed]) -> None:
    """Makes every way end with Taken, starts no process, and tries each environment out once."""

    def try_out(config: Any) -> Probed:
        name = repr(config)
        if name not in known:
            known[name] = trial.try_out(config)
        return known[name]

    def take(*args: Any) -> None:
        raise Taken(*args)

    monkeypatch.setattr(api, "try_out", try_out)
    monkeypatch.setattr(api, "make_plan", take)
    monkeypatch.setattr(process_engine, "can_run", lambda: False)


def config_of(train: Callable[[], object]) -> ResolvedConfig:
    with pytest.raises(Taken) as ended:
        train()
    return ended.value.config


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: Path(source).stem)
def test_command_python_and_the_saved_file_give_the_same_run(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_command = config_of(lambda: cli.run(["train", source]))
    assert by_command.run.preset != "auto"
    assert config_of(lambda: qfleet.train(source)) == by_command
    assert config_of(lambda: qfleet.train(qfleet.load_config(source))) == by_command
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(by_command))
    assert config_of(lambda: cli.run(["train", "config.yaml"])) == by_command
    assert config_of(lambda: qfleet.train(saved)) == by_command


def test_settings_and_seed_are_given_in_each_way_alike(tmp_path: Path) -> None:
    flags = ["--seed", "7", "--set", "learner.batch_size=64", "--set", "stop.seconds=10m"]
    by_command = config_of(lambda: cli.run(["train", "CartPole-v1", *flags]))
    given = {"learner.batch_size": 64, "stop.seconds": "10m"}
    assert config_of(lambda: qfleet.train("CartPole-v1", seed=7, settings=given)) == by_command
    assert (by_command.run.seed, by_command.learner.batch_size, by_command.stop.seconds) == (7, 64, 600.0)


def test_a_class_or_function_is_given_as_it_stands() -> None:
    assert config_of(lambda: qfleet.train(CartPoleEnv)) == config_of(
        lambda: cli.run(["train", f"{CartPoleEnv.__module__}:CartPoleEnv"])
    )
    with pytest.raises(qfleet.ConfigError, match="stands at the top of a module"):
        qfleet.train(lambda: CartPoleEnv())


def test_a_program_that_trains_whenever_it_is_imported_is_refused(tmp_path: Path) -> None:
    # Each role imports it for `make`, and would begin a run of its own.
    program = tmp_path / "unguarded.py"
    program.write_text(
        "import gymnasium, qfleet\n"
        "def make():\n    return gymnasium.make('CartPole-v1')\n"
        "qfleet.train(make)\n"
    )
    with pytest.raises(EnvError, match=r'put the call below `if __name__ == "__main__":`'):
        qfleet.train(f"{program}:make")
