"""A catalog of mistakes: each is answered in a sentence, with exit status 2, before any process starts.

Tests cluster/cli.py, actors/envs/trial.py and the checks of settings.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from qfleet_serial import SMALL, train_serial

from cluster.cli import run

Mistake = tuple[str, list[str]]
"""A command line, and words that its answer must have. RUN is a run's folder."""

LONG = "a" * 300

COMMANDS: list[Mistake] = [
    ("trian CartPole-v1", ["'trian'", "did you mean train?"]),
    ("", ["command"]),
    ("train CartPole-v1 --steps 1000", ["--steps", "did you mean --set stop.env_steps=1000?"]),
    ("train CartPole-v1 --lr 0.001", ["--lr", "--set learner.learning_rate=0.001"]),
    ("train CartPole-v1 --batch-size=64", ["--batch-size", "--set learner.batch_size=64"]),
    ("train CartPole-v1 --sed 3", ["--sed", "--seed"]),
    ("train CartPole-v1 learner.batch_size=64", ["did you mean --set learner.batch_size=64?"]),
    ("train CartPole-v1 --runtime laptop", ["laptop", "local", "serial"]),
    ("train CartPole-v1 --seed abc", ["--seed", "abc"]),
    ("train CartPole-v1 --seed -1", ["run.seed is -1", "0 or more"]),
    ("train CartPole-v1 --resume", ["--resume needs the folder", "--run-dir"]),
    ("train --resume --run-dir nope", ["nope: no run directory"]),
    ("train CartPole-v1 --metrics-addr 9401", ["--metrics-addr is 9401", "HOST:PORT"]),
    ("train CartPole-v1 --run-dir RUN", ["already holds a run", "--resume"]),
    (f"train CartPole-v1 --run-dir {LONG}", [f"run directory {LONG}", "File name too long", "--run-dir"]),
    (f"train {LONG}", [f"no environment '{LONG}'"]),
    ("train rainbow", ["rainbow is a preset", "CartPole-v1 --set run.preset=rainbow"]),
    ("check-env rainbow", ["rainbow is a preset"]),
    ("plan rainbow", ["rainbow is a preset"]),
    ("train rainbow.yaml", ["rainbow.yaml: no such file", "--set run.preset=NAME", "rainbow"]),
    (f"eval {LONG}", ["no run directory"]),
    ("train RUN", ["is the folder of a run", "config.yaml", "--resume"]),
    ("eval nope", ["nope: no run directory"]),
    ("eval RUN --episodes 0", ["--episodes is 0"]),
    ("eval RUN --episodes 2.5", ["--episodes", "2.5 is not a whole number"]),
    ("eval RUN --which newest", ["newest", "best", "latest"]),
    ("export nope --format onnx", ["nope: no run directory"]),
    ("export RUN --format h5", ["h5", "onnx", "safetensors"]),
    ("export RUN --format safetensors --out nowhere/x.bin", ["--out is nowhere/x.bin", "no folder nowhere"]),
    ("export RUN --format safetensors --out RUN", ["--out is RUN, which is a folder", "policy.safetensors"]),
    ("export RUN --format safetensors --out /dev/null", ["--out is /dev/null, which is no file"]),
    ("video nope", ["nope: no run directory"]),
    ("video RUN --out film.mp4", ["--out is film.mp4", ".gif"]),
    ("report nope", ["nope: no run directory"]),
    ("report RUN/config.yaml", ["config.yaml: no run directory"]),
    ("status nope", ["nope: no run directory"]),
    ("status --address 12", ["--address is 12", "HOST:PORT"]),
    ("presets cartpool", ["no preset cartpool", "did you mean cartpole?"]),
    ("settings xyzzyx", ["no setting holds 'xyzzyx'"]),
]

SETTINGS: list[Mistake] = [
    ("learner.gamma=0.9", ["unknown key learner.gamma", "actors.discount"]),
    ("learner.lr=0.1", ["unknown key learner.lr", "learner.learning_rate"]),
    ("batch_size=64", ["unknown key batch_size", "learner.batch_size"]),
    ("buffer_size=1000", ["replay.capacity"]),
    ("total_timesteps=1e6", ["stop.env_steps"]),
    ("learner.learning_starts=1000", ["pacing.learning_starts"]),
    ("agent.epsilon=0.1", ["actors.epsilon_start"]),
    ("exploration_fraction=0.1", ["actors.epsilon_decay_env_steps"]),
    ("train_freq=4", ["pacing.samples_per_insert"]),
    ("learner.bach_size=3", ["learner.batch_size"]),
    ("learner.batch_size", ["section.name=value"]),
    ("=64", ["--set =64", "section.name=value"]),
    ("learner.batch_size=ten", ["learner.batch_size is 'ten'", "such as 5000, 100k or 1e6"]),
    ("learner.batch_size=16GB", ["learner.batch_size is '16GB'", "such as 5000"]),
    ("stop.seconds=10 parsecs", ["stop.seconds is '10 parsecs'", "10m or 1h30m"]),
    ("actors.memory_limit_bytes=lots", ["'lots'", "512MB or 16GB"]),
    ("learner.double=maybe", ["learner.double is 'maybe'", "true or false"]),
    ("replay.sampling=priority", ["replay.sampling is 'priority'", "uniform, prioritized"]),
    ("actors.discount=1.01", ["actors.discount is 1.01", "[0, 1]"]),
    ("actors.num_actors=0", ["actors.num_actors is 0", "at least 1"]),
    ("learner.hidden_sizes=[]", ["learner.hidden_sizes is []"]),
    ("learner.network=resnet", ["learner.network is 'resnet'", "nature_cnn"]),
    ("learner.network=nature_cnn", ["nature_cnn", "images"]),
    ("learner.device=gpu", ["learner.device is gpu", "cuda:N"]),
    ("run.preset=rainbo", ["run.preset is 'rainbo'", "rainbow"]),
    ("pacing.learning_starts=1", ["pacing.learning_starts is 1", "learner.batch_size"]),
    ("replay.capacity=1000", ["pacing.learning_starts is 2000, above replay.capacity = 1000"]),
    ("stop.env_steps=1000", ["stop.env_steps is 1000", "end before it learns"]),
    (
        "stop.env_steps=2200",
        ["stop.env_steps is 2200", "too few for a single update", "800 samples", "6,400"],
    ),
    ("replay.capacity=1e12", ["the run needs 64.0 TB", "replay.capacity"]),
    ("env.id=", ["env.id"]),
]

FILES: list[Mistake] = [
    ("", ["mine.yaml is empty"]),
    ("learner:\n", ["the section learner is empty (mine.yaml, line 1)"]),
    ("learner: {batch_size: 8}\nlearner: {double: true}\n", ["learner stands twice", "line 1"]),
    ("env: \0\n", ["mine.yaml: not valid YAML", "#x0000"]),
    ("env: [CartPole-v1]\n", ["env is ['CartPole-v1']", "section"]),
    ("learner:\n\tbatch_size: 8\n", ["mine.yaml: not valid YAML", "line 2"]),
    ("gamma: 0.9\nlearner: {lr: 1}\n", ["mine.yaml, line 1", "actors.discount", "line 2", "learning_rate"]),
]

ENVIRONMENTS: list[Mistake] = [
    ("CartPole", ["CartPole-v1"]),
    ("cartpole-v1", ["CartPole-v1"]),
    ("PongNoFrameskip-v4", ["raw color frames", "ALE/Pong-v5"]),
    ("ale_py:PongNoFrameskip-v4", ["raw color frames", "ALE/Pong-v5"]),
    ("NoSuchGame-v0", ["no environment 'NoSuchGame-v0'"]),
    ("no_such_module:make", ["no_such_module"]),
    ("qfleet_mistakes:Wrong", ["qfleet_mistakes", "'Wrong'"]),
    ("qfleet_mistakes:not_callable", ["qfleet_mistakes", "'not_callable'"]),
    ("qfleet_mistakes:not_an_environment", ["object", "gymnasium.Env"]),
    ("qfleet_mistakes:WrongShape", ["reset()", "(3,)", "(2,)"]),
    ("qfleet_mistakes:WrongShapeInStep", ["step()", "(3,)", "(2,)"]),
    ("qfleet_mistakes:OldReset", ["reset()", "(observation, info)"]),
    ("qfleet_mistakes:OldStep", ["step()", "4 values", "truncated"]),
    ("qfleet_mistakes:NoSeed", ["reset()", "seed"]),
    ("qfleet_mistakes:RaisingReset", ["reset() raised RuntimeError: the board is not set up", "line "]),
    ("qfleet_mistakes:RaisingStep", ["step() raised KeyError", "left", "qfleet_mistakes.py, line "]),
    ("qfleet_mistakes:RaisingInit", ["making it raised OSError: no such level"]),
    ("qfleet_mistakes:NoReward", ["step()", "reward None"]),
    ("qfleet_mistakes:TextReward", ["step()", "reward 'ten'"]),
    ("qfleet_mistakes:NoObservationSpace", ["observation"]),
    ("qfleet_mistakes:TextActions", ["actions"]),
    ("qfleet_mistakes:ContinuousActions", ["env.discretize"]),
    ("FrozenLake-v1 --set learner.network=mlp", ["learner.network is mlp", "table"]),
    ("CartPole-v1 --set env.kwargs.color=red", ["env.kwargs", "color"]),
    ("qfleet_mistakes:Right --set learner.network=qfleet_mistakes:too_small", ["[2, 7]", "[2, 2]"]),
    ("qfleet_mistakes:Right --set learner.network=qfleet_mistakes:misfit", ["network", "shapes"]),
    ("qfleet_mistakes:Right --set learner.network=qfleet_mistakes:no_module", ["int, not nn.Module"]),
    (
        "qfleet_mistakes:Right --set learner.network=qfleet_mistakes:raising",
        ["AttributeError: no hidden sizes"],
    ),
    ("qfleet_mistakes:Right --set learner.network=qfleet_mistakes:with_buffers", ["buffers", "batch norm"]),
    ("qfleet_mistakes:Right --set learner.network=nowhere:net", ["nowhere"]),
    ("CartPole-v1 --set learner.device=cuda:7", ["learner.device is cuda:7", "0 GPUs", "cpu"]),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "ended"
    train_serial(folder, [*SMALL, "stop.updates=8"])
    return folder


@pytest.fixture
def answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: Path
) -> Answer:
    monkeypatch.chdir(tmp_path)
    return Answer(ended, capsys)


class Answer:
    """Runs a command that holds a mistake, and checks what every answer must be."""

    def __init__(self, ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._ended = ended
        self._capsys = capsys

    def __call__(self, arguments: list[str], facts: list[str], seconds: float) -> None:
        children = set(psutil.Process().children(recursive=True))
        began = time.monotonic()
        try:
            status = run([argument.replace("RUN", str(self._ended)) for argument in arguments])
        except SystemExit as left:
            status = int(left.code or 0)
        took = time.monotonic() - began
        said = self._capsys.readouterr().err
        assert status == 2, said
        assert "Traceback" not in said
        for fact in facts:
            assert fact.replace("RUN", str(self._ended)) in said, said
        assert set(psutil.Process().children(recursive=True)) == children
        assert not Path("runs").exists()
        assert took < seconds


@pytest.mark.parametrize(("line", "facts"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_wrong_command_is_answered(answer: Answer, line: str, facts: list[str]) -> None:
    answer(line.split(), facts, 3.0)


@pytest.mark.parametrize(("setting", "facts"), SETTINGS, ids=[setting for setting, _ in SETTINGS])
def test_a_wrong_setting_is_answered(answer: Answer, setting: str, facts: list[str]) -> None:
    answer(["train", "CartPole-v1", "--set", setting], facts, 3.0)


@pytest.mark.parametrize(("text", "facts"), FILES, ids=[text[:20] for text, _ in FILES])
def test_a_wrong_file_is_answered(answer: Answer, text: str, facts: list[str]) -> None:
    Path("mine.yaml").write_text(text)
    answer(["train", "mine.yaml"], facts, 3.0)


@pytest.mark.parametrize("command", ["check-env", "train"])
@pytest.mark.parametrize(("line", "facts"), ENVIRONMENTS, ids=[line for line, _ in ENVIRONMENTS])
def test_a_wrong_environment_or_network_is_answered(
    answer: Answer, command: str, line: str, facts: list[str]
) -> None:
    answer([command, *line.split()], facts, 8.0)


def test_there_are_sixty() -> None:
    assert len({*(line for line, _ in [*COMMANDS, *SETTINGS, *FILES, *ENVIRONMENTS])}) >= 60
