"""One actor's loop: counters, exploration schedule, determinism. Tests actors/rollout.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from qfleet_reports import shard_status
from qfleet_sinks import ListSink

from actors.config import ActorsConfig, EnvConfig, LadderConfig
from actors.core import EnvRestart, RolloutReport
from actors.envs.make import make_vector
from actors.envs.stepper import VectorStepper
from actors.policy import MlpPolicy, TablePolicy
from actors.rollout import EnvActor
from replay_service.block import TRANSITION_FIELDS, TransitionBlock

STATUS = shard_status()


def make_actor(
    config: ActorsConfig,
    env: EnvConfig | None = None,
    *,
    actor: int = 0,
    num_actors: int = 1,
    seed: int = 0,
) -> tuple[EnvActor, ListSink]:
    sink = ListSink(STATUS)
    made = EnvActor(
        env or EnvConfig("CartPole-v1"),
        config,
        policy=MlpPolicy([4, 8, 2]),
        sink=sink,
        actor=actor,
        incarnation=3,
        num_actors=num_actors,
        seed=np.random.SeedSequence(seed),
    )
    return made, sink


def make_table_actor(config: ActorsConfig) -> tuple[EnvActor, ListSink]:
    """On FrozenLake, whose 16 states have 4 actions."""
    sink = ListSink(STATUS)
    made = EnvActor(
        EnvConfig("FrozenLake-v1"),
        config,
        policy=TablePolicy(16, 4),
        sink=sink,
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=np.random.SeedSequence(0),
    )
    return made, sink


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=MlpPolicy([4, 8, 2]).num_weights).astype(np.float32)


def assert_same_blocks(first: list[TransitionBlock], second: list[TransitionBlock]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.env_steps == b.env_steps
        assert np.array_equal(a.frames["observation"], b.frames["observation"])
        for name, _ in TRANSITION_FIELDS:
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_a_report_counts_its_chunk() -> None:
    actor, sink = make_actor(ActorsConfig(envs_per_actor=4, n_step=2, epsilon_start=1.0), actor=5)
    reports = [actor.rollout(100, version, weights(), 0) for version in range(3)]
    assert [report.version for report in reports] == [0, 1, 2]
    assert sum(block.env_steps for block in sink.blocks) == sum(report.env_steps for report in reports)
    for report, block in zip(reports, sink.blocks, strict=True):
        assert (report.actor, report.incarnation, report.statuses) == (5, 3, (STATUS,))
        assert report.transitions_pushed == block.num_transitions
        # Every vector step of an episode's end is followed by a step that only resets.
        assert (
            400 - len(report.episode_returns) - 4 <= report.env_steps <= 400 - len(report.episode_returns) + 4
        )
        assert report.episode_returns == report.episode_lengths  # CartPole rewards each step with 1
        assert set(report.seconds) == {"act", "env", "build", "push", "idle"}
        assert all(seconds >= 0 for seconds in report.seconds.values())
    ended = sum(sum(report.episode_lengths) for report in reports)
    assert 0 < ended <= sum(report.env_steps for report in reports)


def scripted_actor(stepper: VectorStepper) -> EnvActor:
    """One lane, always greedy."""
    with mock.patch("actors.rollout.make_vector", return_value=stepper):
        return EnvActor(
            EnvConfig(),
            ActorsConfig(envs_per_actor=1, epsilon_start=0.0, epsilon_end=0.0),
            policy=MlpPolicy([3, 3]),
            sink=ListSink(STATUS),
            actor=0,
            incarnation=0,
            num_actors=1,
            seed=np.random.SeedSequence(0),
        )


def test_returns_are_those_of_the_episodes(scripted: Callable[..., VectorStepper]) -> None:
    script = [[(1.0, False, False), (2.0, True, False)], [(-5.0, False, True)]]
    for mode in AutoresetMode:
        actor = scripted_actor(scripted([script], mode))
        always_action_0 = np.array([0.0] * 9 + [1.0, 0.0, 0.0], np.float32)
        reports = [actor.rollout(1, 0, always_action_0, 0) for _ in range(6)]
        assert [r for report in reports for r in report.episode_returns] == [3.0, -5.0]
        assert [n for report in reports for n in report.episode_lengths] == [2, 1]


def test_a_report_sums_up_values_actions_and_rewards(scripted: Callable[..., VectorStepper]) -> None:
    script = [[(1.0, False, False), (-4.0, True, False)], [(2.0, False, True)]]
    for mode in AutoresetMode:
        actor = scripted_actor(scripted([script], mode))
        always_action_1 = np.array([0.0] * 9 + [1.0, 5.0, 0.0], np.float32)
        reports = [actor.rollout(1, 0, always_action_1, 0) for _ in range(5)]
        ends = sum(len(report.episode_returns) for report in reports)
        starts = [value for report in reports for value in report.start_values]
        # One at the beginning, one after each end that has been followed by a step.
        assert starts == [5.0] * len(starts)
        assert 2 <= ends <= len(starts) <= ends + 1, mode
        assert sum(np.array([report.action_counts for report in reports])).tolist() == [
            0,
            sum(report.transitions_pushed for report in reports),
            0,
        ]
        # The action, 1, is added to each reward: 2, -3, 3, then 1 for each transition of the endless episode.
        assert max(report.reward_abs_max for report in reports) == 3.0
        transitions = sum(report.transitions_pushed for report in reports)
        assert sum(report.reward_abs_sum for report in reports) == 2.0 + 3.0 + 3.0 + (transitions - 3)
        assert all(report.seconds["idle"] >= 0.0 for report in reports)


def test_acts_at_random_before_the_first_weights() -> None:
    actor, sink = make_actor(ActorsConfig(envs_per_actor=8, epsilon_start=0.0, epsilon_end=0.0))
    report = actor.rollout(500, 0, None, 0)
    assert report.epsilon == 1.0
    assert report.start_values == ()
    (block,) = sink.blocks
    assert report.action_counts == tuple(np.bincount(block.action, minlength=2).tolist())
    mean, tolerance = float(np.mean(block.action)), 5 * 0.5 / block.num_transitions**0.5
    assert abs(mean - 0.5) < tolerance
    # No Q-values are known, so nothing is known to be worth less.
    assert np.array_equal(block.priority, np.ones(block.num_transitions))


def test_what_was_acted_before_the_first_weights_is_drawn_like_any_other() -> None:
    """Nearly all rewards of FrozenLake are 0: as TD errors they would hide what comes first."""
    config = ActorsConfig(envs_per_actor=8, n_step=3)
    actor, sink = make_table_actor(config)
    actor.rollout(300, 0, None, 0)
    assert (sink.blocks[0].reward == 0.0).mean() > 0.9
    assert (sink.blocks[0].priority == 1.0).all()
    actor.rollout(300, 4, np.full(64, 0.5, np.float32), 0)
    (later,) = sink.blocks[1:]
    before = later.policy_version == 0
    # The last steps of the first chunk waited for the rewards and values of the second.
    assert 0 < np.count_nonzero(before) <= 3 * 8
    assert (later.priority[before] == 1.0).all()
    error = np.abs(later.reward + later.discount * np.float32(0.5) - np.float32(0.5))
    assert np.allclose(later.priority[~before], error[~before])


def test_an_actor_that_has_weights_keeps_them_over_a_reset() -> None:
    actor, sink = make_table_actor(ActorsConfig(envs_per_actor=8))
    actor.rollout(10, 1, np.full(64, 0.5, np.float32), 0)
    actor.reset(np.random.SeedSequence(1))
    actor.rollout(10, 1, None, 0)
    assert (sink.blocks[1].priority < 1.0).all()


def test_weights_are_kept_until_new_ones_come() -> None:
    config = ActorsConfig(envs_per_actor=4, epsilon_start=0.0, epsilon_end=0.0)
    kept, kept_sink = make_actor(config)
    given, given_sink = make_actor(config)
    for flat_weights in (weights(), None, None):
        kept.rollout(30, 0, flat_weights, 0)
        given.rollout(30, 0, weights(), 0)
    assert_same_blocks(kept_sink.blocks, given_sink.blocks)
    kept.rollout(30, 0, weights(1), 0)
    given.rollout(30, 0, weights(), 0)
    assert not np.array_equal(kept_sink.blocks[-1].priority, given_sink.blocks[-1].priority)


def test_epsilon_follows_global_steps_and_own_steps_since() -> None:
    config = ActorsConfig(
        envs_per_actor=4, epsilon_start=1.0, epsilon_end=0.0, epsilon_decay_env_steps=10_000
    )
    actor, _ = make_actor(config)
    first = actor.rollout(100, 0, weights(), 2_000)
    assert first.epsilon == pytest.approx(0.8)
    second = actor.rollout(100, 0, None, 2_000)  # the number is old
    assert second.epsilon == pytest.approx(0.8 - first.env_steps / 10_000)
    assert actor.rollout(100, 0, None, 3_000).epsilon == pytest.approx(0.7)


def test_the_ladder_runs_over_all_lanes_of_all_actors() -> None:
    config = ActorsConfig(envs_per_actor=2, epsilon_ladder=LadderConfig(base=0.5, alpha=3.0))
    rungs = [0.5 ** (1 + 3 * i / 5) for i in range(6)]
    for index in range(3):
        actor, _ = make_actor(config, actor=index, num_actors=3)
        for global_env_steps in (0, 10**6):
            report = actor.rollout(1, 0, weights(), global_env_steps)
            assert report.epsilon == pytest.approx(np.mean(rungs[2 * index : 2 * index + 2]))


def test_the_ladder_is_spread_again_over_those_who_are_left() -> None:
    """Actors 0 and 2 of three: 2 takes the second place of two, and the ladder's end."""
    config = ActorsConfig(envs_per_actor=2, epsilon_ladder=LadderConfig(base=0.5, alpha=3.0))
    rungs = [0.5 ** (1 + 3 * i / 3) for i in range(4)]
    actor, _ = make_actor(config, actor=2, num_actors=3)
    actor.set_rank(1, 2)
    assert actor.rollout(1, 0, weights(), 0).epsilon == pytest.approx(np.mean(rungs[2:]))


def run(actor: EnvActor) -> list[RolloutReport]:
    return [actor.rollout(40, version, weights(version), 1_000 * version) for version in range(4)]


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_a_seed_decides_everything(backend: Literal["native", "sync"]) -> None:
    env = EnvConfig("CartPole-v1", backend=backend)
    config = ActorsConfig(envs_per_actor=4, n_step=3, epsilon_decay_env_steps=4_000)
    first, first_sink = make_actor(config, env)
    second, second_sink = make_actor(config, env)
    other, other_sink = make_actor(config, env, seed=1)
    for actor in (first, second, other):
        run(actor)
    assert_same_blocks(first_sink.blocks, second_sink.blocks)
    assert not np.array_equal(
        first_sink.blocks[0].frames["observation"][:10], other_sink.blocks[0].frames["observation"][:10]
    )


def transitions_in_full(blocks: list[TransitionBlock]) -> Counter[tuple[Any, ...]]:
    """Transitions of single frames with these frames, whatever block they came in; without policy_version."""
    transitions: Counter[tuple[Any, ...]] = Counter()
    for block in blocks:
        frames = [frame.tobytes() for frame in block.frames["observation"]]
        names = ("action", "reward", "discount", "one_step_reward", "end", "priority")
        values = zip(*(getattr(block, name).tolist() for name in names), strict=True)
        for kept, obs, following in zip(values, block.obs_frame, block.next_frame, strict=True):
            transitions[*kept, frames[obs], frames[following]] += 1
    return transitions


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_what_is_played_does_not_depend_on_the_chunks(backend: Literal["native", "sync"]) -> None:
    config = ActorsConfig(envs_per_actor=6, n_step=3, epsilon_start=0.3, epsilon_end=0.3)
    played = []
    for chunks in ([90], [1, 2, 30, 57]):
        actor, sink = make_actor(config, EnvConfig("CartPole-v1", backend=backend))
        reports = [actor.rollout(steps, 0, weights(), 0) for steps in chunks]
        reported = [
            [value for report in reports for value in getattr(report, name)]
            for name in ("episode_returns", "episode_lengths", "start_values")
        ]
        played.append(
            (transitions_in_full(sink.blocks), sum(report.env_steps for report in reports), *reported)
        )
    assert played[0] == played[1]
    assert len(played[0][2]) > 5


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_what_is_played_does_not_depend_on_where_time_ends_a_chunk(
    backend: Literal["native", "sync"],
) -> None:
    env = EnvConfig("CartPole-v1", backend=backend)
    config = ActorsConfig(envs_per_actor=3, n_step=3, epsilon_start=0.0, epsilon_end=0.0)
    whole, by_steps = make_actor(config, env)
    hasty, by_time = make_actor(config, env)
    whole.rollout(60, 0, weights(), 0)
    reports = [hasty.rollout(60, 0, weights(), 0, seconds=0.0) for _ in range(60)]
    assert max(report.env_steps for report in reports) == 3
    assert transitions_in_full(by_steps.blocks) == transitions_in_full(by_time.blocks)


class LanewisePolicy:
    """Q-values that do not depend on the other observations of a batch, to the last bit."""

    def load(self, flat_weights: np.ndarray) -> None: ...

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        first, second = observations[:, 0], observations[:, 2]
        return np.stack([first - second, second + first * second], axis=1)


@pytest.mark.parametrize(
    ("backend", "num_lanes", "groups"),
    [("async", 5, [3, 2]), ("async", 17, [6, 6, 5]), ("async", 2, [2]), ("sync", 5, [5])],
)
def test_overlap_changes_no_transition(
    backend: Literal["async", "sync"], num_lanes: int, groups: list[int]
) -> None:
    config = ActorsConfig(envs_per_actor=num_lanes, n_step=3, epsilon_start=0.2, epsilon_end=0.2)
    reported, sinks = [], []
    for overlap in (False, True):
        sinks.append(ListSink(STATUS))
        with mock.patch("actors.rollout.make_vector", wraps=make_vector) as made:
            actor = EnvActor(
                EnvConfig("CartPole-v1", backend=backend),
                config,
                policy=LanewisePolicy(),
                sink=sinks[-1],
                actor=0,
                incarnation=0,
                num_actors=1,
                seed=np.random.SeedSequence(0),
                overlap=overlap,
            )
        lanes_made = [call.args[1] for call in made.call_args_list]
        # Whether a backend can overlap is only known once there are some lanes.
        tried = [] if len(groups) > 1 else [-(-num_lanes // 2)]
        assert lanes_made == ([*tried, *groups] if overlap else [num_lanes])
        reports = [actor.rollout(steps, version, weights(), 0) for version, steps in enumerate((7, 1, 50))]
        reported.append(
            [(report.episode_returns, report.start_values, report.env_steps) for report in reports]
        )
        actor.close()
    assert_same_blocks(sinks[0].blocks, sinks[1].blocks)
    assert reported[0] == reported[1]


def overlapping_actor(num_lanes: int, env_threads: int = 1) -> tuple[EnvActor, list[tuple[int, int]]]:
    """An actor of several groups, and the lanes and threads of each; all report two restarts of their own."""
    groups = []

    def make(env: EnvConfig, lanes: int, threads: int) -> VectorStepper:
        groups.append((lanes, threads))
        stepper = make_vector(env, lanes, threads)
        restarts = EnvRestart("raise", 0, "the first lane"), EnvRestart("raise", None, "all lanes")
        stepper.vector.take_restarts = lambda: restarts  # type: ignore[method-assign]
        return stepper

    with mock.patch("actors.rollout.make_vector", make):
        return make_overlapping(num_lanes, env_threads), groups


def make_overlapping(num_lanes: int, env_threads: int = 1) -> EnvActor:
    """An actor whose lanes have processes of their own."""
    return EnvActor(
        EnvConfig("CartPole-v1", backend="async"),
        ActorsConfig(envs_per_actor=num_lanes),
        policy=LanewisePolicy(),
        sink=ListSink(STATUS),
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=np.random.SeedSequence(0),
        env_threads=env_threads,
        overlap=True,
    )


@pytest.mark.parametrize(("threads", "of_groups"), [(1, [1, 1, 1]), (7, [3, 2, 2]), (16, [6, 5, 5])])
def test_groups_share_the_threads(threads: int, of_groups: list[int]) -> None:
    actor, groups = overlapping_actor(16, threads)
    actor.close()
    assert groups == list(zip([6, 5, 5], of_groups, strict=True))


class CountedSteppers:
    """Stands in for make_vector: lanes of the steppers made and of those closed; the failing one raises."""

    def __init__(self, failing: int | None = None) -> None:
        self.made: list[int] = []
        self.closed: list[int] = []
        self.failing = failing

    def __call__(self, env: EnvConfig, lanes: int, threads: int) -> VectorStepper:
        if len(self.made) == self.failing:
            raise OSError("no more processes")
        stepper = make_vector(env, lanes, threads)
        self.made.append(lanes)
        close = stepper.close

        def counted() -> None:
            self.closed.append(lanes)
            close()

        stepper.close = counted  # type: ignore[method-assign]
        return stepper


def test_groups_that_are_not_used_are_closed() -> None:
    counted = CountedSteppers()
    with mock.patch("actors.rollout.make_vector", counted):
        # Of three lanes in two groups the last has no process, so all three become one group.
        actor = make_overlapping(3)
    assert (counted.made, sorted(counted.closed)) == ([2, 1, 3], [1, 2])
    actor.close()
    assert sorted(counted.closed) == [1, 2, 3]


def test_groups_made_before_one_that_fails_are_closed() -> None:
    counted = CountedSteppers(failing=2)
    with mock.patch("actors.rollout.make_vector", counted), pytest.raises(OSError, match="no more processes"):
        make_overlapping(15)
    assert counted.made == counted.closed == [5, 5]


def test_restarts_in_any_group_are_reported_with_the_actors_own_lanes() -> None:
    actor, _ = overlapping_actor(9)
    report = actor.rollout(1, 0, weights(), 0)
    actor.close()
    assert [restart.lane for restart in report.env_restarts] == [0, None, 5, None]


def test_reset_makes_an_actor_as_new() -> None:
    """A run that goes on after a checkpoint equals one that was resumed from it."""
    config = ActorsConfig(envs_per_actor=4, n_step=3, epsilon_decay_env_steps=4_000)
    uninterrupted, uninterrupted_sink = make_actor(config)
    run(uninterrupted)
    uninterrupted.reset(np.random.SeedSequence(77))
    uninterrupted_sink.blocks.clear()
    resumed, resumed_sink = make_actor(config, seed=77)
    before, after = run(uninterrupted), run(resumed)
    assert_same_blocks(uninterrupted_sink.blocks, resumed_sink.blocks)
    assert [report.episode_returns for report in before] == [report.episode_returns for report in after]
    assert [report.epsilon for report in before] == [report.epsilon for report in after]


def test_the_callers_seed_is_left_as_it_was() -> None:
    seed = np.random.SeedSequence(1)
    actor, _ = make_actor(ActorsConfig(envs_per_actor=1))
    actor.reset(seed)
    assert seed.n_children_spawned == 0


def test_the_number_of_lanes_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"actors.envs_per_actor is not set"):
        make_actor(ActorsConfig())
