"""Passes in bfloat16 and compiled ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.skipped_updates import SkippedUpdate
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from replay_service.messages import Minibatch

CPU = torch.device("cpu")
VECTOR = NetworkSpec((4,), "float32", None, 2, stack=1)
IMAGES = NetworkSpec((3, 36, 36), "uint8", None, 3, stack=3)
SMALL = LearnerConfig(hidden_sizes=(16,), batch_size=8)
CASES = {
    "mlp": (VECTOR, SMALL),
    "noisy c51": (VECTOR, replace(SMALL, head="c51", noisy=True, double=True)),
    "images": (IMAGES, LearnerConfig(batch_size=4)),
}


@pytest.mark.parametrize("case", ["mlp", "noisy c51", "images"])
def test_bfloat16_learns_nearly_the_same_with_float32_weights(
    case: str, random_minibatch: Callable[..., Minibatch]
) -> None:
    spec, config = CASES[case]
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
    spec, config = CASES["noisy c51"]

    def no_compiler(*_: object, **__: object) -> Any:
        def fails(*_: object) -> Any:
            raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no C++ compiler"), None)

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    sources = [list_source([random_minibatch(spec, 8, seed=seed) for seed in range(3)]) for _ in range(2)]
    learner = Learner(replace(config, compile=True), spec, sources[0], seed=0, threads=1)
    report, weights = learner.learn(3)
    (note,) = report.notes
    assert note.kind == "warning"
    assert note.text.startswith("learner.compile is true, but torch.compile failed")
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
print(*step.take_notes()[0], sep=": ")
"""
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("warning: learner.compile is true, but torch.compile failed")


def test_a_plain_mlp_is_not_compiled() -> None:
    step = UpdateStep(VECTOR, LearnerConfig(hidden_sizes=(8,), compile=True), seed=0)
    assert "changes nothing" in step.take_notes()[0].text


@pytest.mark.slow
@pytest.mark.parametrize("case", ["noisy c51", "images"])
def test_compiled_passes_learn_the_same(case: str, random_minibatch: Callable[..., Minibatch]) -> None:
    spec, config = CASES[case]
    steps = [UpdateStep(spec, replace(config, compile=compile), seed=0) for compile in (False, True)]
    (note,) = steps[1].take_notes()
    if note.kind == "warning":
        pytest.skip(note.text)
    for seed in range(3):
        batch = to_batch(random_minibatch(spec, config.batch_size, seed=seed), spec.stack, CPU)
        np.testing.assert_allclose(steps[0](batch), steps[1](batch), rtol=1e-4, atol=1e-5)
