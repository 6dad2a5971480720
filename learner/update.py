"""One update: a minibatch in, TD errors out, weights changed.

Owns the train state (online, target, optimiser, version); must not import the learning loop or any transport.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.flat import FlatNetwork
from learner.heads import Fit, make_head
from learner.mlp_gradient import FlatMlp
from learner.networks import Mlp, build_network
from learner.optimiser import FlatOptimiser, learning_rate


@dataclass(frozen=True)
class UpdateMeans:
    """Means over the updates since the last reading, each of them a mean over its minibatch; the target gap
    as in LearnReport."""

    loss: float
    q: float
    target: float
    td_error: float
    grad_norm: float
    grad_norm_clipped: float
    target_gap: float


@dataclass(frozen=True, eq=False)
class SkippedUpdate:
    """An update that was not applied: loss or gradient norm is NaN or infinite; td_errors are [B] float32."""

    loss: float
    grad_norm: float
    td_errors: np.ndarray


def resolve_device(name: str) -> torch.device:
    """The named device; "auto" is CUDA where there is one, else the CPU. Raises ValueError if missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"learner.device is {name!r}, which torch does not know: give auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"learner.device is {name!r}, but torch finds no CUDA device here; give auto or cpu")
    return device


def flat_network(spec: NetworkSpec, config: LearnerConfig, device: torch.device) -> FlatNetwork:
    """The configured network over one weight vector; an MLP gets its passes by hand, others use autograd."""
    network = build_network(spec, config)
    return FlatMlp(network, device) if isinstance(network, Mlp) else FlatNetwork(network, device)


class UpdateStep:
    """The DQN update (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1) and the state that it changes.

    `seed` fixes the initial weights and all noise; torch's global generator is left as it was.
    Each update of a noisy network draws one noise for the online network and one for the target network.

    Attributes:
        version: updates applied.
    """

    def __init__(self, spec: NetworkSpec, config: LearnerConfig, *, seed: int) -> None:
        self.device = resolve_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._online = flat_network(spec, config, self.device)
            self._target = flat_network(spec, config, self.device)
        self._target.weights.copy_(self._online.weights)
        self._noise = torch.Generator().manual_seed(seed) if config.noisy else None
        self._optimiser = FlatOptimiser(self._online, config)
        self._head = make_head(config, self.device)
        self._config = config
        self._gap_at_copy = torch.zeros((), device=self.device)
        self._clear_sums()
        self.version = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> np.ndarray | SkippedUpdate:
        """Applies one update; returns the absolute TD errors [B] float32 from before it, a fresh array.

        A SkippedUpdate means that neither weights, target nor optimiser have changed.
        """
        if self._noise is not None:
            self._online.redraw_noise(self._noise)
            self._target.redraw_noise(self._noise)
        outputs_t = self._target.evaluate(batch.obs_t)
        choosing = None
        if self._config.double:
            outputs_tm1, choosing = self._online.forward_pair(batch.obs_tm1, batch.obs_t)
        else:
            outputs_tm1 = self._online.forward(batch.obs_tm1)
        fit = self._head.fit(batch, outputs_tm1, outputs_t, choosing)
        self._online.backward(fit.slope)
        norm = self._optimiser.clip()
        # The one point where a GPU is waited for, before the step, so that a bad gradient is left out.
        td_errors, loss, grad_norm = _read(fit.td_error, fit.loss, norm)
        if not math.isfinite(loss + grad_norm):
            return SkippedUpdate(loss, grad_norm, td_errors)
        self._optimiser.step(self.version)
        self.version += 1
        self._follow()
        self._add_to_sums(fit, loss, grad_norm)
        return td_errors

    def weights(self) -> np.ndarray:
        """The online weights [P] float32, a fresh copy."""
        return _copy(self._online.weights)

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return learning_rate(self._config, self.version)

    def take_means(self) -> UpdateMeans:
        """Means since the last call; waits for the device. At least one update must lie between."""
        count = self._summed_updates
        q, target, td_error = (total.mean().item() / count for total in self._sums)
        loss, grad_norm, grad_norm_clipped = (total / count for total in self._scalar_sums)
        gap = self._gap_at_copy if self._config.target_polyak is None else self._target_gap()
        self._clear_sums()
        return UpdateMeans(loss, q, target, td_error, grad_norm, grad_norm_clipped, gap.item())

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return LearnerState(self.version, {name: _copy(tensor) for name, tensor in self._tensors().items()})

    def restore(self, state: LearnerState) -> None:
        """Goes on from a state. Raises ValueError where it is of another network or optimiser."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        given = {name: array.shape for name, array in state.tensors.items()}
        if given != expected:
            raise ValueError(f"the saved state holds tensors {given}, this configuration needs {expected}")
        if self._noise is not None:
            self._noise.set_state(torch.tensor(state.tensors["noise"]))
        tensors = {name: torch.tensor(array, device=self.device) for name, array in state.tensors.items()}
        self._online.weights.copy_(tensors["online"])
        self._target.weights.copy_(tensors["target"])
        self._optimiser.restore(tensors, state.version)
        self.version = state.version

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"online": self._online.weights, "target": self._target.weights, **self._optimiser.state()}
        return tensors if self._noise is None else {**tensors, "noise": self._noise.get_state()}

    def _follow(self) -> None:
        """The target network follows: a share of the way each update, or all of it every so many."""
        if self._config.target_polyak is not None:
            self._target.weights.lerp_(self._online.weights, self._config.target_polyak)
        elif self.version % self._config.target_update_updates == 0:
            self._gap_at_copy = self._target_gap()
            self._target.weights.copy_(self._online.weights)

    def _target_gap(self) -> Tensor:
        return (self._online.weights - self._target.weights).abs().mean()

    def _clear_sums(self) -> None:
        self._sums: tuple[Tensor, ...] = (torch.zeros((), device=self.device),) * 3
        self._scalar_sums = (0.0, 0.0, 0.0)
        self._summed_updates = 0

    def _add_to_sums(self, fit: Fit, loss: float, grad_norm: float) -> None:
        """Adds an update's figures; the means over B are left to the reading."""
        self._sums = tuple(map(torch.add, self._sums, (fit.q_tm1, fit.target, fit.td_error)))
        limit = self._config.max_grad_norm
        clipped = grad_norm if limit is None else min(grad_norm, limit)
        losses, norms, norms_clipped = self._scalar_sums
        self._scalar_sums = (losses + loss, norms + grad_norm, norms_clipped + clipped)
        self._summed_updates += 1


def _read(td_error: Tensor, loss: Tensor, norm: Tensor) -> tuple[np.ndarray, float, float]:
    """[B] and two scalars; from a GPU in one transfer."""
    if td_error.device.type == "cpu":
        return td_error.numpy(), loss.item(), norm.item()
    figures = torch.cat((td_error, loss.view(1), norm.view(1))).cpu().numpy()
    return figures[:-2], float(figures[-2]), float(figures[-1])


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True).copy()
