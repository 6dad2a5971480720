"""Which library computes dense products, and how images lie in memory for convolutions, by timing updates.

Owns the trial before a learner's first update; must not import the loop or any transport. The timed updates
are of a training state that is thrown away: learning begins with the same weights as without a trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from learner.batch import Batch, batch_of
from learner.config import (
    ConvolutionLayout,
    DenseProducts,
    LearnerConfig,
    NetworkSpec,
    convolved,
    is_import_path,
    resolve_network,
)
from learner.core import Note
from learner.networks.flat_minatar import has_passes_by_hand
from learner.networks.products import AUTO_MULTIPLICATIONS, MIN_ONEDNN_MULTIPLICATIONS
from learner.sizes import approximate_products, dense_layers
from learner.torch_private import HAS_ONEDNN
from learner.update import UpdateStep, prepare_device
from replay_service.block import OBSERVATION

ENOUGH_SECONDS, MOST_SECONDS = 0.5, 2.0
"""What a trial may take; the second number only where updates are so long that it takes few turns."""

_TURNS, _LEAST_TURNS = 8, 2
_MOST_RATIO = 0.95
"""An option replaces the first one if an update takes at most this share of its time: less may be noise."""

_Option = TypeVar("_Option")


class Fastest(NamedTuple, Generic[_Option]):
    """The option chosen, seconds of an update by it, and by the first option."""

    option: _Option
    seconds: float
    first_seconds: float


def fastest(
    options: Sequence[_Option],
    seconds_of: Callable[[_Option], float],
    enough_seconds: float = ENOUGH_SECONDS,
    most_seconds: float = MOST_SECONDS,
) -> Fastest[_Option] | None:
    """The option whose updates are fastest by their least time; the first one if none is 5 % faster.

    All options take turns: eight, or fewer if these take more than enough_seconds, but at least two. The turn
    before them is not counted: what is computed for the first time takes longer. None if two turns after it
    seem to take more than most_seconds with it. The least time, because other work on the machine only adds
    to times: of equal options it then differed by 5 % in one of 25 trials, a median in every second one.

    Args:
        options: at least one.
        seconds_of: computes one update and returns how long it took.
    """
    turn_seconds = seconds_of(options[0])
    if (1 + _LEAST_TURNS) * len(options) * turn_seconds > most_seconds:
        return None
    turn_seconds += sum(map(seconds_of, options[1:]))
    if (1 + _LEAST_TURNS) * turn_seconds > most_seconds:
        return None
    spent, turns = turn_seconds, list[list[float]]()
    while len(turns) < _LEAST_TURNS or (len(turns) < _TURNS and spent + turn_seconds <= enough_seconds):
        turns.append([seconds_of(option) for option in options])
        turn_seconds = sum(turns[-1])
        spent += turn_seconds
    least = [min(of_option) for of_option in zip(*turns, strict=True)]
    best = least.index(min(least))
    if least[best] > _MOST_RATIO * least[0]:
        best = 0
    return Fastest(options[best], least[best], least[0])


def choose(config: LearnerConfig, spec: NetworkSpec) -> tuple[LearnerConfig, tuple[Note, ...]]:
    """The config, its convolution_layout and dense_products chosen by trial where they are auto, and what to
    tell the run's user. Builds and times nothing where there is no choice, as on a GPU."""
    layouts, products = other_layouts(spec, config), other_products(spec, config)
    if not (layouts or products) or prepare_device(config.device).type != "cpu":
        return config, ()
    trial = _Trial(config, spec)
    # The layout first, because it matters more; then products, with that layout.
    config = trial.best([config, *(replace(config, convolution_layout=each) for each in layouts)])
    config = trial.best([config, *(replace(config, dense_products=each) for each in products)])
    return config, tuple(trial.notes)


class _Trial:
    """Times updates of one training state by several configs."""

    def __init__(self, config: LearnerConfig, spec: NetworkSpec) -> None:
        self.notes: list[Note] = []
        self._step = UpdateStep(spec, config, seed=0)
        self._batch = batch_of_ones(spec, config.batch_size)
        # Torch loads half a second of modules in the first backward pass: the learner's own would do so, too.
        self._step(self._batch)
        self._began = perf_counter()

    def best(self, configs: Sequence[LearnerConfig]) -> LearnerConfig:
        """The fastest config; the first one, if there is no time to tell or no other."""
        if not configs[1:]:
            return configs[0]
        spent = perf_counter() - self._began
        found = fastest(configs, self._seconds, ENOUGH_SECONDS - spent, MOST_SECONDS - spent)
        if found is None or found.option == configs[0]:
            return configs[0]
        what = _difference(configs[0], found.option)
        new, old = (_milliseconds(seconds) for seconds in (found.seconds, found.first_seconds))
        self.notes.append(Note("info", f"{what}: updates take {new} instead of {old}"))
        return found.option

    def _seconds(self, config: LearnerConfig) -> float:
        self._step.compute_as(config)
        began = perf_counter()
        self._step(self._batch)
        return perf_counter() - began


def _milliseconds(seconds: float) -> str:
    return f"{1_000 * seconds:.{2 if seconds < 0.01 else 0}f} ms"


def _difference(first: LearnerConfig, chosen: LearnerConfig) -> str:
    """In words, what the chosen config computes otherwise."""
    if chosen.dense_products != first.dense_products:
        return f"dense products go to {'BLAS' if chosen.dense_products == 'blas' else 'oneDNN'}"
    return f"convolutions take images with {chosen.convolution_layout.replace('_', ' ')}"


def other_layouts(spec: NetworkSpec, config: LearnerConfig) -> list[ConvolutionLayout]:
    """Layouts to try beside the automatic one: those that differ from it; none where there is no choice."""
    network = resolve_network(spec, config)
    images = [convolved(network, array) for array in spec.arrays.values()]
    if config.convolution_layout != "auto" or not any(images) or _is_fixed(config):
        return []
    if network != "minatar_cnn":
        return ["channels_first"]
    # By hand, MinAtar's passes take one layout forward and the other one backward.
    return ["channels_last", "channels_first"] if has_passes_by_hand(spec, config) else ["channels_last"]


def other_products(spec: NetworkSpec, config: LearnerConfig) -> list[DenseProducts]:
    """The same for products: one by which some product would go to the other library."""
    casts = config.precision == "bfloat16"
    if config.dense_products != "auto" or not HAS_ONEDNN or casts or _is_fixed(config):
        return []
    # How often a minibatch's size a pass is: of both observations at once, or of each at many fractions.
    most = 2 if config.double or config.munchausen else 1
    if config.head == "iqn":
        most = max(config.iqn_quantiles, config.iqn_target_quantiles, config.iqn_acting_quantiles)
    resolved = replace(config, network=resolve_network(spec, config))
    layers = dense_layers(spec, resolved)
    dense = sum(fan_in * fan_out for fan_in, fan_out in layers)
    if dense < (1 - _MOST_RATIO) * approximate_products(spec, resolved):
        return []  # beside convolutions they are too few to matter
    sizes = [n * config.batch_size * fan_in * fan_out for fan_in, fan_out in layers for n in (1, most)]
    others: list[DenseProducts] = []
    if any(MIN_ONEDNN_MULTIPLICATIONS <= size < AUTO_MULTIPLICATIONS for size in sizes):
        others.append("onednn")
    if any(size >= AUTO_MULTIPLICATIONS for size in sizes):
        others.append("blas")
    return others


def _is_fixed(config: LearnerConfig) -> bool:
    """Whether a trial would take long, because passes are compiled, or the network is a user's own."""
    return config.compile or is_import_path(config.network)


def batch_of_ones(spec: NetworkSpec, batch_size: int) -> Batch:
    """Transitions in the shapes, dtypes and strides of real ones; observations and rewards are ones."""
    tensors = {
        name if name == OBSERVATION else f"{OBSERVATION}.{name}": torch.from_numpy(
            np.ones((batch_size, spec.stack + 1, *array.frame_shape), array.observation_dtype)
        )
        for name, array in spec.arrays.items()
    }
    ones = torch.ones(batch_size, dtype=torch.float32, device="cpu")
    values = {"action": ones.int(), "reward": ones, "discount": ones, "weight": ones}
    return batch_of({**tensors, **values}, spec.stack)
