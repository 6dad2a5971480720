"""One update: a batch in, TD errors out, weights changed.

Owns the training state (online, target, optimizer, version); must not import the loop or any transport.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learner.batch import Batch
from learner.captured import CapturedUpdate, Record, record_cuda_graph
from learner.config import LearnerConfig, NetworkSpec, target_period
from learner.core import LearnerState, Note, UpdateMetrics
from learner.fractions import drawn
from learner.networks.configured import compile_passes, flat_network
from learner.networks.noisy import redraw_noise
from learner.networks.spectral import SETTLING_ITERATIONS, spectral_layers, spectral_vectors
from learner.normalization import ObservationNormalizer, moments_of, moments_state, restored_moments
from learner.objectives.fit import Fit
from learner.objectives.heads import make_head
from learner.optimizer import FlatOptimizer, clip_
from learner.passes import implicit_passes, passes
from learner.ranks import ONE_RANK, Ranks, transitions_of_others
from learner.skipped_updates import SkippedUpdate
from learner.update_metrics import UpdateMeter


@dataclass(frozen=True, eq=False)
class QueuedUpdate:
    """An update that the device may still compute.

    results: as `_joined` makes them, in the host's memory, valid once `done` has passed (None: at once).
    """

    results: Tensor
    done: torch.cuda.Event | None


Outcome = np.ndarray | SkippedUpdate
"""The absolute TD errors [B] float32 from before the update; a SkippedUpdate if it was not applied."""


class UpdateStep:
    """The DQN update (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1) and the state that it changes.

    `seed` determines the initial weights and all noise; torch's global generator is left as it was, unless
    a custom network draws from it, as dropout does. Only the online network is in train() mode.
    Each update of a noisy network draws one noise for the online network and one for the target network;
    each update of implicit quantiles draws their fractions. samples_per_insert: of pacing; it counts only for
    target_update_env_steps. ranks: those with which this one applies equal updates. Batches are then its part
    of each minibatch, weighted so that the sum of all ranks' losses is the mean over the whole.

    Attributes:
        device: computes the updates.
        version: the number of updates applied.
        queues: whether `start` queues updates on the device, or applies them at once. By default it queues
            them on CUDA; with a normalizer it never does.
        gradient_bytes: of what ranks sum up in each update: the gradient and the loss.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        config: LearnerConfig,
        *,
        seed: int,
        queues: bool | None = None,
        samples_per_insert: float = 1.0,
        ranks: Ranks = ONE_RANK,
        record: Record = record_cuda_graph,
    ) -> None:
        self.device = prepare_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._online = flat_network(spec, config, self.device)
            # Its weights are copies of those that spectral norm has made.
            self._target = flat_network(spec, replace(config, spectral_norm=False), self.device)
        self._online.module.train()
        self._spectral = spectral_layers(self._online.module)
        self._target.weights.copy_(self._plain_weights())
        self.gradient_bytes = self._online.gradient_and_loss.nbytes
        self._random = torch.Generator().manual_seed(seed)
        self._draws = config.noisy or config.head == "iqn"
        self._ranks = ranks
        self._others = transitions_of_others(ranks, config.batch_size)
        normalizes = config.normalize_observations
        self._normalizer = ObservationNormalizer(spec, self.device, ranks) if normalizes else None
        self._head = make_head(config, self.device)
        self._config = config
        self._target_period = target_period(config, samples_per_insert)
        self._meter = UpdateMeter(config.max_grad_norm)
        self._gap_at_copy = torch.zeros((), dtype=torch.float32, device=self.device)
        self.version = 0
        # A normalizer would have to forget a skipped update after the next one has used its statistics.
        wanted = self.device.type == "cuda" if queues is None else queues
        self.queues = wanted and self._normalizer is None
        captures = config.capture and self.queues and ranks.size == 1 and not config.compile
        self._optimizer = FlatOptimizer(self._online, config, is_recorded=captures)
        part = replace(config, batch_size=config.batch_size - sum(self._others), num_learners=1)
        self._fractions = self._room_for_fractions(part.batch_size)
        self._queued = CapturedUpdate(self._update_unless, record) if captures else self._update_unless
        self._notes = (compile_passes(self._online, self._target, spec, part),) if config.compile else ()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outcome:
        """Applies one update. If it is skipped, neither weights, target nor optimizer change."""
        moments_before = None if self._normalizer is None else self._normalizer.moments
        self._draw(len(batch.a_tm1))
        fit, norm = self._fit(batch, may_read=self.device.type == "cpu")
        # Waits for the device before the step, so that a bad gradient is left out.
        td_errors, loss, grad_norm, q_tm1, target = _read(fit, norm)
        if not math.isfinite(loss + grad_norm):
            if self._normalizer is not None and moments_before is not None:
                self._normalizer.restore(moments_before)
            return SkippedUpdate(loss, grad_norm, td_errors)
        self._optimizer.step(self.version)
        self._follow_step()
        self._count_step()
        self._meter.add(q_tm1, target, loss, grad_norm)
        return td_errors

    def start(self, batch: Batch) -> Outcome | QueuedUpdate:
        """Starts one update; `version` counts it at once. All must be finished, in the order of starting."""
        return self._queue(batch) if self.queues else self(batch)

    def finish(self, started: Outcome | QueuedUpdate) -> Outcome:
        """Waits for an update that was started; returns what calling would have returned."""
        if not isinstance(started, QueuedUpdate):
            return started
        if started.done is not None:
            started.done.synchronize()
        td_errors, loss, grad_norm, q_tm1, target = _split(started.results)
        if not math.isfinite(loss + grad_norm):
            self.version -= 1
            return SkippedUpdate(loss, grad_norm, td_errors)
        self._meter.add(q_tm1, target, loss, grad_norm)
        return td_errors

    def weights(self) -> np.ndarray:
        """The online weights [P] float32, a fresh copy; behind them the tail of the normalizer, if any.

        With spectral norm they are the normalized ones: who loads them needs no norm.
        """
        weights = self._plain_weights()
        if self._normalizer is None:
            return _copy(weights)
        return _copy(torch.cat((weights, self._normalizer.tail)))

    def take_metrics(self) -> UpdateMetrics:
        """Metrics of the updates since the last call. Waits for the device."""
        gap = self._gap_at_copy if self._config.target_polyak is None else self._target_gap()
        return replace(self._meter.take(), target_gap=gap.item())

    def compute_as(self, config: LearnerConfig) -> None:
        """Computes dense products and convolutions as the config says; nothing else of it counts."""
        self._online.compute_as(config)
        self._target.compute_as(config)

    def take_notes(self) -> tuple[Note, ...]:
        """Sentences for the run's user, each given once."""
        notes, self._notes = self._notes, ()
        return notes

    def start_from(self, weights: np.ndarray) -> None:
        """Copies weights, in the form of `weights()`, to both networks. Raises ValueError on another size."""
        expected = self.weights().shape
        if weights.shape != expected:
            raise ValueError(
                f"the weights have shape {list(weights.shape)}, this network takes {list(expected)}"
            )
        given = torch.tensor(weights, device=self.device)
        size = len(self._online.weights)
        self._online.weights.copy_(given[:size])
        for layer in self._spectral:
            for _ in range(SETTLING_ITERATIONS):
                layer.iterate()
        self._target.weights.copy_(self._plain_weights())
        if self._normalizer is not None:
            self._normalizer.restore(moments_of(given[size:]))

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return LearnerState(self.version, {name: _copy(tensor) for name, tensor in self._tensors().items()})

    def restore(self, state: LearnerState) -> None:
        """Continues from a state. Raises ValueError if it is of another network or optimizer."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        given = {name: array.shape for name, array in state.tensors.items()}
        if given != expected:
            raise ValueError(f"the saved state holds tensors {given}, this configuration needs {expected}")
        if self._draws:
            self._random.set_state(torch.tensor(state.tensors["noise"], device="cpu"))
        tensors = {name: torch.tensor(array, device=self.device) for name, array in state.tensors.items()}
        self._online.weights.copy_(tensors["online"])
        self._target.weights.copy_(tensors["target"])
        if self._spectral:
            vectors = spectral_vectors(self._online.module)
            pieces = torch.split(tensors["spectral_vectors"], [len(vector) for vector in vectors])
            for vector, piece in zip(vectors, pieces, strict=True):
                vector.copy_(piece)
        self._optimizer.restore(tensors, state.version)
        if self._normalizer is not None:
            self._normalizer.restore(restored_moments(tensors))
        self.version = state.version

    @torch.no_grad()
    def _queue(self, batch: Batch) -> QueuedUpdate:
        """Starts one update and waits for nothing: if it is not finite, the device leaves it out.

        The target network may then still have moved once too often.
        """
        self._draw(len(batch.a_tm1))
        self._optimizer.set_rate(self.version)
        results = self._queued(batch)
        self._count_step()
        if self.device.type == "cpu":
            return QueuedUpdate(results.clone(), None)
        host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
        host.copy_(results, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return QueuedUpdate(host, done)

    def _update_unless(self, batch: Batch) -> Tensor:
        """The update of a batch as work for the device alone, left out if it is not finite; `_joined`."""
        fit, norm = self._fit(batch, may_read=False)
        self._optimizer.step_unless((fit.loss + norm).isfinite().logical_not().float())
        self._follow_step()
        return _joined(fit, norm)

    def _room_for_fractions(self, batch_size: int) -> tuple[Tensor, Tensor]:
        counts = self._config.iqn_quantiles, self._config.iqn_target_quantiles
        one, other = (self._online.weights.new_zeros(batch_size, count) for count in counts)
        return one, other

    def _draw(self, batch_size: int) -> None:
        """Draws the noise and the fractions of one update, of all ranks' transitions in their order."""
        if self._config.noisy:
            redraw_noise(self._online.module, self._random)
            redraw_noise(self._target.module, self._random)
        if self._config.head == "iqn":
            if len(self._fractions[0]) != batch_size:
                self._fractions = self._room_for_fractions(batch_size)
            first, whole = self._others.before, batch_size + sum(self._others)
            for own in self._fractions:
                all_ranks = drawn(whole, own.shape[1], self._random)
                own.copy_(all_ranks[first : first + batch_size], non_blocking=True)

    def _fit(self, batch: Batch, *, may_read: bool) -> tuple[Fit, Tensor]:
        """Leaves the clipped gradient in the online network; returns the fit and the norm before clipping."""
        if self.device.type == "cuda" and self._config.compile:
            # CUDA graphs may reuse the memory of the previous update's outputs from here on.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        obs_tm1, obs_t = batch.obs_tm1, batch.obs_t
        if self._normalizer is not None:
            self._normalizer.absorb(obs_tm1)
            obs_tm1, obs_t = self._normalizer(obs_tm1), self._normalizer(obs_t)
        networks = self._online, self._target
        if self._config.head == "iqn":
            outputs = implicit_passes(*networks, obs_tm1, obs_t, self._config, *self._fractions)
        else:
            outputs = passes(*networks, obs_tm1, obs_t, self._config)
        fit = self._head.fit(batch, outputs)
        self._online.backward(fit.output_gradient)
        if self._ranks.size > 1:
            fit = fit._replace(loss=self._summed(fit.loss))
        return fit, clip_(self._online.gradient, self._config.max_grad_norm, may_read=may_read)

    def _summed(self, loss: Tensor) -> Tensor:
        """Sums up the gradient and the loss over ranks: what is not finite on one, is so on all."""
        loss_of_all = self._online.gradient_and_loss[-1]
        loss_of_all.copy_(loss)
        self._ranks.sum_(self._online.gradient_and_loss)
        return loss_of_all

    def _follow_step(self) -> None:
        """Lets singular vectors, and a target network that moves a share each time, follow a step."""
        for layer in self._spectral:
            layer.iterate()
        if self._config.target_polyak is not None:
            self._target.weights.lerp_(self._plain_weights(), self._config.target_polyak)

    def _count_step(self) -> None:
        """Counts the step, and copies the online network to the target network every target period."""
        self.version += 1
        if self._config.target_polyak is None and self.version % self._target_period == 0:
            self._gap_at_copy = self._target_gap()
            self._target.weights.copy_(self._plain_weights())

    def _plain_weights(self) -> Tensor:
        """The online weights [P] for who computes without spectral norm; not copied where there is none."""
        return self._online.plain_weights() if self._spectral else self._online.weights

    def _target_gap(self) -> Tensor:
        return (self._plain_weights() - self._target.weights).abs().mean()

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of `state`, not copied."""
        tensors = {"online": self._online.weights, "target": self._target.weights, **self._optimizer.state()}
        if self._normalizer is not None:
            tensors |= moments_state(self._normalizer.moments)
        if self._spectral:
            tensors["spectral_vectors"] = torch.cat(spectral_vectors(self._online.module))
        return {**tensors, "noise": self._random.get_state()} if self._draws else tensors


def prepare_device(name: str) -> torch.device:
    """The device that learner.device names; "auto" is CUDA where there is one, else the CPU.

    On CUDA, in the whole process, float32 matrix products round their inputs to 10 bits of mantissa and sum
    in float32 (TF32): as exact as TD targets need, and several times as fast on GPUs that have it.

    Raises ValueError if CUDA is named and torch finds none.
    """
    found = torch.cuda.is_available()
    device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        if not found:
            raise ValueError(
                f"learner.device is {name}, but torch finds no CUDA device here; give auto or cpu"
            )
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return device


_Results = tuple[np.ndarray, float, float, Tensor, Tensor]
"""Absolute TD errors [B], loss, gradient norm before clipping, Q-values and targets [B] each."""


def _read(fit: Fit, norm: Tensor) -> _Results:
    """The results in the host's memory; from a GPU in one transfer."""
    if norm.device.type == "cpu":
        return fit.td_error.numpy(), fit.loss.item(), norm.item(), fit.q_tm1, fit.target
    return _split(_joined(fit, norm).cpu())


def _joined(fit: Fit, norm: Tensor) -> Tensor:
    """The results as one vector [3 B + 2], for one transfer."""
    return torch.cat((fit.td_error, fit.q_tm1, fit.target, fit.loss.view(1), norm.view(1)))


def _split(joined: Tensor) -> _Results:
    """The parts of `_joined`, of a tensor on the CPU."""
    td_errors, q_tm1, target = joined[:-2].chunk(3)
    loss, norm = joined[-2:].tolist()
    return td_errors.numpy(), loss, norm, q_tm1, target


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True).copy()
