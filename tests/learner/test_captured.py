"""A recorded update equals the one that it was made of, with new inputs, rates, noise and fractions.

No CUDA is needed: torch's tracer records the operations of the update, with every Python value as a constant,
and replays them on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from learner.batch import to_batch
from learner.captured import WARM_UP_UPDATES
from learner.config import LearnerConfig, NetworkSpec
from learner.skipped_updates import SkippedUpdate
from learner.update import UpdateStep
from replay_service.messages import Minibatch

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)

IMAGES = image_spec((8, 8), 3)

FALLING = {"learning_rate": 1e-2, "learning_rate_end": 1e-4, "learning_rate_decay_updates": 8}
CASES: dict[str, tuple[NetworkSpec, LearnerConfig]] = {
    "mlp": (VECTOR, LearnerConfig(hidden_sizes=(16,), double=True, target_update_updates=3, **FALLING)),
    "masks, sgd": (VECTOR, LearnerConfig(hidden_sizes=(16,), optimizer="sgd", **FALLING)),
    "adamw, polyak": (
        VECTOR,
        LearnerConfig(hidden_sizes=(16,), optimizer="adamw", weight_decay=0.1, target_polyak=0.1, **FALLING),
    ),
    "noisy c51, dueling": (
        VECTOR,
        LearnerConfig(head="c51", noisy=True, dueling=True, hidden_sizes=(16,), target_update_updates=2),
    ),
    "quantiles, munchausen": (VECTOR, LearnerConfig(head="qr", munchausen=True, hidden_sizes=(16,))),
    "implicit quantiles": (VECTOR, LearnerConfig(head="iqn", hidden_sizes=(16,), target_update_updates=2)),
    "images": (IMAGES, LearnerConfig(network="minatar_cnn", hidden_sizes=(16,), max_grad_norm=0.1)),
    "spectral norm": (
        IMAGES,
        LearnerConfig(network="impala_cnn", impala_width=1, spectral_norm=True, hidden_sizes=(16,)),
    ),
}


class Recorder:
    """Records as a CUDA graph does, but that the tracer runs what it records: its effects are taken back."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        update = run.__self__  # type: ignore[attr-defined]
        step: UpdateStep = update._run.__self__
        state = step.state()
        rate_steps = step._optimizer._steps.clone()

        def traced() -> Tensor:
            run()
            result: Tensor = update._outputs
            return result

        with torch.no_grad():
            graph = make_fx(traced)()
        step.restore(state)
        step._optimizer._steps.copy_(rate_steps)
        outputs = update._outputs

        def replay() -> None:
            with torch.no_grad():
                outputs.copy_(graph())

        return replay


def pairs(
    case: str, minibatches: list[Minibatch]
) -> Iterator[tuple[np.ndarray | SkippedUpdate, np.ndarray | SkippedUpdate, UpdateStep, UpdateStep]]:
    """What a recording step and a plain one make of each minibatch."""
    spec, config = CASES[case]
    recorder = Recorder()
    recorded = UpdateStep(spec, replace(config, capture=True), seed=0, queues=True, record=recorder)
    plain = UpdateStep(spec, config, seed=0, queues=True)
    for minibatch in minibatches:
        given, expected = (
            step.finish(step.start(to_batch(minibatch, spec.stack, step.device)))
            for step in (recorded, plain)
        )
        yield given, expected, recorded, plain
    assert recorder.recorded == 1


def masked(minibatch: Minibatch) -> Minibatch:
    """The minibatch with a mask of its own that allows the first action and some others."""
    mask = np.random.default_rng(minibatch.index).random((8, 2, 3)) < 0.5
    mask[..., 0] = True
    windows = {**minibatch.windows, "action_mask": mask}
    return replace(minibatch, windows=windows, action=np.zeros(8, np.int32))


@pytest.mark.parametrize("case", CASES)
def test_recorded_updates_learn_what_others_learn(
    case: str, random_minibatch: Callable[..., Minibatch]
) -> None:
    minibatches = [random_minibatch(CASES[case][0], 8, seed=seed) for seed in range(WARM_UP_UPDATES + 9)]
    if case == "masks, sgd":
        minibatches = [masked(minibatch) for minibatch in minibatches]
    found = None
    for given, expected, recorded, plain in pairs(case, minibatches):
        assert isinstance(given, np.ndarray)
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
        found = recorded, plain
    assert found is not None
    states = [step.state().tensors for step in found]
    for name, tensor in states[1].items():
        np.testing.assert_allclose(states[0][name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
    metrics = [vars(step.take_metrics()) for step in found]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-5)


def test_a_minibatch_that_is_not_finite_is_left_out_of_a_recorded_update_too(
    random_minibatch: Callable[..., Minibatch],
) -> None:
    minibatches = [random_minibatch(VECTOR, 8, seed=seed) for seed in range(8)]
    bad = WARM_UP_UPDATES + 2
    minibatches[bad] = replace(minibatches[bad], reward=np.full(8, np.nan, np.float32))
    for number, (given, expected, recorded, plain) in enumerate(pairs("mlp", minibatches)):
        assert isinstance(given, SkippedUpdate) == isinstance(expected, SkippedUpdate) == (number == bad)
        assert recorded.version == plain.version == number + (number < bad)
        np.testing.assert_allclose(recorded.weights(), plain.weights(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [LearnerConfig(), LearnerConfig(capture=True, normalize_observations=True)],
    ids=["not asked for", "normalized"],
)
def test_nothing_is_recorded_where_it_cannot_be(
    config: LearnerConfig, random_minibatch: Callable[..., Minibatch]
) -> None:
    def never(run: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError(run)

    step = UpdateStep(VECTOR, config, seed=0, queues=True, record=never)
    for seed in range(WARM_UP_UPDATES + 2):
        step.finish(step.start(to_batch(random_minibatch(VECTOR, 8, seed=seed), 1, step.device)))
    assert step.version == WARM_UP_UPDATES + 2


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_cuda_graph_learns_what_others_learn(case: str, random_minibatch: Callable[..., Minibatch]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec, config = CASES[case]
    config = replace(config, device="cuda")
    steps = [UpdateStep(spec, replace(config, capture=capture), seed=0) for capture in (True, False)]
    for seed in range(WARM_UP_UPDATES + 9):
        minibatch = random_minibatch(spec, 8, seed=seed)
        given, expected = (
            step.finish(step.start(to_batch(minibatch, spec.stack, step.device))) for step in steps
        )
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
