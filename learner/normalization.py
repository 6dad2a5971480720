"""Running statistics of observed numbers, and normalization by them.

Owns the statistics and the formula; must not import networks, optimizers or the learning loop.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from learner.batch import Observations
from learner.config import NetworkSpec, is_normalizable
from learner.objectives.shapes import require_shape
from learner.ranks import ONE_RANK, Ranks
from replay_service.block import OBSERVATION

NORMALIZED_LIMIT = 10.0
"""Normalized values are clipped to this many deviations; actors.policy has the same constant."""

INITIAL_SAMPLES = 10_000.0
"""Number of samples that statistics from initial weights count as; weights do not carry it."""

# Avoids dividing a value that never changes by 0; far below any variance that float32 resolves.
_VARIANCE_FLOOR = 1e-12


class Moments(NamedTuple):
    """Size [1], mean [D] and sum of squared deviations m2 [D] of samples, all float64."""

    size: Tensor
    mean: Tensor
    m2: Tensor


def moments_of_samples(samples: Tensor) -> Moments:
    """The moments of samples [M, D], M >= 1; in float64, so that a mean far from 0 costs no digits."""
    samples = samples.double()
    mean = samples.mean(dim=0)
    return Moments(mean.new_full((1,), len(samples)), mean, (samples - mean).square().sum(dim=0))


def merged(moments: Moments, added: Moments) -> Moments:
    """The moments of the samples that both count, together.

    Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, equations 2.1. Raises ValueError if D
    differs.
    """
    require_shape("added mean", added.mean, tuple(moments.mean.shape))
    size = moments.size + added.size
    delta = added.mean - moments.mean
    return Moments(
        size,
        moments.mean + delta * (added.size / size),
        moments.m2 + added.m2 + delta.square() * (moments.size * added.size / size),
    )


class ObservationNormalizer:
    """x -> clip((x - mean) / sqrt(variance), -10, 10), elementwise for each value of a frame, in float32.

    The frames of a stack share their statistics. Pixels and flags stay as they are. Before the first
    `absorb` or `restore`, mean is 0 and variance 1.

    The learner absorbs the observations that it samples: its network must fit those. Several ranks absorb
    those of all. The same minibatches give the same statistics, bit for bit.

    Attributes:
        moments: moments of the samples absorbed; replaced, never changed in place.
        tail: [2 D] float32, mean and inverse deviation of the D values, which travel behind the weights. Its
            memory stays the same.
    """

    def __init__(self, spec: NetworkSpec, device: torch.device, ranks: Ranks = ONE_RANK) -> None:
        self._ranks = ranks
        shapes = {name: array.frame_shape for name, array in spec.arrays.items() if is_normalizable(array)}
        sizes = [math.prod(shape) for shape in shapes.values()]
        zeros = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self.moments = Moments(torch.zeros(1, dtype=torch.float64, device=device), zeros, zeros)
        self.tail = torch.cat((zeros, torch.ones_like(zeros))).float()
        means, inverses = (torch.split(half, sizes) for half in self.tail.chunk(2))
        self._scales = {
            name: (mean.view(shape), inverse.view(shape))
            for (name, shape), mean, inverse in zip(shapes.items(), means, inverses, strict=True)
        }

    def __call__(self, observations: Observations) -> Observations:
        """Normalized copies in the shapes of the observations; pixels and flags as they are."""
        if isinstance(observations, Tensor):
            return _normalized(observations, *self._scales[OBSERVATION])
        return {
            name: _normalized(array, *self._scales[name]) if name in self._scales else array
            for name, array in observations.items()
        }

    def absorb(self, observations: Observations) -> None:
        """Adds observations to the statistics, every frame of a stack as one sample."""
        arrays = {OBSERVATION: observations} if isinstance(observations, Tensor) else observations
        flat = [arrays[name].reshape(-1, mean.numel()).float() for name, (mean, _) in self._scales.items()]
        own = moments_of_samples(torch.cat(flat, dim=1))
        moments = self.moments
        for each in [own] if self._ranks.size == 1 else self._of_all_ranks(own):
            moments = merged(moments, each)
        self.restore(moments)

    def _of_all_ranks(self, own: Moments) -> list[Moments]:
        """The moments that each rank has taken of its samples."""
        split = [len(each) for each in own]
        return [Moments(*torch.split(each, split)) for each in self._ranks.gather(torch.cat(own))]

    def restore(self, moments: Moments) -> None:
        """Replaces the statistics by `moments`, and the tail with them."""
        self.moments = moments
        variance = moments.m2 / moments.size.clamp(min=1.0)
        inverse = (variance + _VARIANCE_FLOOR).rsqrt()
        inverse = torch.where(moments.size > 0.0, inverse, torch.ones_like(inverse))
        self.tail.copy_(torch.cat((moments.mean, inverse)))


def _normalized(array: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    return ((array - mean) * inverse).clamp_(-NORMALIZED_LIMIT, NORMALIZED_LIMIT)


def moments_of(tail: Tensor) -> Moments:
    """Moments that give this tail [2 D] and count as INITIAL_SAMPLES samples."""
    mean, inverse = tail.double().chunk(2)
    count = torch.full((1,), INITIAL_SAMPLES, dtype=torch.float64, device=tail.device)
    return Moments(count, mean, inverse.square().reciprocal() * count)


def tail_size(spec: NetworkSpec) -> int:
    """The number of floats, 2 D, that travel behind the weights where observations are normalized."""
    return 2 * sum(math.prod(array.frame_shape) for array in spec.arrays.values() if is_normalizable(array))


def moments_state(moments: Moments) -> dict[str, Tensor]:
    """Moments by their names in a learner's state."""
    return {f"observation_{name}": tensor for name, tensor in moments._asdict().items()}


def restored_moments(tensors: Mapping[str, Tensor]) -> Moments:
    """The moments of a learner's state."""
    return Moments(*(tensors[f"observation_{name}"] for name in Moments._fields))
