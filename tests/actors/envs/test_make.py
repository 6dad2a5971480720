"""Which environments work, with which backend, and what the others' errors say. Tests actors/envs/make.py.

Tests actors/envs/errors.py too: EnvError is what a wrong environment raises.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec as Registration

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.errors import EnvError
from actors.envs.make import inspect, lane_seeds, make_vector, probe


class SpacesEnv(gym.Env[Any, Any]):
    """Any spaces; observations are samples, episodes never end."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module `my_envs` with a factory `make`."""
    made = ModuleType("my_envs")
    made.make = SpacesEnv  # type: ignore[attr-defined]
    made.not_callable = 3  # type: ignore[attr-defined]
    made.make_text = lambda: "an environment"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_envs", made)
    return made


def test_cartpole_is_native() -> None:
    assert probe(EnvConfig("CartPole-v1")) == EnvSpec(
        (4,), "<f4", None, 2, 1, "native", "NextStep", 500, 475.0
    )


def test_an_environment_without_vector_form_is_stepped_lane_by_lane() -> None:
    assert probe(EnvConfig("Acrobot-v1", stack=4)) == EnvSpec(
        (6,), "<f4", None, 3, 4, "sync", "NextStep", 500, -100.0
    )


def test_discrete_observations_are_states() -> None:
    spec = probe(EnvConfig("FrozenLake-v1", max_episode_steps=7))
    assert spec == EnvSpec((), "<i8", 16, 4, 1, "sync", "NextStep", 7, 0.7)


def test_continuous_actions_are_refused_with_the_cure() -> None:
    message = (
        "Pendulum-v1 has continuous actions Box(-2.0, 2.0, (1,), float32); "
        "set env.discretize=5 to act with 5 bins a dimension"
    )
    with pytest.raises(EnvError) as raised:
        probe(EnvConfig("Pendulum-v1"))
    assert str(raised.value) == message
    assert probe(EnvConfig("Pendulum-v1", discretize=5)).num_actions == 5


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(0, 255, (8, 9, 3), np.uint8), (8, 9, 3), "|u1"),
        (spaces.Box(-1, 1, (2,), np.float64), (2,), "<f4"),
        (spaces.Box(-5, 5, (2, 2), np.int32), (2, 2), "<f4"),
        (spaces.Box(-1, 1, (), np.float32), (), "<f4"),
        (spaces.Box(0, 1, (3, 8, 9), np.float16), (3, 8, 9), "<f4"),
        (spaces.MultiBinary(3), (3,), "|b1"),
        (spaces.MultiBinary([2, 3]), (2, 3), "|b1"),
        (spaces.MultiDiscrete([2, 3], start=[-1, 4]), (5,), "|b1"),
        (spaces.Dict({"only": spaces.Box(0, 255, (8, 9), np.uint8)}), (8, 9), "|u1"),
    ],
)
def test_observation_spaces(
    module: ModuleType, space: spaces.Space[Any], shape: tuple[int, ...], dtype: str
) -> None:
    stepper = make_vector(EnvConfig("my_envs:make", kwargs={"observation_space": space}), 2)
    assert (stepper.spec.observation_shape, stepper.spec.observation_dtype) == (shape, dtype)
    frames = stepper.reset(np.array([1, 2]))
    assert (frames.shape, frames.dtype) == ((2, *shape), np.dtype(dtype))
    space.seed(1)
    expected = np.asarray(spaces.flatten(space, space.sample()), dtype=dtype)
    # Both lanes share the space and its random stream; the first lane's sample is drawn after seeding with 1.
    assert np.array_equal(frames[0].ravel(), expected.ravel())
    assert stepper.step(np.zeros(2, np.int64)).frames.dtype == np.dtype(dtype)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_observation_of_several_arrays_is_a_record(module: ModuleType, backend: Any) -> None:
    space = spaces.Dict(
        {
            "where": spaces.Tuple([spaces.Discrete(3, start=5), spaces.Box(-1, 1, (2,), np.float64)]),
            "camera": spaces.Box(0, 255, (4, 5), np.uint8),
            "height": spaces.Box(-1, 1, ()),
        }
    )
    config = EnvConfig("my_envs:make", kwargs={"observation_space": space}, backend=backend)
    stepper = make_vector(config, 2)
    shapes = {field.name: (field.dtype, field.shape) for field in stepper.spec.parts}
    assert shapes == {
        "camera": ("|u1", (4, 5)),
        "height": ("<f4", ()),
        "where.0": ("|b1", (3,)),
        "where.1": ("<f4", (2,)),
    }
    frames = stepper.reset(np.array([1, 1]))
    assert frames.dtype == stepper.spec.frame_dtype
    space.seed(1)
    sample = space.sample()
    assert frames[0]["observation.camera"].tolist() == sample["camera"].tolist()
    assert frames[0]["observation.height"] == sample["height"]
    assert frames[0]["observation.where.0"].tolist() == [sample["where"][0] == 5 + i for i in range(3)]
    assert frames[0]["observation.where.1"].tolist() == sample["where"][1].astype(np.float32).tolist()
    if backend == "async":
        assert (frames[1] == frames[0]).all()
    stepper.close()


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Sequence(spaces.Discrete(2)), "Sequence"),
        (spaces.Graph(spaces.Discrete(2), None), "Graph"),
        (spaces.Text(5), "Text"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1, (2,))]), "OneOf"),
        (spaces.Dict({"a": spaces.Tuple([spaces.Text(3)]), "b": spaces.Discrete(2)}), "'a.0': Text"),
        (spaces.Dict({"a": spaces.Box(0, 1, (0,))}), "'a': Box"),
    ],
)
def test_observations_without_a_fixed_size_are_refused(
    module: ModuleType, space: spaces.Space[Any], named: str
) -> None:
    with pytest.raises(EnvError, match=rf"my_envs:make has observations.*{named}.* have no fixed size; "):
        probe(EnvConfig("my_envs:make", kwargs={"observation_space": space}))


def test_observations_whose_dotted_names_collide_are_refused(module: ModuleType) -> None:
    inner = spaces.Dict({"b": spaces.Discrete(2)})
    space = spaces.Dict({"a": inner, "a.b": spaces.Discrete(2)})
    with pytest.raises(EnvError, match=r"two arrays named 'a\.b'; rename a key"):
        probe(EnvConfig("my_envs:make", kwargs={"observation_space": space}))


def test_multi_discrete_actions_are_flattened(module: ModuleType) -> None:
    kwargs = {"observation_space": spaces.Discrete(4, start=2), "action_space": spaces.MultiDiscrete([2, 3])}
    stepper = make_vector(EnvConfig("my_envs:make", kwargs=kwargs), 2)
    assert (stepper.spec.num_actions, stepper.spec.num_states) == (6, 4)
    assert set(stepper.reset(np.array([1, 2])).tolist()) <= {0, 1, 2, 3}
    for action in range(6):
        stepper.step(np.array([action, 5 - action]))


def test_a_factory_gets_a_time_limit(module: ModuleType) -> None:
    kwargs = {"observation_space": spaces.Discrete(4)}
    stepper = make_vector(EnvConfig("my_envs:make", kwargs=kwargs, max_episode_steps=3), 2)
    assert stepper.spec.max_episode_steps == 3
    stepper.reset(np.array([1, 2]))
    truncated = [stepper.step(np.zeros(2, np.int64)).truncated.all() for _ in range(3)]
    assert truncated == [False, False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig("CartPol-v1"), r"no environment 'CartPol-v1': did you mean CartPole-v1"),
        (EnvConfig("Cart Pole-v1"), "no environment 'Cart Pole-v1'"),
        (EnvConfig("CartPole-v7"), r"did you mean CartPole-v[01] or CartPole-v[01]"),
        (EnvConfig("Qwxzk/Qwxzk-v0"), r"is the package that registers it installed\?.*package:id"),
        (EnvConfig("no_such_package:make"), "No module named 'no_such_package'.*PYTHONPATH"),
        (EnvConfig("json:nothing"), "json neither registers an environment 'nothing' nor has a callable"),
        (EnvConfig("my_envs:not_callable"), "nor has a callable"),
        (
            EnvConfig("my_envs:make_text"),
            "my_envs:make_text returned a str; a factory returns a gymnasium.Env",
        ),
        (EnvConfig("my_envs:make", kwargs={"color": 1}), r"env.kwargs {'color': 1}.*'color'"),
        (EnvConfig("CartPole-v1", kwargs={"color": 1}), r"env.kwargs {'color': 1}.*'color'"),
        (EnvConfig("Acrobot-v1", kwargs={"color": 1}), r"env.kwargs {'color': 1}.*'color'"),
        (
            EnvConfig("Acrobot-v1", backend="native"),
            "Acrobot-v1 has no native vector environment; set env.backend=sync",
        ),
        (EnvConfig("Ant-v2"), "Ant-v2 cannot be imported: .*Install what is missing"),
    ],
)
@pytest.mark.usefixtures("module")
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_errors_name_the_cure(config: EnvConfig, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        probe(config)


def test_a_bug_inside_an_environment_keeps_its_traceback(registered: dict[str, Registration]) -> None:
    def entry_point() -> gym.Env[Any, Any]:
        return len(3)  # type: ignore[arg-type, return-value]

    gym.register("Buggy-v0", entry_point)
    with pytest.raises(TypeError, match="has no len"):
        probe(EnvConfig("Buggy-v0"))


def test_a_missing_dependency_is_named(registered: dict[str, Registration]) -> None:
    def entry_point() -> gym.Env[Any, Any]:
        raise gym.error.DependencyNotInstalled("Box2D is not installed, run `pip install box2d`")

    gym.register("NeedsBox2d-v0", entry_point)
    with pytest.raises(EnvError, match="NeedsBox2d-v0 cannot be imported: Box2D is not installed"):
        probe(EnvConfig("NeedsBox2d-v0"))


def test_an_id_that_a_module_registers(module: ModuleType, registered: dict[str, Registration]) -> None:
    gym.register("Mine-v0", lambda: SpacesEnv(spaces.Discrete(3)), max_episode_steps=9)
    module.Mine = None  # type: ignore[attr-defined]
    spec = probe(EnvConfig("my_envs:Mine-v0"))
    assert (spec.num_states, spec.max_episode_steps) == (3, 9)


def test_bugs_in_an_environment_keep_their_own_error(module: ModuleType) -> None:
    def broken() -> gym.Env[Any, Any]:
        raise ZeroDivisionError("a bug")

    module.broken = broken  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        probe(EnvConfig("my_envs:broken"))


def test_what_fails_in_its_first_reset_is_closed(module: ModuleType) -> None:
    class NoStart(SpacesEnv):
        closed = 0

        def reset(self, **_: Any) -> Any:
            raise ZeroDivisionError("a bug")

        def close(self) -> None:
            type(self).closed += 1

    module.NoStart = lambda: NoStart(spaces.Discrete(3))  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match="a bug"):
        probe(EnvConfig("my_envs:NoStart"))
    assert NoStart.closed == 2  # and its replacement


def test_atari_is_native_and_gives_single_frames() -> None:
    pytest.importorskip("ale_py")
    spec = probe(EnvConfig("ALE/Pong-v5"))
    assert spec == EnvSpec(
        (84, 84),
        "|u1",
        None,
        6,
        4,
        "native",
        "NextStep",
        27_000,
        None,
        pixels=("observation",),
        image_layouts={"observation": "HW"},
    )
    assert probe(EnvConfig("ALE/Pong-v5", kwargs={"stack_num": 4})).observation_shape == (4, 84, 84)


# Seeds


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_seeds_decide_the_first_frames(backend: Literal["native", "sync"]) -> None:
    first, second = (make_vector(EnvConfig("CartPole-v1", backend=backend), 3) for _ in range(2))
    seeds = lane_seeds(np.random.SeedSequence(5), 3)
    assert np.array_equal(first.reset(seeds).copy(), second.reset(seeds))
    assert len({tuple(frame) for frame in first.reset(seeds)}) == 3
    assert not np.array_equal(first.reset(seeds).copy(), first.reset(seeds + 1))


def test_lane_seeds_extend_and_fit_31_bits() -> None:
    seeds = lane_seeds(np.random.SeedSequence(1), 1000)
    assert np.array_equal(lane_seeds(np.random.SeedSequence(1), 10), seeds[:10])
    assert 0 <= seeds.min() <= seeds.max() < 2**31
    assert len(set(seeds.tolist())) == 1000


def test_processes_give_what_lanes_in_this_one_give() -> None:
    """The async backend is the sync one with a process for each lane."""
    seeds, actions = np.array([4, 5]), np.array([0, 2])
    streams = []
    backends: tuple[Literal["sync", "async"], ...] = ("sync", "async")
    for backend in backends:
        stepper = make_vector(EnvConfig("Acrobot-v1", backend=backend, max_episode_steps=3), 2)
        assert stepper.spec.backend == backend
        frames = [stepper.reset(seeds).copy()] + [stepper.step(actions).frames.copy() for _ in range(5)]
        streams.append(np.array(frames))
        stepper.close()
    assert np.array_equal(*streams)


@pytest.mark.parametrize(
    ("space", "pixels"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), True),
        (spaces.Box(0.0, 255.0, (8, 8, 3), np.float32), True),
        (spaces.Box(0, 255, (128,), np.int32), True),
        (spaces.Box(0, 3, (8,), np.uint8), False),
        (spaces.Box(0, 1, (8, 8, 3), np.uint8), False),
        (spaces.Box(np.zeros(2, np.uint8), np.array([255, 7], np.uint8), dtype=np.uint8), False),
        (spaces.Box(-255.0, 255.0, (4,)), False),
    ],
)
def test_bounds_tell_pixels_from_codes_and_counters(
    module: ModuleType, space: spaces.Space[Any], pixels: bool
) -> None:
    spec = probe(EnvConfig("my_envs:make", {"observation_space": space}))
    assert spec.pixels == (("observation",) if pixels else ())
    both = spaces.Dict({"a": space, "b": spaces.Box(0, 1, (2,))})
    assert probe(EnvConfig("my_envs:make", {"observation_space": both})).pixels == (("a",) if pixels else ())


def test_the_layout_of_images_is_found_or_set(module: ModuleType) -> None:
    tall = {"observation_space": spaces.Box(0, 255, (7, 7, 20), np.uint8)}
    assert probe(EnvConfig("my_envs:make", tall)).image_layouts == {"observation": "HWC"}
    cube = {"observation_space": spaces.Box(0, 255, (9, 9, 9), np.uint8)}
    assert probe(EnvConfig("my_envs:make", cube)).image_layouts == {"observation": "unknown"}
    told = probe(EnvConfig("my_envs:make", cube, image_layout="CHW"))
    assert told.image_layouts == {"observation": "CHW"}


def test_multibinary_actions_are_flattened(module: ModuleType) -> None:
    kwargs = {"observation_space": spaces.Box(-1, 1, (2,)), "action_space": spaces.MultiBinary([2, 2])}
    assert probe(EnvConfig("my_envs:make", kwargs)).num_actions == 16
    large = kwargs | {"action_space": spaces.MultiBinary(13)}
    with pytest.raises(EnvError, match=r"= 8192 flat actions; at most 4096 work"):
        probe(EnvConfig("my_envs:make", large))


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("Pong-v4", "ALE/Pong-v5"),
        ("ale_py:BreakoutDeterministic-v0", "ALE/Breakout-v5"),
        ("SpaceInvaders-ramNoFrameskip-v4", "ALE/SpaceInvaders-v5"),
    ],
)
def test_old_ids_of_atari_point_to_todays(old: str, today: str) -> None:
    pytest.importorskip("ale_py")
    with pytest.raises(EnvError, match=rf"{old} gives raw color frames .*take {today}"):
        probe(EnvConfig(old))


@pytest.mark.parametrize(("package", "wrapper"), [("gym", "GymV21CompatibilityV0"), ("dm_env", "shimmy")])
def test_environments_of_other_packages_point_to_shimmy(
    module: ModuleType, package: str, wrapper: str
) -> None:
    other = type("Other", (), {"__module__": f"{package}.core"})
    module.other = other  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match=rf"my_envs:other returned a Other of .*{wrapper}"):
        probe(EnvConfig("my_envs:other"))


FILE = """
import gymnasium as gym
from gymnasium import spaces

class Ones(gym.Env):
    observation_space = spaces.Box(0, 1, (3,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.observation_space.sample() * 0, 1.0, True, False, {}
"""


def test_an_environment_in_a_file_is_found_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ones.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    probed = inspect(EnvConfig("./ones.py:Ones"))
    assert probed.spec.observation_shape == (3,)
    assert probed.config.id == f"{tmp_path.resolve()}/ones.py:Ones"
    monkeypatch.chdir("/")
    assert probe(probed.config) == probed.spec
    with pytest.raises(EnvError, match=r"env.id names the file /nowhere.py, which does not exist"):
        probe(EnvConfig("/nowhere.py:Ones"))


def test_a_class_stands_for_its_import_path() -> None:
    config = EnvConfig(CartPoleEnv)  # type: ignore[arg-type]
    assert config.id == "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
    assert probe(config).observation_shape == (4,)
    with pytest.raises(ValueError, match=r"<function .* has no name .*stands at the top of a module"):
        EnvConfig(lambda: gym.make("CartPole-v1"))  # type: ignore[arg-type]


def test_a_class_of_an_interactive_session_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ModuleType("__main__")
    exec("class Own: ...", vars(session))
    monkeypatch.setitem(sys.modules, "__main__", session)
    for file in ({}, {"__file__": "<stdin>"}):
        vars(session).update(file)
        with pytest.raises(ValueError, match=r"of an interactive session.* as file\.py:Own"):
            EnvConfig(vars(session)["Own"])
