"""Configurations from files and --set, and the message about a bad one.

Tests cluster/settings/load_config.py, cluster/settings/config.py, and through them cluster/settings/tree.py,
cluster/settings/parse.py and cluster/settings/names.py.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings.config import ConfigError, RunConfig, check
from cluster.settings.load_config import dump_config, load_config, preset_for_env, preset_paths
from cluster.settings.tree import in_yaml, read_text


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        # A key that does not exist: its full name and the nearest one, at either level.
        ("lerner.batch_size=3", ["unknown key lerner", "did you mean learner?"]),
        ("learner.batchsize=3", ["unknown key learner.batchsize", "did you mean learner.batch_size?"]),
        ("actors.epsilon_ladder.bas=0.4", ["did you mean actors.epsilon_ladder.base?"]),
        ("xyzzy.q=1", ["unknown key xyzzy", "valid: env, actors, replay, learner"]),
        ("learner.zzzzz=1", ["unknown key learner.zzzzz", "valid: network, hidden_sizes"]),
        # A wrong type: name, value and what is expected.
        (
            "learner.batch_size=abc",
            ["learner.batch_size is 'abc'", "such as 5000, 100k or 1e6"],
        ),
        ("learner.batch_size=1.5", ["learner.batch_size is 1.5", "give a whole number"]),
        (
            "learner.batch_size=null",
            ["learner.batch_size is None", "not allowed here, give a whole number"],
        ),
        ("learner.batch_size=true", ["learner.batch_size is True", "give a whole number"]),
        ("learner.device=gpu", ["learner.device is gpu", "cuda:N"]),
        ("learner.hidden_sizes=[1, a]", ["learner.hidden_sizes[1]", "give a whole number"]),
        ("env.kwargs=[1]", ["env.kwargs is [1]", "give names with values"]),
        ("env.kwargs={1: 2}", ["env.kwargs", "give a text"]),
        ("env=3", ["env is 3", "section"]),
        ("env=null", ["the section env is empty"]),
        ("learner.batch_size.deeper=2", ["learner.batch_size is", "give a whole number"]),
        ("run.runtime=laptop", ["run.runtime is 'laptop'", "local, ray, cluster, serial"]),
        ("replay.sampling=prio", ["replay.sampling is 'prio'", "uniform, prioritized"]),
        # An impossible value: name, value and bounds.
        ("actors.discount=1.5", ["actors.discount is 1.5", "[0, 1]"]),
        ("actors.discount=.nan", ["actors.discount is nan"]),
        ("actors.epsilon_ladder.base=2", ["actors.epsilon_ladder.base is 2.0", "(0, 1]"]),
        ("actors.num_actors=0", ["actors.num_actors is 0", "at least 1"]),
        ("replay.num_shards=0", ["replay.num_shards is 0"]),
        ("pacing.samples_per_insert=0", ["pacing.samples_per_insert is 0.0", "above 0"]),
        ("pacing.samples_per_insert=.nan", ["pacing.samples_per_insert is nan"]),
        ("evaluation.episodes=0", ["evaluation.episodes is 0"]),
        ("stop.updates=0", ["stop.updates is 0", "above 0"]),
        ("stop.seconds=-1", ["stop.seconds is -1.0"]),
        ("checkpoint.weights_every_seconds=0", ["checkpoint.weights_every_seconds is 0.0"]),
        ("metrics.every_seconds=0", ["metrics.every_seconds is 0.0"]),
        ("metrics.port=70000", ["metrics.port is 70000", "65535"]),
        ("run.seed=-1", ["run.seed is -1", "0 or more"]),
        ("run.restarts=-1", ["run.restarts is -1"]),
        ("run.stall_seconds=0", ["run.stall_seconds is 0.0"]),
        # A malformed override.
        ("learner.batch_size", ["--set learner.batch_size", "section.name=value"]),
        ("learner.batch_size=[", ["--set learner.batch_size=[", "not valid YAML"]),
        ("=3", ["--set =3", "section.name=value"]),
    ],
)
def test_a_bad_setting_is_named_with_its_cure(override: str, facts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, [override])
    for fact in facts:
        assert fact in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (
            ["replay.capacity=32", "learner.batch_size=64", "pacing.learning_starts=64"],
            [
                "replay.capacity is 32",
                "learner.batch_size = 64",
                "raise the capacity or lower the batch size",
            ],
        ),
        (["actors.epsilon_ladder.alpha=.nan"], ["actors.epsilon_ladder.alpha is nan", "finite"]),
        (["learner.learning_rate=.inf"], ["learner.learning_rate is inf", "finite"]),
        (["stop.target_return=.nan"], ["stop.target_return is nan", "finite"]),
        (
            ["stop.env_steps=1000", "pacing.learning_starts=1000"],
            ["stop.env_steps is 1000", "pacing.learning_starts = 1000", "end before it learns"],
        ),
        (
            ["replay.capacity=500", "pacing.learning_starts=501"],
            ["pacing.learning_starts is 501", "replay.capacity = 500", "learning would never start"],
        ),
        (
            ["replay.capacity=1000", "replay.num_shards=16", "learner.batch_size=64"],
            ["replay.num_shards is 16", "15 batches of 64"],
        ),
        (
            [
                "replay.capacity=1000",
                "replay.num_shards=4",
                "actors.steps_per_chunk=62",
                "actors.envs_per_actor=4",
            ],
            ["actors.steps_per_chunk is 62", "a block of 252 transitions", "a shard of 250"],
        ),
        (
            ["actors.min_actors=4", "actors.num_actors=3"],
            ["actors.min_actors is 4", "actors.num_actors = 3"],
        ),
        (
            ["pacing.learning_starts=10", "learner.batch_size=64"],
            ["pacing.learning_starts is 10", "learner.batch_size = 64"],
        ),
        (
            ["actors.epsilon_start=0.1", "actors.epsilon_end=0.2"],
            ["actors.epsilon_end is 0.2", "actors.epsilon_start = 0.1"],
        ),
        (
            ["run.runtime=serial", "actors.num_actors=3"],
            ["actors.num_actors is 3", "serial", "actors.envs_per_actor"],
        ),
    ],
)
def test_a_combination_that_cannot_work_is_named_with_its_cure(
    overrides: list[str], facts: list[str]
) -> None:
    config = load_config(None, overrides)
    with pytest.raises(ConfigError) as raised:
        check(config)
    for fact in facts:
        assert fact in str(raised.value)


def test_every_problem_is_told_at_once() -> None:
    config = load_config(
        None, ["pacing.learning_starts=10", "actors.epsilon_start=0", "actors.epsilon_end=1"]
    )
    with pytest.raises(ConfigError) as raised:
        check(config)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["replay.capacity=64", "learner.batch_size=64", "pacing.learning_starts=64"],
        ["replay.capacity=1024", "replay.num_shards=16", "learner.batch_size=64"],
        [
            "replay.capacity=1008",
            "replay.num_shards=4",
            "actors.steps_per_chunk=62",
            "actors.envs_per_actor=4",
        ],
        ["actors.min_actors=3", "actors.num_actors=3"],
        ["actors.epsilon_start=0.2", "actors.epsilon_end=0.2"],
        ["run.runtime=serial", "actors.num_actors=1"],
        [],
    ],
)
def test_what_just_works_is_accepted(overrides: list[str]) -> None:
    check(load_config(None, overrides))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("env: [", "not valid YAML"),
        ("- 1\n- 2\n", "holds a list, expected sections"),
        ("just words", "holds a text"),
        ("# nothing\n", "mine.yaml is empty"),
        ("learner:\n", "mine.yaml, line 1); write settings below it"),
        ("run:\n", "the section run is empty"),
        ("a: &a [*a]\n", "unknown key a"),
        (
            "learner:\n  batch_size: 4\n  double: true\n  batch_size: 8\n",
            "mine.yaml, line 4: learner.batch_size stands twice, first in line 2",
        ),
        ("env: {id: Foo-v1}\nlearnr: {}\n", "did you mean learner?"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, fact: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml|unknown key") as raised:
        load_config(path)
    assert fact in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file; there are presets in .*cartpole"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read|not valid YAML"):
        load_config(tmp_path / "binary.yaml")


def test_every_unknown_name_and_wrong_value_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learner:\n  gamma: 0.9\n  double: 3\nagent: {buffer_size: 10, nonsense_name: 1}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path, ["lr=1"])
    place = f"({path}, line "
    assert str(raised.value).splitlines() == [
        f"unknown key learner.gamma {place}2); did you mean actors.discount?",
        f"learner.double is 3 {place}3); give true or false",
        f"unknown key agent.buffer_size {place}4); did you mean replay.capacity?",
        f"unknown key agent.nonsense_name {place}4); qfleet settings lists those that are",
        "unknown key lr; did you mean learner.learning_rate?",
    ]


@pytest.mark.parametrize(
    ("source", "overrides", "preset"),
    [
        ("CartPole-v1", [], "cartpole"),
        (None, ["env.id=CartPole-v1"], "cartpole"),
        ("CartPole-v1", ["env.id=Acrobot-v1"], "acrobot"),
        ("gymnasium:CartPole-v1", [], "cartpole"),
        ("ale_py:ALE/Pong-v5", [], "atari"),
        ("CartPole-v1", ["run.preset=rainbow"], "rainbow"),
        ("CartPole-v1", ["run.preset=none"], "none"),
        ("Pendulum-v1", [], "none"),
        (None, [], "none"),
    ],
)
def test_an_environment_gets_its_preset_however_it_is_named(
    source: str | None, overrides: list[str], preset: str
) -> None:
    config = load_config(source, overrides)
    assert config.run.preset == preset
    env_id = overrides[0].removeprefix("env.id=") if "env.id" in str(overrides) else source or "CartPole-v1"
    below = RunConfig() if preset == "none" else load_config(preset_paths()[preset])
    env = dataclasses.replace(below.env, id=env_id)
    assert config == dataclasses.replace(below, env=env, run=dataclasses.replace(below.run, preset=preset))


def test_what_is_given_wins_over_the_preset_and_a_file_gets_none(tmp_path: Path) -> None:
    config = load_config("ALE/Pong-v5", ["learner.batch_size=7", "env.kwargs.frameskip=2"])
    assert (config.learner.batch_size, config.learner.network) == (7, "nature_cnn")
    assert config.env.kwargs == {"repeat_action_probability": 0.0, "frameskip": 2}
    path = tmp_path / "mine.yaml"
    path.write_text("env: {id: CartPole-v1}\n")
    assert (
        load_config(str(path))
        == load_config(path)
        == dataclasses.replace(RunConfig(), run=dataclasses.replace(RunConfig().run, preset="none"))
    )
    path.write_text("env: {id: CartPole-v1}\nrun: {preset: cartpole}\nactors: {epsilon_ladder: null}\n")
    assert load_config(path).learner == load_config("CartPole-v1").learner
    assert load_config(path).actors.epsilon_ladder is None
    with pytest.raises(ConfigError, match=r"run\.preset is 'cartpool'; give auto, none, or one of acrobot"):
        load_config("CartPole-v1", ["run.preset=cartpool"])


def test_a_preset_a_folder_or_another_file_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modern is a preset, no environment: .*--set run\.preset=modern"):
        load_config("modern")
    (tmp_path / "config.yaml").write_text("env: {id: A}\n")
    with pytest.raises(ConfigError, match=r"is the folder of a run: repeat it with .*--resume"):
        load_config(str(tmp_path))
    (tmp_path / "settings.toml").touch()
    with pytest.raises(ConfigError, match="read from YAML files"):
        load_config(str(tmp_path / "settings.toml"))


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learner: {batch_size: 8, learning_rate: 3e-3}\nenv: {kwargs: {a: 1}}\n")
    config = load_config(path, ["learner.batch_size=16", "learner.batch_size=32", "env.kwargs.b=two"])
    assert config.learner.batch_size == 32
    assert config.learner.learning_rate == 3e-3  # YAML 1.1 reads 3e-3 as text
    assert config.env.kwargs == {"a": 1, "b": "two"}


def test_dump_and_load_give_the_same_config(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "env.id=my.module:make",
            "env.kwargs={deep: {list: [1, 2.5, null, text]}}",
            "actors.epsilon_ladder={base: 0.3, alpha: 5}",
            "learner.hidden_sizes=[7, 9]",
            "learner.max_grad_norm=null",
            "learner.learning_rate=1e-7",
            "stop.target_return=-3.5",
        ],
    )
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize("given", [{}, {"run": {"seed": 3}, "replay": {}, "metrics": {"port": 9}}])
def test_every_setting_is_in_the_dump_whether_given_or_not(
    given: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(given))
    config = load_config(path)
    dumped = yaml.safe_load(dump_config(config))
    for section in dataclasses.fields(RunConfig):
        names = {item.name for item in dataclasses.fields(getattr(config, section.name))}
        assert dumped[section.name].keys() == names


def test_a_preset_is_found_by_its_environment() -> None:
    assert preset_for_env("CartPole-v1") == preset_paths()["cartpole"]
    assert preset_for_env("CartPole-v0") is None


KWARGS = {
    "010": 10,
    "-007": -7,
    "08": 8,
    "0x1F": 31,
    "1_000": 1000,
    "1e-3": 0.001,
    "1E5": 1e5,
    "-.5": -0.5,
    "3.": 3.0,
    "-.inf": -math.inf,
    "12:30": "12:30",
    "1:30.5": "1:30.5",
    "2020-01-01": "2020-01-01",
    "'1e-3'": "1e-3",
    "'08'": "08",
    "0o17": "0o17",
    "-": "-",
    "1.2.3": "1.2.3",
    "no": False,
}


@pytest.mark.parametrize(("text", "value"), KWARGS.items())
def test_an_environment_gets_the_numbers_that_are_written(text: str, value: object, tmp_path: Path) -> None:
    config = load_config("CartPole-v1", [f"env.kwargs={{x: {text}}}"])
    assert config.env.kwargs == {"x": value}
    assert type(config.env.kwargs["x"]) is type(value)
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again, []).env.kwargs == {"x": value}


def test_a_seed_with_leading_zeros_is_decimal() -> None:
    assert load_config("CartPole-v1", ["run.seed=010"]).run.seed == 10


VALUES = [
    *(math.inf, -math.inf, 1e-5, 1e16, 123456789012345678901234567890),
    *(
        "no",
        "NaN",
        "1e-3",
        "12:30",
        "2020-01-01",
        "",
        " x ",
        "#x",
        "{a}",
        "---",
        "a\nb",
        "x" * 300 + " y" * 99,
    ),
    *("\U0001f600", "\u2028x", "\x07", "\x7f", "\x85", "\ufeff", "\ud83d"),
    {"a": [1, {"b": "x: y"}, None, True]},
]


@given(st.one_of(st.sampled_from(VALUES), st.text(), st.floats(allow_nan=False), st.lists(st.text())))
def test_what_is_written_in_yaml_is_read_as_it_was(value: object) -> None:
    line = in_yaml(value, flow=True)
    config = load_config("CartPole-v1", [f"env.kwargs={in_yaml({'x': value}, flow=True)}"])
    assert config.env.kwargs == {"x": value}
    assert read_text(dump_config(config), "a file").values["env"]["kwargs"] == {"x": value}
    assert read_text(f"x: {line}", "a file").values == {"x": value}
