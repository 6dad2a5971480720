"""Staged uploads, queued updates, bfloat16 and torch.compile: the GPU's code on the CPU, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import Batch, to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError
from learner.health import SkippedBatch
from learner.loop import Learner
from learner.torch_policy import TorchPolicy
from learner.update import SkippedUpdate, UpdateStep
from learner.upload import StagedUpload, make_upload
from replay_service.messages import Minibatch

CPU = torch.device("cpu")
VECTOR = NetworkSpec((4,), "float32", None, 2, stack=1)
IMAGES = NetworkSpec((3, 36, 36), "uint8", None, 3, stack=3)
CONFIGS = {
    "mlp": (VECTOR, LearnerConfig(hidden_sizes=(16,), batch_size=8)),
    "noisy c51": (
        VECTOR,
        LearnerConfig(hidden_sizes=(16,), batch_size=8, head="c51", noisy=True, double=True),
    ),
    "sgd": (VECTOR, LearnerConfig(hidden_sizes=(16,), batch_size=8, optimizer="sgd", target_polyak=0.1)),
    "images": (IMAGES, LearnerConfig(batch_size=4)),
}


@pytest.fixture(params=[CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result: torch.device = request.param
    return result


def tensors_of(batch: Batch) -> Iterator[torch.Tensor]:
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor):
            yield value


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_a_staged_batch_outlives_its_minibatch(
    spec: NetworkSpec, device: torch.device, random_minibatch: Callable[..., Minibatch]
) -> None:
    upload = StagedUpload(spec.stack, device)
    reused = random_minibatch(spec, 8)
    earlier: list[tuple[Any, Batch, Minibatch]] = []
    for seed in range(5):
        fresh = replace(random_minibatch(spec, 8, seed=seed), keys=np.arange(8) + seed)
        np.copyto(reused.windows["observation"], fresh.windows["observation"])
        for name in ("action", "reward", "discount", "weight", "policy_version"):
            np.copyto(getattr(reused, name), getattr(fresh, name))
        given = replace(reused, index=seed, keys=fresh.keys)
        earlier.append((upload(given), to_batch(fresh, spec.stack, CPU), fresh))
        # The sampler fills its buffers again; this and the one before stay what they were.
        reused.windows["observation"].fill(0)
        reused.reward.fill(np.nan)
        for (batch, held), expected, original in earlier[-2:]:
            for tensor, other in zip(tensors_of(batch), tensors_of(expected), strict=True):
                assert tensor.device.type == device.type
                assert torch.equal(tensor.cpu(), other)
            np.testing.assert_array_equal(held.windows["observation"], original.windows["observation"])
            np.testing.assert_array_equal(held.reward, original.reward)
            np.testing.assert_array_equal(held.keys, original.keys)
            np.testing.assert_array_equal(held.policy_version, original.policy_version)


def test_what_is_not_staged_is_not_copied(random_minibatch: Callable[..., Minibatch]) -> None:
    minibatch = random_minibatch(VECTOR, 8)
    batch, held = make_upload(1, CPU, staged=False)(minibatch)
    minibatch.reward[0] = 77.0
    assert batch.r_t[0] == 77.0
    assert held is minibatch


def queueing(learner: Learner, config: LearnerConfig, spec: NetworkSpec) -> Learner:
    """The learner with the path that a GPU takes."""
    learner._step = UpdateStep(spec, config, seed=0, queues=True)
    learner._upload = make_upload(spec.stack, learner._step.device, staged=True)
    return learner


@pytest.mark.parametrize("case", CONFIGS)
def test_queued_updates_equal_the_straightforward_loop(
    case: str, random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    spec, config = CONFIGS[case]
    config = replace(config, target_update_updates=5)
    minibatches = [random_minibatch(spec, config.batch_size, seed=seed) for seed in range(7)]
    sources = [list_source(minibatches) for _ in range(2)]
    plain = Learner(config, spec, sources[0], seed=0, threads=1)
    queued = queueing(Learner(config, spec, sources[1], seed=0, threads=1), config, spec)
    for updates in (1, 2, 10):
        (report, weights), (other, others) = plain.learn(updates), queued.learn(updates)
        np.testing.assert_array_equal(weights, others)
        assert (report.version, report.updates, report.samples) == (
            other.version,
            other.updates,
            other.samples,
        )
        assert report.loss_mean == other.loss_mean
        assert report.policy_lag == other.policy_lag
    # TD errors come back in the order of their minibatches, each under its own index.
    assert [index for index, _ in sources[0].given_back] == [index for index, _ in sources[1].given_back]
    for (_, one), (_, two) in zip(sources[0].given_back, sources[1].given_back, strict=True):
        np.testing.assert_array_equal(one, two)


class Watched:
    """A source that notes what happened in which order."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.happened = inner, []

    def next_minibatch(self, update: int) -> Minibatch:
        self.happened.append(("draw", update))
        minibatch: Minibatch = self.inner.next_minibatch(update)
        return replace(minibatch, index=len(self.inner.asked) - 1)

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        self.happened.append(("give back", index))

    def statuses(self) -> tuple[()]:
        return ()


def test_td_errors_come_one_update_late_and_none_is_left_behind(
    random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    spec, config = CONFIGS["mlp"]
    source = Watched(list_source([random_minibatch(spec, 8, seed=seed) for seed in range(3)]))
    queueing(Learner(config, spec, source, seed=0, threads=1), config, spec).learn(3)
    assert source.happened == [
        ("draw", 0),
        ("draw", 1),
        ("give back", 0),
        ("draw", 2),
        ("give back", 1),
        ("give back", 2),
    ]


def test_an_update_that_is_not_finite_changes_nothing_though_another_is_queued_behind_it(
    random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    spec, config = CONFIGS["mlp"]
    good = [random_minibatch(spec, 8, seed=seed) for seed in range(4)]
    bad = replace(random_minibatch(spec, 8, seed=9), reward=np.full(8, np.nan, np.float32), keys=np.arange(8))
    bad = replace(bad, transitions_per_shard=np.array([8]))
    skipped: list[SkippedBatch] = []
    source = list_source([good[0], bad, *good[1:]])
    learner = Learner(config, spec, source, seed=0, threads=1, record_skipped=skipped.append)
    report, weights = queueing(learner, config, spec).learn(4)
    plain = Learner(config, spec, list_source(good), seed=0, threads=1)
    np.testing.assert_array_equal(weights, plain.learn(4)[1])
    assert (report.version, report.updates, report.skipped_updates, report.samples) == (4, 4, 1, 40)
    (record,) = skipped
    assert (record.keys, record.version) == (tuple(range(8)), 1)
    assert record.arrays["reward"].not_finite == 8
    assert [index for index, _ in source.given_back] == [0, 1, 2, 3]


def test_too_many_skipped_updates_end_a_queue_too(
    random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    spec, config = CONFIGS["mlp"]
    config = replace(config, max_skipped_updates=3)
    bad = replace(random_minibatch(spec, 8), reward=np.full(8, np.inf, np.float32))
    learner = queueing(Learner(config, spec, list_source([bad]), seed=0, threads=1), config, spec)
    with pytest.raises(DivergedError, match="3 updates were skipped"):
        learner.learn(5)


def test_updates_with_running_statistics_are_not_queued() -> None:
    config = LearnerConfig(hidden_sizes=(16,), normalize_observations=True)
    assert not UpdateStep(VECTOR, config, seed=0, queues=True).queues
    assert not UpdateStep(VECTOR, LearnerConfig(), seed=0).queues  # nothing to gain on a CPU


@pytest.mark.parametrize("case", ["mlp", "noisy c51", "images"])
def test_bfloat16_learns_nearly_the_same_with_float32_weights(
    case: str, random_minibatch: Callable[..., Minibatch]
) -> None:
    spec, config = CONFIGS[case]
    half = replace(config, precision="bfloat16")
    steps = [UpdateStep(spec, one, seed=0) for one in (config, half)]
    minibatch = random_minibatch(spec, config.batch_size)
    errors = [step(to_batch(minibatch, spec.stack, CPU)) for step in steps]
    assert not any(isinstance(error, SkippedUpdate) for error in errors)
    assert errors[1].dtype == np.float32
    assert not np.array_equal(errors[0], errors[1])
    np.testing.assert_allclose(errors[0], errors[1], atol=0.05)
    state = steps[1].state()
    assert all(array.dtype == np.float32 for name, array in state.tensors.items() if name != "noise")
    # Actors stay with float32, whatever the learner computes in.
    values = []
    for one in (config, half):
        policy = TorchPolicy(spec, one, threads=1)
        policy.load(state.tensors["online"])
        window = minibatch.windows["observation"]
        values.append(policy.q_values(window[:, 0] if spec.stack == 1 else window[:, : spec.stack]))
    np.testing.assert_array_equal(*values)


def test_without_a_compiler_the_run_says_so_and_goes_on(
    random_minibatch: Callable[..., Minibatch], list_source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, config = CONFIGS["noisy c51"]

    def no_compiler(*_: object, **__: object) -> Any:
        def fails(*_: object) -> Any:
            raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no C++ compiler"), None)

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    sources = [list_source([random_minibatch(spec, 8, seed=seed) for seed in range(3)]) for _ in range(2)]
    learner = Learner(replace(config, compile=True), spec, sources[0], seed=0, threads=1)
    report, weights = learner.learn(3)
    (note,) = report.notes
    assert note.startswith("warning: learner.compile is true, but torch.compile failed")
    assert learner.learn(1)[0].notes == ()
    np.testing.assert_array_equal(weights, Learner(config, spec, sources[1], seed=0, threads=1).learn(3)[1])


@pytest.mark.slow
def test_a_machine_without_a_compiler_really_falls_back() -> None:
    code = """
import torch
from learner.config import LearnerConfig, NetworkSpec
from learner.update import UpdateStep
config = LearnerConfig(hidden_sizes=(8,), batch_size=4, dueling=True, compile=True)
step = UpdateStep(NetworkSpec((4,), "float32", None, 2, stack=1), config, seed=0)
print(step.take_notes()[0])
"""
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("warning: learner.compile is true, but torch.compile failed")


def test_a_plain_mlp_is_not_compiled() -> None:
    step = UpdateStep(VECTOR, LearnerConfig(hidden_sizes=(8,), compile=True), seed=0)
    assert "changes nothing" in step.take_notes()[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["noisy c51", "images"])
def test_compiled_passes_learn_the_same(case: str, random_minibatch: Callable[..., Minibatch]) -> None:
    spec, config = CONFIGS[case]
    steps = [UpdateStep(spec, replace(config, compile=compile), seed=0) for compile in (False, True)]
    (note,) = steps[1].take_notes()
    if note.startswith("warning"):
        pytest.skip(note)
    for seed in range(3):
        batch = to_batch(random_minibatch(spec, config.batch_size, seed=seed), spec.stack, CPU)
        np.testing.assert_allclose(steps[0](batch), steps[1](batch), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"compile": True}], ids=str)
def test_a_gpu_learns_what_a_cpu_learns(
    case: str, options: dict[str, Any], random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec, config = CONFIGS[case]
    minibatches = [random_minibatch(spec, config.batch_size, seed=seed) for seed in range(5)]
    sources = [list_source(minibatches) for _ in range(2)]
    Learner(replace(config, device="cpu"), spec, sources[0], seed=0, threads=1).learn(10)
    gpu = replace(config, device="cuda", **options)
    Learner(gpu, spec, sources[1], seed=0, threads=1).learn(10)
    tolerance = 0.05 if "precision" in options else 5e-3
    for (one, expected), (two, given) in zip(sources[0].given_back, sources[1].given_back, strict=True):
        assert one == two
        np.testing.assert_allclose(given, expected, atol=tolerance)
