"""Environments that misbehave: one lane is restarted, nothing crosses the gap, and bugs end the run.

Tests actors/envs/guard.py and actors/envs/guarded_vector.py through EnvActor and make_vector, and the parts
of other modules that follow a restart: shapes and dtypes in actors/envs/validation.py, dropped transitions,
repeated episodes of evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar
from unittest import mock

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv
from qfleet_sinks import ListSink

from actors.config import ActorsConfig, EnvConfig
from actors.core import RolloutReport
from actors.envs.errors import EnvFailed
from actors.envs.guard import restart_seed
from actors.envs.guarded_vector import GuardedVector
from actors.envs.make import lane_seeds, make_vector
from actors.evaluation import Evaluator
from actors.policy import MlpPolicy
from actors.rollout import EnvActor
from replay_service.block import TransitionBlock

LENGTH = 4
RUN = np.random.SeedSequence(7)
# What EnvActor seeds its lanes with, see EnvActor.reset.
SEEDS = lane_seeds(np.random.SeedSequence(7, spawn_key=(0,)), 3).tolist()


class Faulty(gym.Env[Any, int]):
    """Episodes of LENGTH steps showing [identity, episode, step], reward 1; bad in its at-th step if its
    first seed is one of `bad`.
    """

    observation_space: Any = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, bad: tuple[int, ...] = (), how: str = "raise", at: int = 10) -> None:
        self.bad, self.how, self.left = bad, how, at
        self.first_seed: int | None = None
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if self.first_seed is None or (seed is not None and options is None):
            self.first_seed, self.episode = seed, -1
        self.episode += 1
        self.t = 0
        return self.look(), {}

    def look(self) -> Any:
        assert self.first_seed is not None
        # 24 bits are what float32 holds exactly.
        return np.array([self.first_seed % 2**24, self.episode, self.t], np.float32)

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        observation, reward, ended = self.look(), 1.0, self.t == LENGTH
        self.left -= 1
        if self.left < 0 and self.first_seed in self.bad:
            match self.how:
                case "raise":
                    raise RuntimeError("the simulator has crashed")
                case "exit":
                    os._exit(3)
                case "nan":
                    observation[1] = np.nan
                case "huge":
                    observation = np.array([1e300, 0, 0])
                case "shape":
                    observation = np.zeros(2, np.float32)
                case "dtype":
                    observation = np.zeros(3, np.complex64)
                case "nothing":
                    observation = None
                case "reward":
                    reward = float("inf")
                case "no reward":
                    reward = None  # type: ignore[assignment]
        return observation, reward, ended, False, {}


class Numbered(Faulty):
    """The same with a state number, which leaves its range."""

    observation_space = spaces.Discrete(LENGTH + 1, start=3)

    def look(self) -> Any:
        return 3 + self.t

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        _, reward, ended, _, _ = super().step(action)
        bad = self.left < 0 and self.first_seed in self.bad
        return (2 if bad else self.look()), reward, ended, False, {}


class Composed(Numbered):
    """The same within a Dict."""

    observation_space = spaces.Dict({"a": spaces.MultiDiscrete([9, 9]), "b": spaces.Discrete(5, start=3)})

    def look(self) -> Any:
        return {"a": np.array([self.t, 0]), "b": 3 + self.t}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        _, reward, ended, _, _ = super().step(action)
        observation = self.look()
        if self.left < 0 and self.first_seed in self.bad:
            observation["a"] = np.array([0, -1])
        return observation, reward, ended, False, {}


def config(name: str = "Faulty", backend: str = "sync", stack: int = 1, **kwargs: Any) -> EnvConfig:
    return EnvConfig(f"{__name__}:{name}", kwargs=kwargs, backend=backend, stack=stack)  # type: ignore[arg-type]


def act(
    env: EnvConfig, *, n_step: int = 1, chunks: tuple[int, ...] = (7, 6, 11, 8), inputs: int = 3
) -> tuple[list[RolloutReport], list[TransitionBlock]]:
    sink = ListSink()
    actor = EnvActor(
        env,
        ActorsConfig(envs_per_actor=3, n_step=n_step, discount=1.0),
        policy=MlpPolicy([inputs, 2]),
        sink=sink,
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=RUN,
    )
    try:
        return [actor.rollout(steps, 0, None, 0) for steps in chunks], sink.blocks
    finally:
        actor.close()


def policy() -> MlpPolicy:
    made = MlpPolicy([3, 2])
    made.load(np.zeros(made.num_weights, np.float32))
    return made


def transitions_of(blocks: list[TransitionBlock]) -> list[tuple[float, ...]]:
    """(identity, episode, step, identity, episode, step after it, reward, end) of every transition."""
    transitions: list[tuple[float, ...]] = []
    for block in blocks:
        frames = block.frames["observation"]
        for obs, after, reward, end in zip(
            block.obs_frame, block.next_frame, block.reward, block.end, strict=True
        ):
            transitions.append((*frames[obs].tolist(), *frames[after].tolist(), float(reward), int(end)))
    return sorted(transitions)


def expected_transitions(lives: list[tuple[int, int]], n_step: int, steps: int) -> list[tuple[float, ...]]:
    """By a plain loop: lives are (seed, steps before it broke); the last one lasts to the end of the data.

    Every end and every break takes one more vector step, in which the next episode begins.
    """
    transitions: list[tuple[float, ...]] = []
    for number, (seed, at) in enumerate(lives):
        breaks = number < len(lives) - 1
        length = at if breaks else steps
        taken = vector = episode = 0
        while True:
            run = 0
            while run < LENGTH and taken < length and vector < steps:
                run, taken, vector = run + 1, taken + 1, vector + 1
            for t in range(run):
                m = min(n_step, LENGTH - t)
                ends = run == LENGTH and t + m == LENGTH
                # Unless it ends the episode, the frame after it must have been acted on.
                known = t + m < run or (t + m == run and (breaks or vector < steps))
                if ends or known:
                    seed24 = float(seed % 2**24)
                    transitions.append((seed24, episode, t, seed24, episode, t + m, float(m), int(ends)))
            vector += 1  # an autoreset, or the step that broke
            if run < LENGTH:
                break
            episode += 1
        steps -= vector
    return transitions


HOW = ("raise", "nan", "huge", "shape", "dtype", "nothing", "reward", "no reward")


@pytest.mark.parametrize(
    ("how", "backend"), [*((how, "sync") for how in HOW), *((how, "async") for how in HOW[:4:2])]
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_one_lane_is_restarted_and_nothing_crosses_the_gap(how: str, backend: str) -> None:
    n_step = 3
    reports, blocks = act(config(backend=backend, bad=(SEEDS[1],), how=how), n_step=n_step)
    (restart,) = [each for report in reports for each in report.env_restarts]
    assert (restart.cause, restart.lane) == ("raise" if how == "raise" else "invalid", 1)
    assert ("RuntimeError: the simulator has crashed" in restart.description) == (how == "raise")
    lives = [(SEEDS[1], 10), (restart_seed(SEEDS[1], 1), 99)]
    steps = sum((7, 6, 11, 8))
    expected = [
        transition
        for lane in ([(SEEDS[0], 99)], lives, [(SEEDS[2], 99)])
        for transition in expected_transitions(lane, n_step, steps)
    ]
    assert transitions_of(blocks) == sorted(expected)
    # Neither was the broken episode reported.
    returns = [value for report in reports for value in report.episode_returns]
    assert set(returns) == {float(LENGTH)}
    # Every fifth vector step is an autoreset; the broken lane made 10 steps in 13, and 16 in the other 19.
    assert sum(report.env_steps for report in reports) == 26 + (10 + 16) + 26


@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize("at", [1, 4, 5, 11, 12])
def test_a_break_anywhere(at: int, n_step: int) -> None:
    # Breaks also where an episode has just begun, and right before a chunk's end.
    reports, blocks = act(config(bad=(SEEDS[0], SEEDS[2]), at=at), n_step=n_step)
    assert [each.lane for report in reports for each in report.env_restarts] == [0, 2]
    expected: list[tuple[float, ...]] = []
    for lane, seed in enumerate(SEEDS):
        lives = [(seed, 99)] if lane == 1 else [(seed, at), (restart_seed(seed, 1), 99)]
        expected += expected_transitions(lives, n_step, 32)
    assert transitions_of(blocks) == sorted(expected)


def test_it_is_the_same_each_time() -> None:
    first, second = (act(config(bad=(SEEDS[1],), stack=3), n_step=2, inputs=9)[1] for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.frames["observation"], b.frames["observation"])
        assert np.array_equal(a.first_frame, b.first_frame)
        # No stack reaches over the gap either.
        frames = a.frames["observation"]
        assert np.array_equal(frames[a.first_frame, :2], frames[a.obs_frame, :2])


def test_seeds_of_restarts_are_all_new() -> None:
    seeds = {restart_seed(seed, count) for seed in SEEDS for count in range(1, 50)}
    assert len(seeds | set(SEEDS)) == 3 + 3 * 49
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_what_fails_again_at_once_ends_with_its_traceback(backend: str) -> None:
    again = (SEEDS[1], restart_seed(SEEDS[1], 1))
    with pytest.raises(EnvFailed, match=r"(?s)^Traceback.*RuntimeError: the simulator has crashed") as error:
        act(config(backend=backend, bad=again, at=2))
    assert "This is 3 steps after a restart of environment 1." in str(error.value)


def test_what_fails_now_and_then_goes_on() -> None:
    often = (SEEDS[1], restart_seed(SEEDS[1], 1), restart_seed(SEEDS[1], 2))
    reports, _ = act(config(bad=often, at=6))
    assert [each.lane for report in reports for each in report.env_restarts] == [1, 1, 1]


class BadStart(Faulty):
    """Fails in its first reset, whatever its seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        raise RuntimeError("no license")


def test_a_reset_that_never_works_ends_with_its_traceback() -> None:
    with pytest.raises(EnvFailed, match="RuntimeError: no license"):
        act(EnvConfig(f"{__name__}:BadStart", action_mask=False))


@pytest.mark.parametrize("name", ["Numbered", "Composed"])
def test_numbers_out_of_range(name: str) -> None:
    env = config(name, bad=(SEEDS[2],), how="")
    stepper = make_vector(env, 3)
    stepper.reset(np.array(SEEDS))
    steps = [stepper.step(np.zeros(3, np.int64)) for _ in range(20)]
    (restart,) = stepper.vector.take_restarts()
    assert (restart.cause, restart.lane) == ("invalid", 2)
    assert "outside of" in restart.description
    (broken,) = [step for step in steps if step.broken is not None]
    assert broken.broken is not None
    assert broken.broken.tolist() == broken.fake.tolist() == broken.starts.tolist() == [False, False, True]


class Crashing(CartPoleVectorEnv):
    """A native vector environment; fails once, as its class says."""

    left = 20
    made = 0
    how = "raise"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        type(self).made += 1

    def step(self, action: Any) -> Any:
        type(self).left -= 1
        result = super().step(action)
        if type(self).left == 0 and self.how == "raise":
            raise RuntimeError("the native code has crashed")
        if type(self).left == 0:
            result[0][2, 0] = np.nan
        return result


@pytest.fixture
def crashing() -> Iterator[type[Crashing]]:
    class Fresh(Crashing):
        pass

    spec = gym.spec("CartPole-v1")
    with mock.patch.object(spec, "vector_entry_point", Fresh):
        yield Fresh


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_native_vector_is_restarted_as_a_whole(crashing: type[Crashing], how: str) -> None:
    crashing.how = how
    stepper = make_vector(EnvConfig("CartPole-v1"), 4)
    stepper.reset(np.arange(4))
    steps = [stepper.step(np.zeros(4, np.int64)) for _ in range(30)]
    assert crashing.made == 2
    (restart,) = stepper.vector.take_restarts()
    assert (restart.cause, restart.lane) == ("raise" if how == "raise" else "invalid", None)
    assert [step.broken is not None for step in steps].index(True) == 19
    broken = steps[19]
    assert broken.fake.all()
    assert broken.starts.all()
    assert np.isfinite(broken.frames).all()
    assert not np.array_equal(broken.frames, make_vector(EnvConfig("CartPole-v1"), 4).reset(np.arange(4)))


def test_worker_processes_that_die_are_replaced_and_none_is_left() -> None:
    before = set(psutil.Process().children(recursive=True))
    reports, blocks = act(config(backend="async", bad=(SEEDS[0],), how="exit"))
    (restart,) = [each for report in reports for each in report.env_restarts]
    assert (restart.cause, restart.lane) == ("raise", None)
    assert "worker process 0 ended with exit status 3" in restart.description
    assert blocks
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not [process for process in alive if "resource_tracker" not in " ".join(process.cmdline())]


class Exits(Faulty):
    """Its process ends in the first step."""

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        os._exit(3)


def test_the_exit_status_of_a_dead_worker_is_always_known() -> None:
    # A worker closes its pipe some time before its exit status can be read.
    for _ in range(20):
        vector = GuardedVector(lambda: AsyncVectorEnv([Exits]), "list", name="Exits")
        vector.reset(np.zeros(1, np.int64))
        vector.begin(np.zeros(1, np.int64))
        vector.finish(np.zeros(1, np.bool_))
        (restart,) = vector.take_restarts()
        assert restart.description.endswith("worker process 0 ended with exit status 3")
        vector.env.close()


class Informative(Faulty):
    """With action masks in its infos, and lives in those of resets, steps or both."""

    def __init__(self, lives_in: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lives_in = lives_in

    def info(self, call: str) -> dict[str, Any]:
        mask = {"action_mask": np.array([self.t % 2 == 0, True])}
        return mask | ({"lives": LENGTH - self.t} if call in self.lives_in else {})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed, options=options)[0], self.info("reset")

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return *super().step(action)[:-1], self.info("step")


@pytest.mark.parametrize("lives_in", [("reset", "step"), ("reset",), ("step",)])
def test_a_lane_restarted_for_its_numbers_has_the_masks_and_lives_of_its_reset(lives_in: Any) -> None:
    informative = config("Informative", lives_in=lives_in, bad=(SEEDS[1],), how="nan", at=2)
    stepper = make_vector(replace(informative, action_mask=True), 3)
    stepper.reset(np.array(SEEDS))
    steps = []
    for _ in range(4):
        step = stepper.step(np.ones(3, np.int64))
        steps.append((step.frames["action_mask"][:, 0].tolist(), step.life_lost.tolist()))
    lost = "step" in lives_in
    first = lost and "reset" in lives_in
    assert steps == [
        ([False] * 3, [first] * 3),
        ([True] * 3, [lost] * 3),
        ([False, True, False], [lost, False, lost]),  # lane 1 is restarted
        ([True, False, True], [lost, first, lost]),
    ]


ODD_INFOS: dict[str, list[Any]] = {
    "winner": [None, 1, "nobody"],
    "legal": [np.arange(2), np.arange(5), [3]],
    "s": [{"a": 1}, 2.5, {"a": {"b": None}}],
    "board": [[[1, 2], [3]], np.array([[1, 2], [3, 4]]), [np.arange(2), np.arange(3)]],
    "nodes": [2**70, 1, -(2**70)],
    "lives": [3, None, {"left": 2}],
    "action_mask": [np.ones(2), np.ones(5), {"up": True}],
}


class OddInfo(Faulty):
    """Each entry of its info changes its type from lane to lane and step to step; some infos are no dicts."""

    def info(self) -> Any:
        assert self.first_seed is not None
        if self.t % 5 == 4:
            return [None, (), "nothing"][(self.first_seed + self.t) % 3]
        return {key: values[(self.first_seed + self.t) % 3] for key, values in ODD_INFOS.items()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed, options=options)[0], self.info()

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return *super().step(action)[:-1], self.info()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_info_that_nobody_reads_may_be_anything(backend: str) -> None:
    env = replace(config("OddInfo", backend=backend), action_mask=False)
    reports, blocks = act(env)
    assert not [restart for report in reports for restart in report.env_restarts]
    assert transitions_of(blocks) == sorted(
        transition for seed in SEEDS for transition in expected_transitions([(seed, 99)], 1, 32)
    )


class StaysOpen(Faulty):
    """Its close() raises."""

    closed: ClassVar[list[int]] = []

    def close(self) -> None:
        self.closed.append(1)
        raise OSError("the port is busy")


def test_every_lane_is_closed_where_one_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    StaysOpen.closed.clear()
    stepper = make_vector(config("StaysOpen"), 3)
    stepper.reset(np.arange(3))
    stepper.close()
    assert len(StaysOpen.closed) == 3
    assert caplog.text.count("raised OSError: the port is busy") == 3


def test_an_evaluation_plays_further_episodes_for_broken_ones() -> None:
    domain = lane_seeds(np.random.SeedSequence(3, spawn_key=(5,)), 12).tolist()
    env = config(bad=(domain[1], domain[4]), at=2)
    report = Evaluator(env, seed=3, max_lanes=4).evaluate(policy(), version=0, seed_domain=5, episodes=6)
    assert report.returns == (float(LENGTH),) * 6
    assert report.lengths == (LENGTH,) * 6
    assert [(each.cause, each.lane) for each in report.env_restarts] == [("raise", 1), ("raise", 0)]


def test_an_evaluation_without_whole_episodes_ends() -> None:
    class Never(Faulty):
        def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            raise RuntimeError("never")

    with mock.patch(f"{__name__}.Faulty", Never), pytest.raises(EnvFailed, match="RuntimeError: never"):
        Evaluator(config(), seed=0).evaluate(policy(), version=0, seed_domain=0, episodes=2)
