"""Products of dense layers: the same numbers by either library, and each where it is the faster one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from learner.networks import products
from learner.networks.products import (
    MIN_MULTIPLICATIONS,
    MIN_ONEDNN_MULTIPLICATIONS,
    MIN_PACKED_MULTIPLICATIONS,
    MIN_PACKED_WEIGHTS,
    Linear,
    Products,
    products_by,
)
from learner.torch_private import HAS_ONEDNN, onednn_linear

LARGE = (64, 512, 256)  # [B, K] [N, K]: twice the least
SMALL = (8, 4, 16)


@pytest.fixture(params=[LARGE, SMALL], ids=["large", "small"])
def layer(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """inputs [B, K], weight [N, K], bias [N], in float64 so that the reference is exact to float32."""
    torch.manual_seed(0)
    rows, size_in, size_out = request.param
    return (
        torch.randn(rows, size_in, dtype=torch.float64),
        torch.randn(size_out, size_in, dtype=torch.float64),
        torch.randn(size_out, dtype=torch.float64),
    )


@pytest.fixture(params=[0, math.inf], ids=["onednn", "blas"])
def by(request: pytest.FixtureRequest) -> Products:
    """All products by one library; without oneDNN both are torch's."""
    return Products(request.param)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes [B, K, N] of the products that went to oneDNN."""
    calls: list[tuple[int, ...]] = []

    def counted(inputs: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append((*inputs.shape, weight.shape[0]))
        return onednn_linear(inputs, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(products, "onednn_linear", counted)
    return calls


def test_a_layer_and_its_gradients_are_torchs(layer: tuple[torch.Tensor, ...], by: Products) -> None:
    exact = [tensor.clone().requires_grad_() for tensor in layer]
    ours = [tensor.float().requires_grad_() for tensor in layer]
    expected, outputs = functional.linear(*exact), by.linear(*ours)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-3)
    output_gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, output_gradient)
    for ours_by, exact_by in zip(
        torch.autograd.grad(outputs, ours, output_gradient.float()), wanted, strict=True
    ):
        torch.testing.assert_close(ours_by.double(), exact_by, rtol=1e-5, atol=1e-3)


def test_products_written_by_hand_are_torchs(layer: tuple[torch.Tensor, ...], by: Products) -> None:
    inputs, weight, bias = layer
    relu = by.linear_relu(*(tensor.float() for tensor in layer))
    expected = functional.linear(inputs, weight, bias).relu()
    torch.testing.assert_close(relu.double(), expected, rtol=1e-5, atol=1e-3)
    assert by.linear_relu(*(tensor.float() * math.nan for tensor in layer)).isnan().all()  # not 0
    output_gradient = torch.randn_like(expected)
    by_inputs = by.product(output_gradient.float(), weight.float())
    torch.testing.assert_close(by_inputs.double(), output_gradient @ weight, rtol=1e-5, atol=1e-3)
    whole = torch.zeros(weight.numel() + 2)
    by.product(output_gradient.t().float(), inputs.float(), out=whole[1:-1].view_as(weight))
    torch.testing.assert_close(
        whole[1:-1].view_as(weight).double(), output_gradient.t() @ inputs, rtol=1e-5, atol=1e-3
    )
    assert whole[[0, -1]].tolist() == [0.0, 0.0]


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_only_large_products_go_to_onednn(by_onednn: list[tuple[int, ...]]) -> None:
    rows, size_in, size_out = LARGE
    assert rows * size_in * size_out == 2 * MIN_MULTIPLICATIONS
    wide = Linear(size_in, size_out)
    wide.products = Products(MIN_MULTIPLICATIONS)
    wide(torch.zeros(rows, size_in)).sum().backward()
    assert by_onednn == [(rows, size_in, size_out), (size_out, rows, size_in)]
    by_onednn.clear()
    wide(torch.zeros(rows // 4, size_in)).sum().backward()
    wide(torch.zeros(2, rows, size_in))  # of another number of dimensions
    wide.double()(torch.zeros(rows, size_in, dtype=torch.float64))
    assert by_onednn == []


def test_with_vectors_of_avx2_no_product_goes_to_onednn(by_onednn: list[tuple[int, ...]]) -> None:
    rows, size_in, size_out = LARGE
    wide = Linear(size_in, size_out)
    wide.products = Products(math.inf)
    wide(torch.zeros(16 * rows, size_in)).sum().backward()
    assert by_onednn == []


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_the_setting_decides_where_products_go(by_onednn: list[tuple[int, ...]]) -> None:
    rows, size_in, size_out = LARGE
    wide = Linear(size_in, size_out)
    wide.products = products_by("blas")
    wide(torch.zeros(rows, size_in)).sum().backward()
    assert by_onednn == []
    least = rows * MIN_ONEDNN_MULTIPLICATIONS // (2 * MIN_MULTIPLICATIONS)
    wide.products = products_by("onednn")
    wide(torch.zeros(least, size_in)).sum().backward()
    assert by_onednn == [(least, size_in, size_out), (size_out, least, size_in)]
    wide(torch.zeros(least - 1, size_in)).sum().backward()
    assert len(by_onednn) == 2


def test_onednn_is_refused_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    with pytest.raises(ValueError, match=r"dense_products is onednn, but .*; give auto or blas"):
        products_by("onednn")
    assert products_by("blas").least_multiplications == math.inf


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_what_is_traced_or_cast_is_left_to_torch(by_onednn: list[tuple[int, ...]]) -> None:
    rows, size_in, size_out = LARGE
    wide = Linear(size_in, size_out)
    inputs = torch.zeros(rows, size_in)
    program = torch.export.export(wide, (inputs,))
    assert "mkldnn" not in program.graph_module.code
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(inputs).dtype == torch.bfloat16
    assert by_onednn == []


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_packed_weights_serve_where_no_gradient_is_wanted(by_onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    wide, inputs = Linear(512, 256), torch.randn(8, 512)
    assert wide.weight.numel() == MIN_PACKED_WEIGHTS
    assert len(inputs) * wide.weight.numel() == MIN_PACKED_MULTIPLICATIONS
    wide.pack()
    with torch.no_grad():
        for _ in range(2):
            expected = functional.linear(inputs, wide.weight, wide.bias)
            torch.testing.assert_close(wide(inputs), expected, rtol=1e-5, atol=1e-5)
            wide.weight.mul_(-2.0)
            wide.pack()
        assert by_onednn == [(8, 512, 256)] * 2
        wide(inputs[:7])
    wide(inputs).sum().backward()
    assert wide.weight.grad is not None
    narrow = Linear(511, 256)
    narrow.pack()
    with torch.no_grad():
        narrow(torch.randn(16, 511))
    assert len(by_onednn) == 2
