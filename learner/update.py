"""One update: a minibatch in, TD errors out, weights changed.

Owns the train state (online, target, optimiser, version); must not import the learning loop or any transport.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.flat import FlatNetwork
from learner.losses import td_loss
from learner.mlp_gradient import FlatMlp
from learner.networks import Mlp, build_network
from learner.optimiser import FlatOptimiser, learning_rate
from learner.targets import double_q_target, q_learning_target
from replay_service.messages import Minibatch


@dataclass(frozen=True, eq=False)
class Batch:
    """B transitions as tensors on the learner's device.

    obs_tm1, obs_t [B, *observation_shape]; a_tm1 [B] int64; r_t, discount_t, weight [B] float32.
    """

    obs_tm1: Tensor
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    obs_t: Tensor
    weight: Tensor


@dataclass(frozen=True)
class UpdateMeans:
    """Means over the updates since the last reading, each of them a mean over its minibatch."""

    loss: float
    q: float
    target: float
    td_error: float
    grad_norm: float


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


def observations(window: np.ndarray, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """obs_tm1 and obs_t of frame windows [B, W, *frame], as views: the first and the last `stack` frames.

    Each is [B, stack, *frame], or [B, *frame] where stack is 1.
    """
    if stack == 1:
        return window[:, 0], window[:, -1]
    return window[:, :stack], window[:, -stack:]


def to_batch(minibatch: Minibatch, stack: int, device: torch.device) -> Batch:
    """Tensors of a minibatch: on the CPU they share its memory, on a GPU they are copies under way."""

    def place(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    obs_tm1, obs_t = observations(minibatch.windows["observation"], stack)
    return Batch(
        obs_tm1=place(obs_tm1),
        a_tm1=place(minibatch.action).long(),
        r_t=place(minibatch.reward),
        discount_t=place(minibatch.discount),
        obs_t=place(obs_t),
        weight=place(minibatch.weight),
    )


class UpdateStep:
    """The DQN update (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1) and the state that it changes.

    `seed` fixes the initial weights; torch's global generator is left as it was.
    Figures of an update stay in tensors and are read once a chunk, by `take_means`.

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
        self._optimiser = FlatOptimiser(self._online, config)
        self._loss = td_loss(config)
        self._config = config
        self._clear_sums()
        self.version = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> np.ndarray:
        """Applies one update; returns the absolute TD errors [B] float32 from before it, a fresh array."""
        q_t = self._target.evaluate(batch.obs_t)
        if self._config.double:
            values, q_t_online = self._online.forward_pair(batch.obs_tm1, batch.obs_t)
            target = double_q_target(batch.r_t, batch.discount_t, q_t_online, q_t)
        else:
            values = self._online.forward(batch.obs_tm1)
            target = q_learning_target(batch.r_t, batch.discount_t, q_t)
        chosen = batch.a_tm1.unsqueeze(1)
        q_tm1 = values.gather(1, chosen).squeeze(1)
        td = target - q_tm1
        slope = self._loss.slope(td, batch.weight)
        self._online.backward(torch.zeros_like(values).scatter_(1, chosen, slope.unsqueeze(1)))
        grad_norm = self._optimiser.step(self.version)
        self.version += 1
        self._follow()
        td_error = td.abs()
        self._add_to_sums(self._loss.value(td, batch.weight), q_tm1, target, td_error, grad_norm)
        return td_error.cpu().numpy()

    def weights(self) -> np.ndarray:
        """The online weights [P] float32, a fresh copy."""
        return _copy(self._online.weights)

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return learning_rate(self._config, self.version)

    def take_means(self) -> UpdateMeans:
        """Means since the last call; waits for the device. At least one update must lie between."""
        loss, q, target, td_error, grad_norm = (
            total.mean().item() / self._summed_updates for total in self._sums
        )
        self._clear_sums()
        return UpdateMeans(loss, q, target, td_error, grad_norm)

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return LearnerState(self.version, {name: _copy(tensor) for name, tensor in self._tensors().items()})

    def restore(self, state: LearnerState) -> None:
        """Goes on from a state. Raises ValueError where it is of another network or optimiser."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        given = {name: array.shape for name, array in state.tensors.items()}
        if given != expected:
            raise ValueError(f"the saved state holds tensors {given}, this configuration needs {expected}")
        tensors = {name: torch.tensor(array, device=self.device) for name, array in state.tensors.items()}
        self._online.weights.copy_(tensors["online"])
        self._target.weights.copy_(tensors["target"])
        self._optimiser.restore(tensors, state.version)
        self.version = state.version

    def _tensors(self) -> dict[str, Tensor]:
        return {"online": self._online.weights, "target": self._target.weights, **self._optimiser.state()}

    def _follow(self) -> None:
        """The target network follows: a share of the way each update, or all of it every so many."""
        if self._config.target_polyak is not None:
            self._target.weights.lerp_(self._online.weights, self._config.target_polyak)
        elif self.version % self._config.target_update_updates == 0:
            self._target.weights.copy_(self._online.weights)

    def _clear_sums(self) -> None:
        self._sums: tuple[Tensor, ...] = (torch.zeros((), device=self.device),) * 5
        self._summed_updates = 0

    def _add_to_sums(self, *terms: Tensor) -> None:
        """Adds an update's five figures, scalars or [B]; the means over B are left to the reading."""
        self._sums = tuple(map(torch.add, self._sums, terms))
        self._summed_updates += 1


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True).copy()
