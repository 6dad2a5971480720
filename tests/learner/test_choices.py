"""The choice by timed updates: in scripted times, in real updates, and where there is nothing to choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec

from learner import choices
from learner.batch import Batch, to_batch
from learner.choices import Fastest, batch_of_ones, choose, fastest, other_layouts, other_products
from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.networks.products import MIN_MULTIPLICATIONS, MIN_ONEDNN_MULTIPLICATIONS
from learner.torch_private import HAS_ONEDNN
from learner.update import Outcome, UpdateStep
from replay_service.messages import Minibatch

VECTOR = NetworkSpec((4,), "float32", None, 2, stack=1)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)
IMAGES = image_spec((3, 36, 36), 3, stack=3)
WIDE = LearnerConfig(hidden_sizes=(512, 512), batch_size=16)
NATURE, MINATAR = (LearnerConfig(network=f"{name}_cnn", batch_size=4) for name in ("nature", "minatar"))
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to the processor is as on one with vectors of AVX-512."""
    monkeypatch.setattr(choices, "AUTO_MULTIPLICATIONS", MIN_MULTIPLICATIONS)


class Scripted:
    """Updates that take the times given for each option, the last of them again and again."""

    def __init__(self, **seconds: list[float]) -> None:
        self.asked = list[str]()
        self.spent = 0.0
        self._seconds = seconds

    def __call__(self, option: str) -> float:
        turn = self.asked.count(option)
        self.asked.append(option)
        took = self._seconds[option][min(turn, len(self._seconds[option]) - 1)]
        self.spent += took
        return took


@pytest.mark.parametrize(
    ("rule", "other", "expected"),
    [(1.0, 0.96, "rule"), (1.0, 0.94, "other"), (1.0, 1.1, "rule"), (1.0, 1.0, "rule")],
)
def test_only_what_is_five_percent_faster_replaces_the_first(
    rule: float, other: float, expected: str
) -> None:
    found = fastest(["rule", "other"], Scripted(rule=[rule], other=[other]), most_seconds=100.0)
    assert found == Fastest(expected, min(rule, other) if expected == "other" else rule, rule)


def test_the_fastest_of_several_is_taken() -> None:
    for options in (["a", "b", "c"], ["a", "c", "b"]):
        assert fastest(options, Scripted(a=[1.0], b=[0.8], c=[0.7]), most_seconds=100.0) == Fastest(
            "c", 0.7, 1.0
        )


def test_options_take_turns_and_the_least_time_after_the_first_counts() -> None:
    """b is slow at first, and disturbed in most turns; a is once faster than ever again, in the first one."""
    scripted = Scripted(a=[0.001, 0.01], b=[0.09, 0.03, 0.008, 0.03])
    assert fastest(["a", "b"], scripted) == Fastest("b", 0.008, 0.01)
    assert scripted.asked == ["a", "b"] * 9


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.0, ["a"]),
        (0.34, ["a"]),  # six such updates take longer than the budget
        (0.33, ["a", "b"] * 3),
        (0.1, ["a", "b"] * 3),
        (0.08, ["a", "b"] * 4),  # half a second is enough
        (0.01, ["a", "b"] * 9),
    ],
)
def test_the_budget_holds(seconds: float, expected: list[str]) -> None:
    scripted = Scripted(a=[seconds], b=[seconds / 2])
    found = fastest(["a", "b"], scripted)
    assert scripted.asked == expected
    assert scripted.spent <= 2.0
    assert (found is not None) == (len(expected) > 1)


def test_what_is_left_of_the_time_holds() -> None:
    scripted = Scripted(a=[0.01], b=[0.01])
    assert fastest(["a", "b"], scripted, 0.11, 0.5) == Fastest("a", 0.01, 0.01)
    assert len(scripted.asked) == 2 * 5
    assert fastest(["a", "b"], scripted, -0.1, 0.07) is not None
    assert len(scripted.asked) == 2 * (5 + 3)
    assert fastest(["a", "b"], scripted, -0.1, 0.05) is None


def test_a_slow_option_ends_the_trial() -> None:
    scripted = Scripted(a=[0.01], b=[0.7])
    assert fastest(["a", "b"], scripted) is None
    assert scripted.asked == ["a", "b"]


@pytest.mark.parametrize(
    ("spec", "config", "layouts"),
    [
        (VECTOR, WIDE, []),
        (TABLE, LearnerConfig(), []),
        (IMAGES, NATURE, ["channels_first"]),
        (IMAGES, replace(NATURE, precision="bfloat16"), ["channels_first"]),
        (IMAGES, replace(NATURE, convolution_layout="channels_last"), []),
        (IMAGES, replace(NATURE, compile=True), []),
        (IMAGES, replace(NATURE, network="my.networks:make"), []),
        (IMAGES, replace(NATURE, network="mlp"), []),
        (IMAGES, MINATAR, ["channels_last", "channels_first"]),
        (IMAGES, replace(MINATAR, dueling=True), ["channels_last"]),
    ],
)
def test_layouts_are_tried_that_differ_from_the_automatic_one(
    spec: NetworkSpec, config: LearnerConfig, layouts: list[str]
) -> None:
    assert other_layouts(spec, config) == layouts


@needs_onednn
@pytest.mark.parametrize(
    ("spec", "config", "products"),
    [
        (VECTOR, WIDE, ["blas"]),
        (VECTOR, replace(WIDE, batch_size=15), ["onednn"]),
        (VECTOR, replace(WIDE, batch_size=15, double=True), ["onednn", "blas"]),
        (VECTOR, replace(WIDE, batch_size=4), ["onednn"]),
        (VECTOR, replace(WIDE, batch_size=3), []),
        (VECTOR, replace(WIDE, batch_size=3, double=True), ["onednn"]),
        (VECTOR, replace(WIDE, batch_size=1, head="iqn"), ["onednn", "blas"]),
        (VECTOR, replace(WIDE, dense_products="onednn"), []),
        (VECTOR, replace(WIDE, precision="bfloat16"), []),
        (VECTOR, replace(WIDE, dueling=True, compile=True), []),
        (VECTOR, replace(WIDE, network="my.networks:make"), []),
        (VECTOR, LearnerConfig(hidden_sizes=(64, 64)), []),
        (TABLE, LearnerConfig(batch_size=4096), []),
        (image_spec((4, 84, 84), 6, stack=4), NATURE, ["blas"]),
        (image_spec((4, 84, 84), 6, stack=4), replace(NATURE, network="impala_cnn"), []),  # 2 % of all
    ],
)
def test_libraries_are_tried_that_would_compute_another_product(
    spec: NetworkSpec, config: LearnerConfig, products: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 16 * 512 * 512 == MIN_MULTIPLICATIONS == 4 * MIN_ONEDNN_MULTIPLICATIONS
    assert other_products(spec, config) == products
    monkeypatch.setattr(choices, "HAS_ONEDNN", False)
    assert other_products(spec, config) == []


@needs_onednn
def test_with_vectors_of_avx2_only_onednn_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "AUTO_MULTIPLICATIONS", math.inf)
    assert other_products(VECTOR, WIDE) == ["onednn"]
    assert other_products(VECTOR, replace(WIDE, batch_size=3)) == []


def test_nothing_is_built_where_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "UpdateStep", None)
    for spec, config in (
        (VECTOR, LearnerConfig(hidden_sizes=(64, 64))),
        (TABLE, LearnerConfig()),
        (VECTOR, replace(WIDE, dense_products="blas")),
    ):
        assert choose(config, spec) == (config, ())
    monkeypatch.setattr(choices, "prepare_device", lambda _: torch.device("cuda"))
    assert choose(WIDE, VECTOR) == (WIDE, ())


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Updates take `seconds` with one setting, half with two, twice with none, on a clock that they move."""
    now = [0.0]

    def make(seconds: float = 0.0015, **settings: Any) -> None:
        class Clocked(UpdateStep):
            takes = 2 * seconds

            def compute_as(self, config: LearnerConfig) -> None:
                super().compute_as(config)
                agreeing = sum(getattr(config, name) == value for name, value in settings.items())
                self.takes = 2 * seconds * 0.5**agreeing

            def __call__(self, batch: Batch) -> Outcome:
                now[0] += self.takes
                return super().__call__(batch)

        monkeypatch.setattr(choices, "UpdateStep", Clocked)
        monkeypatch.setattr(choices, "perf_counter", lambda: now[0])

    return make


@needs_onednn
def test_the_choice_is_told_and_the_rest_of_the_config_stays(fast: Callable[..., None]) -> None:
    fast(dense_products="blas")
    config, notes = choose(WIDE, VECTOR)
    assert config == replace(WIDE, dense_products="blas")
    assert [*map(tuple, notes)] == [
        ("info", "dense products go to BLAS: updates take 1.50 ms instead of 3.00 ms")
    ]
    fast(dense_products="onednn")
    small = replace(WIDE, batch_size=8)
    config, notes = choose(small, VECTOR)
    assert config == replace(small, dense_products="onednn")
    assert notes[0].text.startswith("dense products go to oneDNN: ")
    fast(dense_products="auto")
    assert choose(WIDE, VECTOR) == (WIDE, ())


@needs_onednn
def test_the_layout_is_chosen_first_and_products_with_it(fast: Callable[..., None]) -> None:
    fast(convolution_layout="channels_first", dense_products="blas")
    config, notes = choose(MINATAR, IMAGES)
    assert config == replace(MINATAR, convolution_layout="channels_first", dense_products="blas")
    assert [note.text for note in notes] == [
        "convolutions take images with channels first: updates take 1.50 ms instead of 3.00 ms",
        "dense products go to BLAS: updates take 0.75 ms instead of 1.50 ms",
    ]


def test_long_times_are_told_in_whole_milliseconds(fast: Callable[..., None]) -> None:
    fast(0.0123, convolution_layout="channels_first")
    (note,) = choose(NATURE, IMAGES)[1]
    assert note.text.endswith(": updates take 12 ms instead of 25 ms")


def test_updates_are_timed_by_each_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any stand-in: the options take turns in a real training state."""
    used = list[str]()
    compute_as = choices.UpdateStep.compute_as

    def noted(step: Any, config: LearnerConfig) -> None:
        used.append(config.convolution_layout)
        compute_as(step, config)

    monkeypatch.setattr(choices.UpdateStep, "compute_as", noted)
    monkeypatch.setattr(choices, "MOST_SECONDS", 60.0)
    config, _ = choose(replace(MINATAR, dense_products="blas"), IMAGES)
    turns, rest = divmod(len(used), 3)
    assert used == ["auto", "channels_last", "channels_first"] * turns
    assert turns >= 3
    assert rest == 0
    assert config.convolution_layout in ("auto", "channels_last", "channels_first")


@pytest.mark.parametrize("name", ["vector", "images", "parts"])
def test_stand_in_transitions_have_the_form_of_real_ones(
    name: str, random_minibatch: Callable[..., Minibatch], parts_spec: NetworkSpec
) -> None:
    spec = {"vector": VECTOR, "images": IMAGES, "parts": parts_spec}[name]

    def forms(batch: Batch) -> Iterator[tuple[Any, ...]]:
        for value in vars(batch).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                yield tensor if tensor is None else (tensor.dtype, tensor.shape, tensor.stride())

    real = to_batch(random_minibatch(spec, 6), spec.stack, torch.device("cpu"))
    assert [*forms(batch_of_ones(spec, 6))] == [*forms(real)]


def test_a_learner_that_measures_begins_with_the_same_weights(
    list_source: Any, random_minibatch: Callable[..., Minibatch], fast: Callable[..., None]
) -> None:
    fast(convolution_layout="channels_first")
    minibatch = random_minibatch(IMAGES, 4)
    generator = torch.random.get_rng_state()
    measuring, plain, given = (
        Learner(config, IMAGES, list_source([minibatch]), seed=3, threads=1, measures=measures)
        for config, measures in (
            (NATURE, True),
            (NATURE, False),
            (replace(NATURE, convolution_layout="channels_first"), False),
        )
    )
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, array in measuring.step.state().tensors.items():
        np.testing.assert_array_equal(array, plain.step.state().tensors[name])
    assert measuring.step.version == 0
    report, weights = measuring.learn(2)
    assert [note.text for note in report.notes] == [
        "convolutions take images with channels first: updates take 1.50 ms instead of 3.00 ms"
    ]
    assert measuring.learn(1)[0].notes == ()
    # It goes on as the choice says, and not as the rule.
    np.testing.assert_array_equal(weights, given.learn(2)[1])
    assert not np.array_equal(weights, plain.learn(2)[1])
