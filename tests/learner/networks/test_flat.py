"""The flat network and its passes: by autograd, by hand, in bfloat16 and compiled.

Tests learner/networks/flat_mlp.py, learner/networks/flat_minatar.py and learner/networks/configured.py, too.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec, output_shape
from learner.loop import Learner
from learner.networks.build import Mlp, build_network
from learner.networks.configured import flat_network
from learner.networks.flat import FlatNetwork
from learner.networks.flat_minatar import FlatMinatar
from learner.networks.flat_mlp import FlatMlp
from learner.networks.products import AUTO_MULTIPLICATIONS
from learner.skipped_updates import SkippedUpdate
from learner.torch_policy import TorchPolicy
from learner.torch_private import HAS_ONEDNN, onednn_linear
from learner.update import UpdateStep
from replay_service.messages import Minibatch

CPU = torch.device("cpu")
IMAGES = image_spec((2, 36, 40), 3, stack=2)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)
VECTOR = NetworkSpec((4,), "float32", None, 2, stack=1)
STACKS = image_spec((3, 36, 36), 3, stack=3)
SMALL = LearnerConfig(hidden_sizes=(16,), batch_size=8)
CASES = {
    "mlp": (VECTOR, SMALL),
    "noisy c51": (VECTOR, replace(SMALL, head="c51", noisy=True, double=True)),
    "images": (STACKS, LearnerConfig(batch_size=4)),
}


def test_weights_share_memory_with_the_network() -> None:
    network = Mlp((3, 4, 2))
    before = parameters_to_vector(network.parameters()).detach().clone()
    flat = FlatNetwork(network, CPU)
    torch.testing.assert_close(flat.weights, before, rtol=0, atol=0)
    flat.weights.zero_()
    for parameter in network.parameters():
        assert not parameter.any()


@pytest.mark.parametrize("spec", [IMAGES, TABLE], ids=["images", "table"])
def test_backward_fills_the_vector_afresh_each_time(spec: NetworkSpec) -> None:
    network = build_network(spec, LearnerConfig())
    twin, flat = copy.deepcopy(network), FlatNetwork(network, CPU)
    for seed in (0, 1):
        torch.manual_seed(seed)
        high = 256 if spec is IMAGES else 5
        dtype = torch.uint8 if spec is IMAGES else torch.int64
        observations = torch.randint(high, (6, *spec.observation_shape), dtype=dtype)
        output_gradient = torch.randn(6, 3)
        torch.testing.assert_close(flat.forward(observations), twin(observations).detach())
        flat.backward(output_gradient)
        pieces = torch.autograd.grad(twin(observations), list(twin.parameters()), output_gradient)
        expected = torch.cat([piece.flatten() for piece in pieces])
        assert (flat.gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_evaluating_between_the_passes_changes_no_gradient() -> None:
    for flat in (FlatNetwork(Mlp((3, 4, 2)), CPU), FlatMlp(Mlp((3, 4, 2)), CPU)):
        observations, output_gradient = torch.randn(5, 3), torch.randn(5, 2)
        flat.forward(observations)
        flat.backward(output_gradient)
        expected = flat.gradient.clone()
        flat.forward(observations)
        flat.evaluate(torch.randn(7, 3))
        flat.backward(output_gradient)
        torch.testing.assert_close(flat.gradient, expected, rtol=0, atol=0)


def autograd_gradient(network: nn.Module, observations: Tensor, output_gradient: Tensor) -> Tensor:
    outputs = network(observations)
    gradients = torch.autograd.grad(outputs, list(network.parameters()), output_gradient)
    return torch.cat([gradient.flatten() for gradient in gradients])


def relative_difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


def check_passes(
    flat: FlatMlp, twin: nn.Module, obs_tm1: Tensor, obs_t: Tensor, output_gradient: Tensor
) -> None:
    """Every pass by hand gives what the twin gives by autograd; evaluating changes no gradient."""
    expected = autograd_gradient(twin, obs_tm1, output_gradient)
    torch.testing.assert_close(flat.evaluate(obs_t), twin(obs_t).detach())

    torch.testing.assert_close(flat.forward(obs_tm1), twin(obs_tm1).detach())
    flat.backward(output_gradient)
    assert relative_difference(flat.gradient, expected) < 1e-5

    flat.gradient.fill_(torch.nan)
    outputs_tm1, outputs_t = flat.forward_pair(obs_tm1, obs_t)
    torch.testing.assert_close(outputs_tm1, twin(obs_tm1).detach())
    torch.testing.assert_close(outputs_t, twin(obs_t).detach())
    for pair, both in zip(flat.evaluate_pair(obs_t, obs_tm1), (outputs_t, outputs_tm1), strict=True):
        torch.testing.assert_close(pair, both)
    flat.backward(output_gradient)
    assert relative_difference(flat.gradient, expected) < 1e-5


@pytest.mark.parametrize("sizes", [(4, 128, 128, 2), (6, 9, 3), (5, 16, 16, 16, 4)])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_mlp_passes_by_hand_equal_autograd(sizes: tuple[int, ...], batch_size: int) -> None:
    torch.manual_seed(batch_size)
    network = Mlp(sizes)
    twin, flat = copy.deepcopy(network), FlatMlp(network, CPU)
    for _ in range(2):
        obs_tm1, obs_t = torch.randn(2, batch_size, sizes[0])
        output_gradient = torch.randn(batch_size, sizes[-1])
        check_passes(flat, twin, obs_tm1, obs_t, output_gradient)


@pytest.mark.parametrize("layout", ["HWC", "HW"])
@pytest.mark.parametrize("head", ["q", "qr"])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_minatar_passes_by_hand_equal_autograd(layout: str, head: Any, batch_size: int) -> None:
    torch.manual_seed(batch_size)
    shape = (10, 9, 4) if layout == "HWC" else (3, 10, 9)
    spec = image_spec(shape, 5, stack=1 if layout == "HWC" else 3, layout=layout)
    config = LearnerConfig(network="minatar_cnn", head=head, num_atoms=7)
    flat = flat_network(spec, config, CPU)
    assert isinstance(flat, FlatMinatar)
    twin = copy.deepcopy(flat.module)
    for _ in range(2):
        obs_tm1, obs_t = torch.randint(256, (2, batch_size, *shape), dtype=torch.uint8)
        output_gradient = torch.randn(batch_size, *output_shape(spec, config))
        check_passes(flat, twin, obs_tm1, obs_t, output_gradient)


@pytest.mark.parametrize("products", ["blas", "onednn"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    "config",
    [
        LearnerConfig(network="minatar_cnn"),
        LearnerConfig(network="minatar_cnn", dueling=True, noisy=True),
        LearnerConfig(network="nature_cnn"),
        LearnerConfig(network="impala_cnn", spectral_norm=True),
    ],
    ids=["by hand", "minatar", "nature", "impala"],
)
def test_gradients_are_autograds_by_either_library_and_layout(
    config: LearnerConfig, layout: Any, products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.networks.products.MIN_ONEDNN_MULTIPLICATIONS", 0)
    spec = image_spec((2, 40, 36), 5, stack=2)
    chosen = replace(config, convolution_layout=layout, dense_products=products)
    torch.manual_seed(0)
    flat = flat_network(spec, chosen, CPU)
    # A twin of the same weights, in float64: by neither library, and in no layout that matters.
    twin = copy.deepcopy(flat.module).double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    observations, output_gradient = torch.randint(256, (4, 2, 40, 36)), torch.randn(4, 5)
    expected = autograd_gradient(twin, observations, output_gradient.double())
    monkeypatch.undo()
    flat.forward(observations.to(torch.uint8))
    flat.backward(output_gradient)
    assert relative_difference(flat.gradient.double(), expected) < 1e-4


@pytest.mark.parametrize(
    ("network", "wanted", "expected"),
    [
        ("minatar_cnn", "auto", (False, True)),
        ("minatar_cnn", "channels_last", (True, True)),
        ("minatar_cnn", "channels_first", (False, False)),
        ("nature_cnn", "auto", (True, True)),
        ("nature_cnn", "channels_last", (True, True)),
        ("nature_cnn", "channels_first", (False, False)),
    ],
)
def test_the_setting_decides_the_layout_of_images(
    network: str, wanted: Any, expected: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of MinAtar's passes by hand forward and backward, of others only forward."""
    seen = list[bool]()
    conv2d, conv2d_weight = functional.conv2d, torch.nn.grad.conv2d_weight

    def is_last(images: Tensor) -> bool:
        return images.is_contiguous(memory_format=torch.channels_last)

    def forward(images: Tensor, *rest: Any) -> Tensor:
        seen.append(is_last(images))
        return conv2d(images, *rest)

    def backward(images: Tensor, shape: Any, gradient: Tensor) -> Tensor:
        assert is_last(images) == is_last(gradient)
        seen.append(is_last(images))
        return conv2d_weight(images, shape, gradient)  # type: ignore[no-untyped-call,no-any-return]

    monkeypatch.setattr(functional, "conv2d", forward)
    monkeypatch.setattr("learner.networks.flat_minatar.conv2d_weight", backward)
    monkeypatch.setattr("torch.nn.modules.conv.F.conv2d", forward)
    config = LearnerConfig(network=network, convolution_layout=wanted)
    flat = flat_network(STACKS, config, CPU)
    outputs = flat.forward(torch.zeros(4, *STACKS.observation_shape, dtype=torch.uint8))
    flat.backward(torch.ones_like(outputs))
    assert (seen[0], seen[-1]) == expected


@pytest.mark.parametrize(
    ("change", "products"), [({}, 3), ({"layer_norm": True}, 3), ({"noisy": True}, 6)], ids=str
)
def test_dense_layers_compute_by_the_library_that_is_set(
    change: dict[str, Any], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 x 256 x 256: forward, and two backward; by hand, by autograd, and twice for the noise."""
    calls = list[int]()

    def counted(inputs: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        calls.append(len(inputs))
        return onednn_linear(inputs, weight, *rest)

    monkeypatch.setattr("learner.networks.products.onednn_linear", counted)
    by_processor = products if AUTO_MULTIPLICATIONS <= 64 * 256 * 256 else 0
    for wanted, expected in (("auto", by_processor), ("blas", 0), ("onednn", products)):
        config = LearnerConfig(hidden_sizes=(256, 256), dense_products=wanted, **change)  # type: ignore[arg-type]
        flat = flat_network(VECTOR, config, CPU)
        flat.backward(torch.ones_like(flat.forward(torch.zeros(64, 4))))
        assert len(calls) == expected * HAS_ONEDNN
        calls.clear()


@pytest.mark.parametrize(
    "change",
    [
        {"dueling": True},
        {"noisy": True},
        {"layer_norm": True},
        {"pool_size": 2},
        {"head": "iqn"},
        {"compile": True},
        {"precision": "bfloat16"},
        {"network": "nature_cnn"},
    ],
)
def test_networks_with_other_parts_than_minatars_use_autograd(change: dict[str, Any]) -> None:
    config = LearnerConfig(**{"network": "minatar_cnn", **change})
    assert type(flat_network(STACKS, config, CPU)) is FlatNetwork


def test_mlp_gradient_is_the_finite_difference_along_random_directions() -> None:
    torch.manual_seed(0)
    flat = FlatMlp(Mlp((3, 8, 8, 2)), CPU)
    observations, output_gradient = torch.randn(16, 3), torch.randn(16, 2)

    def value() -> float:
        return float((flat.evaluate(observations).double() * output_gradient).sum())

    flat.forward(observations)
    flat.backward(output_gradient)
    start = flat.weights.clone()
    for _ in range(5):
        direction = torch.randn_like(start)
        flat.weights.copy_(start + 1e-4 * direction)
        higher = value()
        flat.weights.copy_(start - 1e-4 * direction)
        gradient_along = (higher - value()) / 2e-4
        assert float(flat.gradient @ direction) == pytest.approx(gradient_along, rel=2e-2)


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
from learner.config import LearnerConfig, NetworkSpec, output_shape
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
