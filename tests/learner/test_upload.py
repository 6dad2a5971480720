"""Staged uploads: the code for a GPU on the CPU, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from qfleet_streams import Buffer, SimulatedDevice

from learner.batch import Batch, to_batch
from learner.config import NetworkSpec
from learner.upload import StagedUpload
from replay_service.messages import Minibatch

CPU = torch.device("cpu")
VECTOR = NetworkSpec((4,), "float32", None, 2, stack=1)
IMAGES = image_spec((3, 36, 36), 3, stack=3)


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
    batch = to_batch(minibatch, 1, CPU)
    minibatch.reward[0] = 77.0
    assert batch.r_t[0] == 77.0


@pytest.mark.parametrize("seed", range(60))
def test_each_update_reads_its_own_minibatch_in_whatever_order_a_device_works(
    seed: int, random_minibatch: Callable[..., Minibatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's buffers are filled again at once, and the device may be any number of updates behind."""
    device = SimulatedDevice(seed)
    device.install(monkeypatch)
    monkeypatch.setattr("learner.upload.batch_of", lambda buffers, _: buffers)
    upload = StagedUpload(VECTOR.stack, torch.device("cuda"))
    given, read = list[np.ndarray](), list[np.ndarray]()

    def update(reward: Buffer) -> None:
        """Reads a minibatch in two pieces, between which other streams may run."""
        found = np.empty_like(reward.values)
        read.append(found)
        for part in (slice(None, 4), slice(4, None)):
            device.computing.add(partial(lambda part: np.copyto(found[part], reward.values[part]), part))

    for number in range(12):
        minibatch = random_minibatch(VECTOR, 8, seed=number)
        given.append(minibatch.reward.copy())
        buffers: Any
        buffers, held = upload(minibatch)
        minibatch.reward.fill(np.nan)
        np.testing.assert_array_equal(held.reward, given[-1])
        update(buffers["reward"])
        device.work()
    device.finish()
    np.testing.assert_array_equal(read, given)
