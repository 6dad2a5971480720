"""Atari on ALE's vector environment, against one emulator stepped by a plain loop."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from qfleet_sinks import ListSink

from actors.config import ActorsConfig, EnvConfig
from actors.envs.errors import EnvError
from actors.envs.make import lane_seeds, make_vector, probe
from actors.rollout import EnvActor
from replay_service.block import TERMINATED, TRUNCATED

ale_py = pytest.importorskip("ale_py")

SKIP = 4
# Frames as they are: what OpenCV's resizing makes of them is tested apart.
UNRESIZED = {"img_height": 210, "img_width": 160}


class PlainGame:
    """One emulator with the preprocessing of Mnih et al. 2015, written down step by step."""

    def __init__(self, game: str, seed: int, sticky: float, limit: int) -> None:
        self.env = gym.make(
            f"ALE/{game}-v5", frameskip=1, repeat_action_probability=sticky, max_num_frames_per_episode=None
        )
        self.ale = self.env.unwrapped.ale  # type: ignore[attr-defined]
        self.actions = self.ale.getMinimalActionSet()
        self.limit = limit
        self.ale.setInt("random_seed", seed)
        rom = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in game).lstrip("_")
        self.ale.loadROM(ale_py.roms.get_rom_path(rom))

    def reset(self, start_frames: int) -> np.ndarray:
        """FIRE where the game has it, then no-ops: start_frames in all."""
        self.ale.reset_game()
        for frame in range(start_frames):
            fire = frame == 0 and ale_py.Action.FIRE in self.actions
            self.ale.act(ale_py.Action.FIRE if fire else ale_py.Action.NOOP)
        self.steps = 0
        self.screens = [self.ale.getScreenGrayscale()]
        self.lives = self.ale.lives()
        return self.screens[0]

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Frame, raw reward, terminated, truncated, a life was lost."""
        reward, shown = 0.0, []
        for _ in range(SKIP):
            reward += self.ale.act(self.actions[action])
            if self.ale.game_over():
                break
            shown.append(self.ale.getScreenGrayscale())
        if len(shown) == SKIP:
            self.screens = shown[-2:]
        self.steps += 1
        terminated = self.ale.game_over()
        lost, self.lives = self.ale.lives() < self.lives, self.ale.lives()
        truncated = not terminated and self.steps == self.limit
        return np.maximum.reduce(self.screens), reward, terminated, truncated, lost


@pytest.mark.parametrize(
    ("game", "sticky", "limit", "steps", "happens"),
    [
        ("Breakout", 0.0, 160, 260, {"terminated", "truncated", "lost", "scored"}),
        ("MsPacman", 0.25, 240, 270, {"truncated", "lost", "scored"}),
        ("Pong", 0.25, 75, 90, {"truncated", "scored"}),
    ],
)
def test_frame_by_frame(game: str, sticky: float, limit: int, steps: int, happens: set[str]) -> None:
    """Start frames, frames, rewards, ends, lost lives and true last frames of truncated episodes."""
    num_lanes = 3
    kwargs = {"repeat_action_probability": sticky, **UNRESIZED}
    made: list[Any] = []
    make_vec = gym.make_vec

    def kept_vec(*args: Any, **options: Any) -> Any:
        made.append(make_vec(*args, **options))
        return made[-1]

    with mock.patch("gymnasium.make_vec", kept_vec):
        stepper = make_vector(EnvConfig(f"ALE/{game}-v5", kwargs=kwargs, max_episode_steps=limit), num_lanes)
    (vector,) = made
    seeds = lane_seeds(np.random.SeedSequence(7), num_lanes)
    plain = [PlainGame(game, int(seed), sticky, limit) for seed in seeds]
    start_frames: list[int] = []

    def begin(lanes: np.ndarray, frames: np.ndarray, info: dict[str, np.ndarray]) -> None:
        for lane in lanes:
            start_frames.append(int(info["episode_frame_number"][lane]))
            assert np.array_equal(frames[lane], plain[lane].reset(start_frames[-1]))

    infos: list[dict[str, np.ndarray]] = []
    reset, step = vector.unwrapped.ale.reset, vector.unwrapped.ale.recv

    def kept(result: tuple[Any, ...]) -> tuple[Any, ...]:
        infos.append(result[-1])
        return result

    interface = mock.Mock(wraps=vector.unwrapped.ale)
    interface.reset = lambda *args: kept(reset(*args))
    interface.recv = lambda: kept(step())
    vector.unwrapped.ale = interface

    begin(np.arange(num_lanes), stepper.reset(seeds).copy(), infos[-1])
    rng = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(steps):
        actions = rng.integers(stepper.spec.num_actions, size=num_lanes)
        took = stepper.step(actions)
        for lane in (~took.fake).nonzero()[0]:
            frame, reward, terminated, truncated, lost = plain[lane].step(int(actions[lane]))
            assert took.reward[lane] == reward
            assert (took.terminated[lane], took.truncated[lane]) == (terminated, truncated)
            assert took.life_lost[lane] == lost
            final = {int(k): took.final_frames[i] for i, k in enumerate(took.final_lanes)}
            assert (lane in final) == truncated
            assert np.array_equal(final.get(int(lane), took.frames[lane]), frame)
            seen.update(
                terminated=int(terminated), truncated=int(truncated), lost=int(lost and not terminated)
            )
            seen.update(scored=int(reward != 0))
        begin(took.starts.nonzero()[0], took.frames, infos[-1])
    stepper.close()
    assert {name for name, count in seen.items() if count} == happens
    assert 0 <= min(start_frames) < max(start_frames) <= 29


def test_frames_are_resized_by_area() -> None:
    """84 x 84 pixels, each the mean of the screen below it; OpenCV rounds once more on its way."""
    config = EnvConfig("ALE/Breakout-v5")
    small = make_vector(config, 1)
    large = make_vector(EnvConfig("ALE/Breakout-v5", kwargs=UNRESIZED), 1)
    seeds = np.array([5])
    rows, columns = (area_weights(size, 84) for size in (210, 160))
    frames = [(small.reset(seeds).copy(), large.reset(seeds).copy())]
    rng = np.random.default_rng(1)
    for _ in range(60):
        action = rng.integers(4, size=1)
        frames.append((small.step(action).frames.copy(), large.step(action).frames.copy()))
    for resized, whole in frames:
        assert np.abs(resized[0] - rows @ whole[0].astype(float) @ columns.T).max() <= 1.0


def area_weights(size: int, pixels: int) -> np.ndarray:
    """[pixels, size]: how much of each source pixel lies below each target pixel, summing to 1."""
    edges = np.linspace(0, size, pixels + 1)
    low, high = edges[:-1, None], edges[1:, None]
    source = np.arange(size)[None, :]
    return np.clip(np.minimum(high, source + 1) - np.maximum(low, source), 0, None) / (size / pixels)


class PixelPolicy:
    """Q-values that follow exactly from the pixels of a stack, however many lanes there are."""

    num_actions = 4

    def load(self, flat_weights: np.ndarray) -> None: ...

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        sums = observations.reshape(len(observations), -1).astype(np.int64) @ np.arange(
            1, observations[0].size + 1
        )
        return np.stack([(sums // 7**k % 11) for k in range(self.num_actions)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("n_step", "life_loss", "overlap"),
    [(1, True, False), (3, True, False), (3, False, False), (3, True, True)],
)
def test_transitions_of_an_actor(n_step: int, life_loss: bool, overlap: bool) -> None:
    """Stacks, n-step sums of clipped rewards, discounts and ends, over lost lives and truncations."""
    gamma, stack, num_lanes, limit, steps = 0.5, 4, 2, 60, 160
    # No no-ops: every episode begins with one FIRE.
    kwargs = {"repeat_action_probability": 0.25, "noop_max": 1, **UNRESIZED}
    env = EnvConfig("ALE/Breakout-v5", kwargs=kwargs, max_episode_steps=limit)
    config = ActorsConfig(
        envs_per_actor=num_lanes,
        n_step=n_step,
        discount=gamma,
        epsilon_start=0.0,
        epsilon_end=0.0,
        reward_clip=0.5,
        life_loss_ends_episode=life_loss,
    )
    seed, sink, policy = np.random.SeedSequence(3), ListSink(), PixelPolicy()
    actor = EnvActor(
        env,
        config,
        policy=policy,
        sink=sink,
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=seed,
        overlap=overlap,
    )
    for _ in range(steps // 40):
        actor.rollout(40, 1, np.zeros(1, np.float32), 0)
    actor.close()
    pushed: Counter[Any] = Counter()
    for block in sink.blocks:
        images = [hash(frame.tobytes()) for frame in block.frames["observation"]]
        for r in range(block.num_transitions):
            first = int(block.first_frame[r])
            windows = [
                tuple(images[max(first, i)] for i in range(last - stack + 1, last + 1))
                for last in (int(block.obs_frame[r]), int(block.next_frame[r]))
            ]
            values = (block.action[r], block.reward[r], block.discount[r], block.end[r])
            pushed[*windows, *(value.item() for value in values)] += 1

    expected: Counter[Any] = Counter()
    lives_lost = 0
    for lane_seed in lane_seeds(np.random.SeedSequence(seed.entropy, spawn_key=(0,)), num_lanes):
        game = PlainGame("Breakout", int(lane_seed), 0.25, limit)
        left = steps
        while left > 0:
            frames, played = [game.reset(start_frames=1)], []
            ended = False
            while not ended and left > 0:
                window = np.stack([frames[max(0, i)] for i in range(len(frames) - stack, len(frames))])
                action = int(policy.q_values(window[None]).argmax())
                frame, reward, terminated, truncated, lost = game.step(action)
                frames.append(frame)
                lives_lost += lost and not terminated
                played.append((action, reward, terminated or (life_loss and lost), truncated))
                ended = terminated or truncated
                left -= 1
            left -= terminated  # the autoreset took a step
            images = [hash(frame.tobytes()) for frame in frames]
            expected += plain_transitions(images, played, n_step, stack, gamma)
    missing = expected - pushed
    assert not pushed - expected
    # What the actor had not pushed yet when it was closed.
    assert missing.total() <= num_lanes * (n_step + 1)
    assert pushed.total() > steps
    assert lives_lost > 2
    assert {end & TERMINATED for *_, end in pushed} == ({0, TERMINATED} if life_loss else {0})
    assert any(end == TRUNCATED and discount == gamma**n_step for *_, discount, end in pushed)


def plain_transitions(
    images: list[int], played: list[Any], n_step: int, stack: int, gamma: float
) -> Counter[Any]:
    transitions: Counter[Any] = Counter()
    for i in range(len(played)):
        after, total = i, 0.0
        while after < len(played) and after < i + n_step:
            total += gamma ** (after - i) * max(-0.5, min(0.5, played[after][1]))
            after += 1
            if played[after - 1][2] or played[after - 1][3]:
                break
        _, _, terminated, truncated = played[after - 1]
        if not (terminated or truncated) and after < i + n_step:
            continue  # the data ended
        windows = [tuple(images[max(0, j)] for j in range(last - stack + 1, last + 1)) for last in (i, after)]
        end = TERMINATED * terminated | TRUNCATED * truncated
        transitions[*windows, played[i][0], total, 0.0 if terminated else gamma ** (after - i), end] += 1
    return transitions


def test_limits_of_an_episode() -> None:
    assert probe(EnvConfig("ALE/Pong-v5")).max_episode_steps == 27_000
    assert probe(EnvConfig("ALE/Pong-v5", max_episode_steps=10)).max_episode_steps == 10
    frames = {"max_num_frames_per_episode": 402}
    assert probe(EnvConfig("ALE/Pong-v5", kwargs=frames)).max_episode_steps == 101
    assert probe(EnvConfig("ALE/Pong-v5", kwargs={**frames, "frameskip": 1})).max_episode_steps == 402


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig("ALE/Pong-v5", kwargs={"reward_clipping": True}), r"set actors.reward_clip=1, which"),
        (EnvConfig("ALE/Pong-v5", kwargs={"episodic_life": True}), "set actors.life_loss_ends_episode=true"),
        (
            EnvConfig("ALE/Pong-v5", kwargs={"autoreset_mode": "SameStep"}),
            "is SameStep; leave it out",
        ),
        (
            EnvConfig("ALE/Pong-v5", kwargs={"max_num_frames_per_episode": "4"}),
            "env.kwargs.max_num_frames_per_episode is '4'",
        ),
        (EnvConfig("ALE/Pong-v5", backend="sync"), "which is another game"),
        (EnvConfig("ALE/Pong-v5", kwargs={"continuous": True}), "which is another game"),
        (EnvConfig("ALE/Pongg-v5"), "did you mean ALE/Pong-v5"),
    ],
)
def test_errors_name_the_cure(config: EnvConfig, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        probe(config)


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("MinAtar/Asterix-v1", "minatar.gym", "minatar")],
)
def test_a_missing_package_is_an_extra(env_id: str, module: str, extra: str) -> None:
    with (
        mock.patch.dict("sys.modules", {module: None}),
        pytest.raises(EnvError, match=rf"Install it: pip install 'qfleet\[{extra}\]'"),
    ):
        probe(EnvConfig(env_id))


def test_raw_rewards_reach_reports() -> None:
    """A brick of the upper rows is worth more than 1: ALE would clip it by default."""
    stepper = make_vector(EnvConfig("ALE/MsPacman-v5"), 2)
    stepper.reset(np.array([1, 2]))
    rewards = [stepper.step(np.array([2, 3])).reward.max() for _ in range(80)]
    assert max(rewards) == 10.0


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "MinAtar/Breakout-v1", "CartPole-v1", "Acrobot-v1"])
def test_no_stream_is_ever_repeated(env_id: str) -> None:
    """Each (run seed, actor, lane, incarnation) plays episodes of its own; the same one plays them again."""
    if env_id.startswith("MinAtar/"):
        pytest.importorskip("minatar")

    def lanes(run_seed: int, actor: int, incarnation: int) -> list[int]:
        seed = np.random.SeedSequence(run_seed, spawn_key=(0, actor, incarnation))
        stepper = make_vector(EnvConfig(env_id), 2)
        frames = [stepper.reset(lane_seeds(seed, 2)).copy()]
        actions = np.random.default_rng(0).integers(stepper.spec.num_actions, size=60)
        frames += [stepper.step(np.full(2, action)).frames.copy() for action in actions]
        stepper.close()
        return [hash(np.stack(frames)[:, lane].tobytes()) for lane in range(2)]

    streams = [lanes(*key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len({stream for both in streams for stream in both}) == 8
    assert lanes(0, 0, 1) == streams[1]
