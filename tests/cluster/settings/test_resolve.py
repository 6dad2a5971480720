"""Automatic settings: the rules of cluster/settings/resolve.py, the types of cluster/settings/resolved.py."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from qfleet_configs import ATARI

from actors.core import EnvSpec
from cluster.api import prepare
from cluster.settings.config import ConfigError, RunConfig, check
from cluster.settings.load_config import dump_config, load_config, load_resolved, preset_paths
from cluster.settings.resolve import network_spec, resolve

VECTOR = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, 475.0)
TABLE = EnvSpec((), "<i8", 16, 4, 1, "sync", "next_step", 100, None)
OPEN_ON_PURPOSE = {
    "learner.initial_weights",
    "learner.max_grad_norm",
    "learner.image_hidden_size",
    "learner.pool_size",
    "learner.target_update_env_steps",
    "learner.threads",
    "learner.target_polyak",
    "learner.learning_rate_decay_updates",
}


def open_settings(config: RunConfig) -> set[str]:
    return {
        f"{section}.{name}"
        for section, values in asdict(config).items()
        for name, value in values.items()
        if value is None
    }


@pytest.mark.parametrize("spec", [VECTOR, TABLE, ATARI], ids=["vector", "table", "atari"])
@pytest.mark.parametrize("runtime", ["local", "ray", "cluster", "serial"])
def test_everything_that_decides_the_run_is_filled_in(spec: EnvSpec, runtime: str) -> None:
    config = resolve(load_config(None, [f"run.runtime={runtime}"]), spec, cores=4)
    check(config)
    still_open = open_settings(config)
    assert not {name for name in still_open if name.startswith(("replay.",))}
    assert still_open <= OPEN_ON_PURPOSE | {
        "env.discretize",
        "env.action_mask",
        "env.drop_observation_keys",
        "env.image_layout",
        "env.max_episode_steps",
        "actors.epsilon_ladder",
        "actors.min_actors",
        "actors.reward_clip",
        "actors.chunk_deadline_seconds",
        "actors.memory_limit_bytes",
        "checkpoint.every_updates",
        "stop.updates",
        "stop.seconds",
        "stop.target_return",
    }
    # What is saved repeats the run: resolving it again, on any machine, changes nothing.
    assert load_resolved(dump_config(config)) == config
    assert resolve(load_resolved(dump_config(config)), spec, cores=96) == config


@pytest.mark.parametrize(
    ("spec", "network"), [(VECTOR, "mlp"), (TABLE, "table"), (ATARI, "nature_cnn")], ids=str
)
def test_the_network_follows_the_observations(spec: EnvSpec, network: str) -> None:
    assert resolve(RunConfig(), spec, cores=2).learner.network == network


@pytest.mark.parametrize(
    ("spec", "runtime", "cores", "actors"),
    [
        (TABLE, "local", 1, 1),
        (TABLE, "local", 8, 7),
        (TABLE, "serial", 8, 1),
        (VECTOR, "local", 8, 1),  # native environments: one process keeps up with the learner
        (ATARI, "local", 8, 7),  # except where each step costs a convolution
    ],
)
def test_the_learner_keeps_a_core(spec: EnvSpec, runtime: str, cores: int, actors: int) -> None:
    config = resolve(load_config(None, [f"run.runtime={runtime}"]), spec, cores)
    assert config.actors.num_actors == actors


def test_what_was_given_is_kept() -> None:
    given = load_config(
        None,
        [
            "actors.num_actors=3",
            "actors.envs_per_actor=5",
            "actors.steps_per_chunk=7",
            "actors.epsilon_decay_env_steps=4000",
            "actors.n_step=4",
            "replay.capacity=5000",
            "replay.sampling=uniform",
            "replay.minibatches_per_request=3",
            "learner.updates_per_chunk=11",
            "learner.learning_rate=1e-3",
            "pacing.samples_per_insert=3",
            "pacing.learning_starts=70",
            "evaluation.every_updates=9",
            "evaluation.episodes=5",
            "evaluation.num_envs=2",
            "stop.updates=13",
            "stop.target_return=17",
        ],
    )
    config = resolve(given, VECTOR, cores=2)
    assert (asdict(config.actors), asdict(config.stop)) == (asdict(given.actors), asdict(given.stop))
    assert (asdict(config.pacing), asdict(config.evaluation)) == (
        asdict(given.pacing),
        asdict(given.evaluation),
    )
    assert asdict(config.replay) == asdict(replace(given.replay, persist="checkpoint"))
    assert asdict(config.learner) == asdict(replace(given.learner, network="mlp", target_update_updates=200))


def test_the_target_return_is_the_environments_own_unless_it_is_switched_off() -> None:
    assert resolve(RunConfig(), VECTOR, cores=2).stop.target_return == 475.0
    assert resolve(load_config(None, ["stop.target_return=auto"]), TABLE, cores=2).stop.target_return is None
    off = resolve(load_config(None, ["stop.target_return=null"]), VECTOR, cores=2)
    assert off.stop.target_return is None
    assert resolve(load_resolved(dump_config(off)), VECTOR, cores=2) == off


def test_serial_draws_only_when_it_needs() -> None:
    serial = resolve(load_config(None, ["run.runtime=serial"]), VECTOR, cores=2).replay
    assert (serial.prefetch_requests, serial.minibatches_per_request) == (0, 1)
    settings = ["run.runtime=serial", "replay.sampling=uniform"]
    assert resolve(load_config(None, settings), VECTOR, cores=2).replay.minibatches_per_request == 8


def test_images_bound_the_replay_by_memory() -> None:
    capacity = resolve(RunConfig(), ATARI, cores=2).replay.capacity
    assert capacity == 100_000
    large = replace(ATARI, observation_shape=(512, 512, 3), image_layouts={"observation": "HWC"})
    assert resolve(RunConfig(), large, cores=2).replay.capacity == (2 << 30) // (512 * 512 * 3)


def test_a_stack_is_part_of_the_networks_input() -> None:
    assert network_spec(ATARI).observation_shape == (4, 84, 84)
    assert network_spec(VECTOR).observation_shape == (4,)


@pytest.mark.parametrize("name", preset_paths())
def test_every_preset_loads_checks_and_resolves(name: str) -> None:
    prepared = prepare(load_config(preset_paths()[name]))
    assert prepare(prepared.config).config == prepared.config


@pytest.mark.parametrize("network", ["mlp", "nature_cnn"])
def test_a_network_that_does_not_fit_is_bad_input(network: str) -> None:
    config = load_config(None, ["env.id=FrozenLake-v1", f"learner.network={network}"])
    with pytest.raises(ValueError, match=f"learner.network is {network}") as raised:
        prepare(config)
    assert type(raised.value).__name__ == "ConfigError"


@pytest.mark.parametrize(
    ("given", "updates"),
    [
        ([], 200),
        (["learner.target_update_updates=7"], 7),
        # BTR's: 32,000 env steps at 4 samples per insert and batches of 256 are 500 updates.
        (["learner.target_update_env_steps=32_000"], 500),
        (["learner.target_update_env_steps=32_000", "pacing.samples_per_insert=8"], 1_000),
        (["learner.target_update_env_steps=32_000", "learner.batch_size=512"], 250),
        (["learner.target_update_env_steps=1"], 1),
    ],
)
def test_env_steps_between_copies_to_the_target_network_become_updates(
    given: list[str], updates: int
) -> None:
    pacing = ["pacing.samples_per_insert=4", "learner.batch_size=256"]
    config = resolve(load_config(None, [*pacing, *given]), VECTOR, cores=4)
    assert config.target_update_updates == updates
    # As saved, the unit stays: a resumed run with twice the reuse copies after twice as many updates.
    again = load_resolved(dump_config(config))
    assert again == config
    doubled = replace(
        again, pacing=replace(again.pacing, samples_per_insert=2 * again.pacing.samples_per_insert)
    )
    in_env_steps = config.learner.target_update_env_steps is not None and updates > 1
    assert doubled.target_update_updates == updates * (2 if in_env_steps else 1)


def test_copies_are_given_in_one_unit_only() -> None:
    both = ["learner.target_update_updates=7", "learner.target_update_env_steps=9"]
    with pytest.raises(
        ConfigError, match=r"target_update_env_steps is 9; learner.target_update_updates is 7, too"
    ):
        load_config(None, both)
    with pytest.raises(ConfigError, match=r"target_polyak = 0.1 moves the target network instead"):
        load_config(None, ["learner.target_update_env_steps=9", "learner.target_polyak=0.1"])
    with pytest.raises(ConfigError, match=r"target_update_env_steps is 0; give at least 1"):
        load_config(None, ["learner.target_update_env_steps=0"])


def test_lanes_and_samples_between_copies() -> None:
    given = ["actors.num_actors=3", "actors.envs_per_actor=5", "learner.batch_size=32"]
    config = resolve(load_config(None, [*given, "learner.target_update_updates=7"]), VECTOR, cores=4)
    assert (config.lanes, config.samples_per_copy) == (15, 32 * 7)
    config = resolve(load_config(None, [*given, "learner.target_polyak=0.01"]), VECTOR, cores=4)
    assert config.samples_per_copy == pytest.approx(3_200)


@pytest.mark.parametrize(
    ("backend", "episodes", "expected"),
    [
        ("native", 20, 20),
        ("native", 100, 25),
        ("sync", 20, 7),
        ("sync", 60, 8),
        ("sync", 1, 1),
        ("async", 8, 8),
    ],
)
def test_an_evaluation_opens_few_environments_that_share_its_episodes(
    backend: str, episodes: int, expected: int
) -> None:
    config = load_config(None, [f"evaluation.episodes={episodes}"])
    assert resolve(config, replace(VECTOR, backend=backend), cores=2).evaluation.num_envs == expected
    few = resolve(config, replace(VECTOR, backend=backend), cores=2, most_lanes=1).evaluation
    assert few.num_envs == 1  # each takes a large part of the memory
    given = load_config(None, ["evaluation.num_envs=3"])
    assert resolve(given, replace(VECTOR, backend=backend), cores=2).evaluation.num_envs == 3
