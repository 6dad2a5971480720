"""One update: a minibatch in, TD errors out, weights changed.

Owns the train state (online, target, optimizer, version); must not import the learning loop or any transport.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from learner.batch import Batch, Observations
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.networks.build import Mlp, build_network
from learner.networks.flat import FlatNetwork
from learner.networks.mlp_gradient import FlatMlp
from learner.normalization import ObservationNormalizer, moments_of, moments_state, restored_moments
from learner.objectives.heads import Fit, make_head
from learner.optimizer import FlatOptimizer, learning_rate
from replay_service.block import OBSERVATION

_HELD_UPDATES = 64


@dataclass(frozen=True)
class UpdateMeans:
    """Means over the updates since the last reading, each of them a mean over its minibatch; the target gap
    and q_min, q_max as in LearnReport."""

    loss: float
    q: float
    target: float
    td_error: float
    grad_norm: float
    grad_norm_clipped: float
    target_gap: float
    loss_max: float
    q_min: float
    q_max: float


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
    if config.precision == "bfloat16":
        return FlatNetwork(InBfloat16(network, device), device)
    return FlatMlp(network, device) if isinstance(network, Mlp) else FlatNetwork(network, device)


class InBfloat16(nn.Module):
    """A network computed under autocast to bfloat16; its weights and outputs are float32."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._device_type = device.type

    def forward(self, observations: Observations) -> Tensor:
        """As the network."""
        with torch.autocast(self._device_type, torch.bfloat16):
            outputs: Tensor = self._network(observations)
        return outputs.float()


@dataclass(frozen=True, eq=False)
class QueuedUpdate:
    """An update that the device may still compute.

    figures: [B + 2] float32 in the host's memory once `done` has passed (None: at once): the absolute TD
    errors, the loss and the gradient norm.
    """

    fit: Fit
    figures: Tensor
    done: torch.cuda.Event | None


class UpdateStep:
    """The DQN update (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1) and the state that it changes.

    `seed` fixes the initial weights and all noise; torch's global generator is left as it was.
    Each update of a noisy network draws one noise for the online network and one for the target network.

    Attributes:
        version: updates applied.
    """

    def __init__(
        self, spec: NetworkSpec, config: LearnerConfig, *, seed: int, queues: bool | None = None
    ) -> None:
        """queues: see the attribute; None chooses by device and configuration."""
        self.device = resolve_device(config.device)
        if self.device.type == "cuda":
            # Products of float32 matrices with 10 bits of mantissa, summed in float32: as exact as TD targets
            # need, and several times as fast on GPUs that have TF32.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._online = flat_network(spec, config, self.device)
            self._target = flat_network(spec, config, self.device)
        self._target.weights.copy_(self._online.weights)
        self._noise = torch.Generator().manual_seed(seed) if config.noisy else None
        self._normalizer = ObservationNormalizer(spec, self.device) if config.normalize_observations else None
        self._optimizer = FlatOptimizer(self._online, config)
        self._head = make_head(config, self.device)
        self._config = config
        self._gap_at_copy = torch.zeros((), device=self.device)
        self._clear_sums()
        self.version = 0
        # A normalizer's statistics would have to be taken back behind an update that is queued already.
        possible = self._normalizer is None
        self.queues = possible and (self.device.type == "cuda" if queues is None else queues)
        self._notes = [] if not config.compile else [self._compile(spec)]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> np.ndarray | SkippedUpdate:
        """Applies one update; returns the absolute TD errors [B] float32 from before it, a fresh array.

        A SkippedUpdate means that neither weights, target nor optimizer have changed.
        """
        moments_before = None if self._normalizer is None else self._normalizer.moments()
        fit, norm = self._fit(batch)
        # Waits for the device before the step, so that a bad gradient is left out.
        td_errors, loss, grad_norm = _read(fit.td_error, fit.loss, norm)
        if not math.isfinite(loss + grad_norm):
            if self._normalizer is not None and moments_before is not None:
                self._normalizer.restore(moments_before)
            return SkippedUpdate(loss, grad_norm, td_errors)
        self._optimizer.step(self.version)
        self.version += 1
        self._follow()
        self._add_to_sums(fit, loss, grad_norm)
        return td_errors

    @torch.no_grad()
    def queue(self, batch: Batch) -> QueuedUpdate:
        """Starts one update and waits for nothing: where it is not finite the device itself leaves it out.

        `version` counts it at once; `finish` must follow, for all in the order of their starts. A target
        network that follows may do so once too often after an update that is then found to be left out.
        """
        fit, norm = self._fit(batch)
        figures = torch.cat((fit.td_error, fit.loss.view(1), norm.view(1)))
        self._optimizer.step(self.version, skip=(fit.loss + norm).isfinite().logical_not().float())
        self.version += 1
        self._follow()
        if self.device.type == "cpu":
            return QueuedUpdate(fit, figures, None)
        host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        host.copy_(figures, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return QueuedUpdate(fit, host, done)

    def finish(self, queued: QueuedUpdate) -> np.ndarray | SkippedUpdate:
        """Waits for an update that was queued; returns what calling would have returned."""
        if queued.done is not None:
            queued.done.synchronize()
        figures = queued.figures.numpy()
        td_errors, loss, grad_norm = figures[:-2], float(figures[-2]), float(figures[-1])
        if not math.isfinite(loss + grad_norm):
            self.version -= 1
            return SkippedUpdate(loss, grad_norm, td_errors)
        self._add_to_sums(queued.fit, loss, grad_norm)
        return td_errors

    def take_notes(self) -> tuple[str, ...]:
        """What the run's user should know, each once."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def _fit(self, batch: Batch) -> tuple[Fit, Tensor]:
        """Leaves the clipped gradient of a batch in the online network; the fit, and the norm from before."""
        if self.device.type == "cuda" and self._config.compile:
            # What the graphs gave the update before may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if self._noise is not None:
            self._online.redraw_noise(self._noise)
            self._target.redraw_noise(self._noise)
        obs_tm1, obs_t = batch.obs_tm1, batch.obs_t
        if self._normalizer is not None:
            self._normalizer.absorb(obs_tm1)
            obs_tm1, obs_t = self._normalizer(obs_tm1), self._normalizer(obs_t)
        outputs_t = self._target.evaluate(obs_t)
        choosing = None
        if self._config.double:
            outputs_tm1, choosing = self._online.forward_pair(obs_tm1, obs_t)
        else:
            outputs_tm1 = self._online.forward(obs_tm1)
        fit = self._head.fit(batch, outputs_tm1, outputs_t, choosing)
        self._online.backward(fit.gradient)
        return fit, self._optimizer.clip()

    def weights(self) -> np.ndarray:
        """The online weights [P] float32, a fresh copy; behind them the tail of the normalizer, if any."""
        if self._normalizer is None:
            return _copy(self._online.weights)
        return _copy(torch.cat((self._online.weights, self._normalizer.tail)))

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return learning_rate(self._config, self.version)

    def take_means(self) -> UpdateMeans:
        """Means since the last call; waits for the device. At least one update must lie between."""
        self._fold()
        count = self._summed_updates
        q, target, td_error = (total.item() / count for total in self._sums)
        loss, grad_norm, grad_norm_clipped = (total / count for total in self._scalar_sums)
        gap = self._gap_at_copy if self._config.target_polyak is None else self._target_gap()
        q_min, q_max, loss_max = self._q_min.item(), self._q_max.item(), self._loss_max
        self._clear_sums()
        return UpdateMeans(
            loss, q, target, td_error, grad_norm, grad_norm_clipped, gap.item(), loss_max, q_min, q_max
        )

    def start_from(self, weights: np.ndarray) -> None:
        """Both networks take weights as `weights` gives them. Raises ValueError on another size."""
        expected = self.weights().shape
        if weights.shape != expected:
            raise ValueError(f"there are {list(weights.shape)} weights, this network takes {list(expected)}")
        given = torch.tensor(weights, device=self.device)
        size = len(self._online.weights)
        self._online.weights.copy_(given[:size])
        self._target.weights.copy_(given[:size])
        if self._normalizer is not None:
            self._normalizer.restore(moments_of(given[size:]))

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return LearnerState(self.version, {name: _copy(tensor) for name, tensor in self._tensors().items()})

    def restore(self, state: LearnerState) -> None:
        """Goes on from a state. Raises ValueError where it is of another network or optimizer."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        given = {name: array.shape for name, array in state.tensors.items()}
        if given != expected:
            raise ValueError(f"the saved state holds tensors {given}, this configuration needs {expected}")
        if self._noise is not None:
            self._noise.set_state(torch.tensor(state.tensors["noise"]))
        tensors = {name: torch.tensor(array, device=self.device) for name, array in state.tensors.items()}
        self._online.weights.copy_(tensors["online"])
        self._target.weights.copy_(tensors["target"])
        self._optimizer.restore(tensors, state.version)
        if self._normalizer is not None:
            self._normalizer.restore(restored_moments(tensors))
        self.version = state.version

    def _compile(self, spec: NetworkSpec) -> str:
        """Compiles both networks' passes, or leaves them as they are; a sentence about it."""
        if isinstance(self._online, FlatMlp):
            return "learner.compile changes nothing: the passes of a plain MLP are written by hand"
        began = perf_counter()
        arrays = {
            name: torch.zeros(
                (self._config.batch_size, *array.observation_shape),
                dtype=torch.from_numpy(np.empty(0, array.observation_dtype)).dtype,
                device=self.device,
            )
            for name, array in spec.arrays.items()
        }
        observations: Observations = arrays if spec.parts else arrays[OBSERVATION]
        try:
            for network in (self._online, self._target):
                network.compile()
                network.evaluate(observations)
            self._online.backward(torch.zeros_like(self._online.forward(observations)))
        except RuntimeError as error:  # what torch.compile raises is one
            for network in (self._online, self._target):
                network.uncompile()
            reason = str(error).strip().splitlines()[0]
            return f"warning: learner.compile is true, but torch.compile failed; going on without: {reason}"
        return f"the learner's passes were compiled in {perf_counter() - began:.1f} s"

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"online": self._online.weights, "target": self._target.weights, **self._optimizer.state()}
        if self._normalizer is not None:
            tensors |= moments_state(self._normalizer.moments())
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
        self._scalar_sums: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._loss_max = -math.inf
        self._q_min = torch.full((), math.inf, device=self.device)
        self._q_max = torch.full((), -math.inf, device=self.device)
        self._held: list[tuple[Tensor, Tensor, float, float]] = []
        self._summed_updates = 0

    def _add_to_sums(self, fit: Fit, loss: float, grad_norm: float) -> None:
        """Adds an update's figures; they are held and summed many at a time, an operation each is dear."""
        self._held.append((fit.q_tm1, fit.target, loss, grad_norm))
        if len(self._held) == _HELD_UPDATES:
            self._fold()

    def _fold(self) -> None:
        """Adds what is held to the sums."""
        if not self._held:
            return
        qs, targets, losses, norms = zip(*self._held, strict=True)
        self._summed_updates += len(self._held)
        self._held.clear()
        q, target = torch.stack(qs), torch.stack(targets)
        means = (each.mean(dim=1).sum() for each in (q, target, (target - q).abs_()))
        self._sums = tuple(map(torch.add, self._sums, means))
        self._q_min = torch.minimum(self._q_min, q.min())
        self._q_max = torch.maximum(self._q_max, q.max())
        limit = self._config.max_grad_norm
        clipped = norms if limit is None else [min(norm, limit) for norm in norms]
        newest = (sum(losses), sum(norms), sum(clipped))
        self._scalar_sums = tuple(map(operator.add, self._scalar_sums, newest))
        self._loss_max = max(self._loss_max, *losses)


def _read(td_error: Tensor, loss: Tensor, norm: Tensor) -> tuple[np.ndarray, float, float]:
    """[B] and two scalars; from a GPU in one transfer."""
    if td_error.device.type == "cpu":
        return td_error.numpy(), loss.item(), norm.item()
    figures = torch.cat((td_error, loss.view(1), norm.view(1))).cpu().numpy()
    return figures[:-2], float(figures[-2]), float(figures[-1])


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True).copy()
