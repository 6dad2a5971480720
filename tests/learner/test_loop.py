"""The main loop of learning, with and without a queue, and the reports of learner/core.py through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec

from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError
from learner.loop import Learner
from learner.skipped_updates import SkippedBatch
from replay_service.messages import Minibatch
from replay_service.shard import EmptyShardError

MinibatchMaker = Callable[..., Minibatch]

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
IMAGES = image_spec((2, 36, 36), 3, stack=2)
SWITCHES: list[dict[str, Any]] = [{}, {"head": "qr", "double": True, "dueling": True}]
SMALL = LearnerConfig(hidden_sizes=(16,), batch_size=8)
CASES = {
    "mlp": (VECTOR, SMALL),
    "noisy c51": (VECTOR, replace(SMALL, head="c51", noisy=True, double=True)),
    "sgd": (VECTOR, replace(SMALL, optimizer="sgd", target_polyak=0.1)),
    "images": (IMAGES, LearnerConfig(batch_size=4)),
}


@pytest.fixture
def vector_minibatches(random_minibatch: MinibatchMaker) -> list[Minibatch]:
    return [random_minibatch(VECTOR, 16, seed) for seed in range(5)]


def test_report_counts_what_was_done(list_source: Any, vector_minibatches: list[Minibatch]) -> None:
    config = LearnerConfig(learning_rate=1.0, learning_rate_end=0.0, learning_rate_decay_updates=100)
    source = list_source(vector_minibatches)
    learner = Learner(config, VECTOR, source, seed=0, threads=1)
    assert learner.step.version == 0
    learner.learn(2)
    report, weights = learner.learn(3)
    assert (report.version, report.updates, report.samples) == (5, 3, 48)
    assert learner.step.version == 5
    np.testing.assert_array_equal(weights, learner.step.weights())
    assert report.learning_rate == pytest.approx(0.96)  # of the last update, after four others
    lags = 2 - vector_minibatches[2].policy_version  # only the chunk's first update is looked at
    assert (report.policy_lag.count, report.policy_lag.sum) == (16, lags.sum())
    assert report.q_min < report.q_mean < report.q_max
    assert report.loss_max > report.loss_mean
    assert set(report.seconds) == {"wait", "draw", "update", "other", "idle"}
    assert min(report.seconds.values()) >= 0.0
    assert source.asked == [0, 1, 2, 3, 4]
    assert [index for index, _ in source.given_back] == [0, 1, 2, 3, 4]
    chunk = [td_errors for _, td_errors in source.given_back[2:]]
    assert report.td_error_mean == pytest.approx(float(np.mean(chunk)), rel=1e-5)
    weighted = [
        float((minibatch.weight * td_errors**2).mean())
        for minibatch, td_errors in zip(vector_minibatches[2:], chunk, strict=True)
    ]
    assert report.loss_mean == pytest.approx(float(np.mean(weighted)), rel=1e-5)


def test_waiting_is_counted_apart_from_drawing(list_source: Any, vector_minibatches: list[Minibatch]) -> None:
    # Far longer than drawing from a list takes, so that what is left of drawing is negative.
    minibatches = [replace(minibatch, waited_seconds=100.0) for minibatch in vector_minibatches]
    report, _ = Learner(LearnerConfig(), VECTOR, list_source(minibatches), seed=0, threads=1).learn(3)
    assert report.seconds["wait"] == 300.0
    assert -300.0 < report.seconds["draw"] < -299.0


def test_returned_weights_are_a_copy_of_their_own(
    list_source: Any, vector_minibatches: list[Minibatch]
) -> None:
    learner = Learner(LearnerConfig(), VECTOR, list_source(vector_minibatches), seed=0, threads=1)
    _, weights = learner.learn(1)
    before = weights.copy()
    learner.learn(1)
    np.testing.assert_array_equal(weights, before)
    weights[:] = 0.0
    assert learner.step.weights().any()


@pytest.mark.parametrize("queues", [False, True])
def test_a_chunk_ends_when_its_time_is_over(
    list_source: Any, vector_minibatches: list[Minibatch], queues: bool
) -> None:
    source = list_source(vector_minibatches)
    learner = Learner(LearnerConfig(), VECTOR, source, seed=0, threads=1, queues=queues)
    report, _ = learner.learn(5, seconds=0.0)
    assert report.updates == learner.step.version == len(source.given_back) == 1 + queues
    report, _ = learner.learn(3, seconds=1e9)
    assert report.updates == 3


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_same_seed_and_minibatches_give_the_same_bits(
    spec: NetworkSpec, list_source: Any, random_minibatch: MinibatchMaker
) -> None:
    minibatches = [random_minibatch(spec, 8, seed) for seed in range(4)]

    def learned(seed: int) -> np.ndarray:
        torch.manual_seed(np.random.default_rng().integers(2**31).item())  # must not matter
        flat: np.ndarray = Learner(
            LearnerConfig(), spec, list_source(minibatches), seed=seed, threads=1
        ).learn(8)[1]
        return flat

    assert learned(3).tobytes() == learned(3).tobytes()
    assert learned(3).tobytes() != learned(4).tobytes()


def test_the_global_generator_is_left_alone(list_source: Any) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=9, threads=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("switches", [{}, {"optimizer": "sgd"}, {"head": "c51", "noisy": True}], ids=str)
def test_a_restored_learner_goes_on_bit_for_bit(
    switches: dict[str, Any], list_source: Any, vector_minibatches: list[Minibatch]
) -> None:
    config = LearnerConfig(target_update_updates=3, learning_rate_decay_updates=20, **switches)
    first = Learner(config, VECTOR, list_source(vector_minibatches), seed=0, threads=1)
    first.learn(5)  # between two target copies, so that online and target differ
    state = first.step.state()
    expected, weights = first.learn(5)

    source = list_source(vector_minibatches)
    second = Learner(config, VECTOR, source, seed=1, threads=1)
    second.learn(2)
    second.step.restore(state)
    source.asked.clear()  # serves the first minibatch again
    report, resumed = second.learn(5)
    assert resumed.tobytes() == weights.tobytes()
    assert replace(report, seconds={}) == replace(expected, seconds={})


@pytest.mark.parametrize("reward", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_after_a_skipped_update_learning_goes_on_as_if_it_had_not_been(
    reward: float,
    optimizer: Any,
    switches: dict[str, Any],
    list_source: Any,
    vector_minibatches: list[Minibatch],
) -> None:
    config = LearnerConfig(optimizer=optimizer, target_polyak=0.1, **switches)
    bad = replace(vector_minibatches[1], reward=np.full(16, reward, np.float32))
    records: list[SkippedBatch] = []
    source = list_source([vector_minibatches[0], bad, vector_minibatches[2]])
    learner = Learner(config, VECTOR, source, seed=0, threads=1, record_skipped=records.append)
    report, weights = learner.learn(2)
    clean_source = list_source([vector_minibatches[0], vector_minibatches[2]])
    clean, expected = Learner(config, VECTOR, clean_source, seed=0, threads=1).learn(2)
    assert weights.tobytes() == expected.tobytes()
    assert (report.version, report.updates, report.skipped_updates, report.samples) == (2, 2, 1, 48)
    assert (clean.skipped_updates, report.loss_mean) == (0, clean.loss_mean)
    assert [index for index, _ in source.given_back] == [0, 2]  # the shards never hear of the bad one
    assert [(record.version, record.arrays["reward"].not_finite) for record in records] == [(1, 16)]


def test_too_many_bad_updates_end_learning(list_source: Any, vector_minibatches: list[Minibatch]) -> None:
    good, bad = vector_minibatches[0], replace(vector_minibatches[1], reward=np.full(16, np.nan, np.float32))
    source = list_source([good, bad])
    learner = Learner(LearnerConfig(max_skipped_updates=3), VECTOR, source, seed=0, threads=1)
    assert learner.learn(3)[0].skipped_updates == 2
    with pytest.raises(DivergedError, match=r"3 updates were skipped.* at version 3: loss nan"):
        learner.learn(1)


def test_an_infinite_loss_of_finite_gradient_is_skipped(
    list_source: Any, table_minibatch: MinibatchMaker
) -> None:
    # (2e19)^2 overflows float32; the gradients, 2.5e18 each, do not.
    minibatch = table_minibatch([(state, 0, 2e19, 0.0, 0) for state in range(16)])
    spec = NetworkSpec((), "int64", 16, 1, stack=1)
    config = LearnerConfig(max_skipped_updates=1)
    with pytest.raises(DivergedError, match=r"loss inf, gradient norm 1e\+19"):
        Learner(config, spec, list_source([minibatch]), seed=0, threads=1).learn(1)


def test_an_infinite_gradient_of_finite_loss_is_skipped(
    list_source: Any, random_minibatch: MinibatchMaker
) -> None:
    minibatch = random_minibatch(VECTOR, 16)
    huge = replace(minibatch, windows={"observation": minibatch.windows["observation"] * np.float32(1e25)})
    config = LearnerConfig(loss="huber", max_skipped_updates=1)
    with pytest.raises(DivergedError, match=r"loss \d.*, gradient norm inf"):
        Learner(config, VECTOR, list_source([huge]), seed=0, threads=1).learn(1)


def test_norms_before_and_after_clipping_and_the_target_gap(
    list_source: Any, table_minibatch: MinibatchMaker
) -> None:
    # Gradients -2 td / B = -3 and -4, then a tenth: norms 5 and 0.5, of which a limit of 1 leaves 1 and 0.5.
    pairs = [[(0, 0, scale * 3.0, 0.0, 0), (1, 0, scale * 4.0, 0.0, 0)] for scale in (1.0, 0.1)]
    spec = NetworkSpec((), "int64", 2, 1, stack=1)
    source = list_source([table_minibatch(pair) for pair in pairs])
    config = LearnerConfig(optimizer="sgd", learning_rate=1e-6, max_grad_norm=1.0)
    report, _ = Learner(config, spec, source, seed=0, threads=1).learn(2)
    assert report.grad_norm_mean == pytest.approx(2.75, rel=1e-4)
    assert report.grad_norm_clipped_mean == pytest.approx(0.75, rel=1e-4)
    assert report.target_gap == 0.0  # no copy yet

    config = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=1.0, target_update_updates=1)
    report, _ = Learner(config, spec, list_source(source.minibatches), seed=0, threads=1).learn(1)
    assert report.target_gap == pytest.approx(0.7)  # the step 0.6, 0.8, from before the copy


@pytest.mark.parametrize("stack", [1, 3])
def test_windows_of_n_step_transitions(
    stack: int, list_source: Any, random_minibatch: MinibatchMaker
) -> None:
    # W = 2 stack: what lies between the two observations must not matter.
    shape = (4,) if stack == 1 else (stack, 4)
    spec = NetworkSpec(shape, "float32", None, 3, stack)
    base = random_minibatch(spec, 8)
    ends = np.random.default_rng(0).normal(size=(8, 2 * stack, 4)).astype(np.float32)
    padded = np.insert(ends, stack, np.float32(1e6), axis=1)
    flats = [
        Learner(
            LearnerConfig(),
            spec,
            list_source([replace(base, windows={"observation": window})]),
            seed=0,
            threads=1,
        ).learn(1)[1]
        for window in (ends, padded)
    ]
    assert flats[0].tobytes() == flats[1].tobytes()


def test_threads_are_set_and_checked(list_source: Any) -> None:
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=2)
    assert torch.get_num_threads() == 2
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=1)
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="at least 1"):
        Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=0)


def test_an_empty_chunk_is_refused(list_source: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=1).learn(0)


@pytest.mark.parametrize("done", [0, 2])
def test_a_chunk_ends_early_when_replay_runs_out(
    list_source: Any, vector_minibatches: list[Minibatch], monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    source = list_source(vector_minibatches)
    learner = Learner(LearnerConfig(), VECTOR, source, seed=0, threads=1)
    draw = source.next_minibatch

    def draw_while_there_is(update: int) -> Minibatch:
        if update >= done:
            raise EmptyShardError("the only shard was lost")
        return draw(update)

    monkeypatch.setattr(source, "next_minibatch", draw_while_there_is)
    report, weights = learner.learn(4)
    assert (report.version, report.updates, report.samples) == (done, done, 16 * done)
    assert np.isfinite(report.loss_mean) == (done > 0)
    np.testing.assert_array_equal(weights, learner.step.weights())
    # Its state lives on.
    monkeypatch.setattr(source, "next_minibatch", draw)
    assert learner.learn(1)[0].version == done + 1


@pytest.mark.parametrize("case", CASES)
def test_queued_updates_equal_the_straightforward_loop(
    case: str, random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    spec, config = CASES[case]
    config = replace(config, target_update_updates=5)
    minibatches = [random_minibatch(spec, config.batch_size, seed=seed) for seed in range(7)]
    sources = [list_source(minibatches) for _ in range(2)]
    plain = Learner(config, spec, sources[0], seed=0, threads=1)
    queued = Learner(config, spec, sources[1], seed=0, threads=1, queues=True)
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
    spec, config = CASES["mlp"]
    source = Watched(list_source([random_minibatch(spec, 8, seed=seed) for seed in range(3)]))
    Learner(config, spec, source, seed=0, threads=1, queues=True).learn(3)
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
    spec, config = CASES["mlp"]
    good = [random_minibatch(spec, 8, seed=seed) for seed in range(4)]
    bad = replace(random_minibatch(spec, 8, seed=9), reward=np.full(8, np.nan, np.float32), keys=np.arange(8))
    bad = replace(bad, transitions_per_shard=np.array([8]))
    skipped: list[SkippedBatch] = []
    source = list_source([good[0], bad, *good[1:]])
    learner = Learner(config, spec, source, seed=0, threads=1, record_skipped=skipped.append, queues=True)
    report, weights = learner.learn(4)
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
    spec, config = CASES["mlp"]
    config = replace(config, max_skipped_updates=3)
    bad = replace(random_minibatch(spec, 8), reward=np.full(8, np.inf, np.float32))
    learner = Learner(config, spec, list_source([bad]), seed=0, threads=1, queues=True)
    with pytest.raises(DivergedError, match="3 updates were skipped"):
        learner.learn(5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"compile": True}], ids=str)
def test_a_gpu_learns_what_a_cpu_learns(
    case: str, options: dict[str, Any], random_minibatch: Callable[..., Minibatch], list_source: Any
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    spec, config = CASES[case]
    minibatches = [random_minibatch(spec, config.batch_size, seed=seed) for seed in range(5)]
    sources = [list_source(minibatches) for _ in range(2)]
    Learner(replace(config, device="cpu"), spec, sources[0], seed=0, threads=1).learn(10)
    gpu = replace(config, device="cuda", **options)
    Learner(gpu, spec, sources[1], seed=0, threads=1).learn(10)
    tolerance = 0.05 if "precision" in options else 5e-3
    for (one, expected), (two, given) in zip(sources[0].given_back, sources[1].given_back, strict=True):
        assert one == two
        np.testing.assert_allclose(given, expected, atol=tolerance)
