"""Exports a policy as an ONNX file, if onnxruntime computes the same Q-values and actions from it.

Owns the graph, which maps an environment's own observations to its own actions, and the comparison on
recorded observations; onnx and onnxruntime are imported when they are used.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from actors.envs.adapter import Adapter, make_adapter
from actors.envs.make import lane_seeds
from actors.envs.observation_spaces import parts_of
from actors.envs.observations import Part
from cluster.policies.playback import GreedyPolicy, TimeStep, open_env, play
from cluster.policies.saved_policy import SavedPolicy
from cluster.settings.config import ConfigError
from cluster.settings.resolve import network_spec
from learner.batch import Observations
from learner.named_weights import NORMALIZER_TAIL, seeded_network
from learner.networks.noisy import NoisyLinear
from learner.normalization import ObservationNormalizer
from learner.objectives.heads import make_head
from replay_service.block import ACTION_MASK, OBSERVATION

TOLERANCE = 1e-4
"""Largest allowed difference of a Q-value, relative to the largest recorded |Q| (at least 1). Another order
of float32 sums makes a difference of about 1e-6."""

_RECORDED = 256
_EPISODE_STEPS = 64
_EXPLORED = 0.25
_SEED_DOMAIN = 1 << 42


class ExportError(RuntimeError):
    """The exported graph computes other values or actions than the policy; no file was written."""


@dataclass(frozen=True)
class Comparison:
    """The largest |difference| of a Q-value between graph and policy, and on how many observations."""

    max_abs_difference: float
    observations: int


def write_onnx(path: Path, saved: SavedPolicy, metadata: Mapping[str, str]) -> Comparison:
    """Writes a file beside `path`, compares it with the policy, and renames it to `path`.

    Raises:
        ConfigError: a package is missing.
        EnvError: the environment cannot be made.
        ExportError: graph and policy differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"an ONNX graph needs {error.name}: install it with pip install 'qfleet[export]', or take "
            "--format safetensors"
        ) from error
    recorded = _record(saved)
    graph = ExportedPolicy(saved, recorded.parts, recorded.adapter)
    graph.eval()
    names = graph.input_names
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that nobody needs
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.onnx.export(
            graph,
            tuple(torch.from_numpy(recorded.inputs[name][:2].copy()) for name in names),
            input_names=names,
            output_names=["q_values", "action"],
            dynamic_shapes=(tuple({0: batch} for _ in names),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    partial = path.with_name(f"{path.name}.partial")
    try:
        onnx.save_model(model, str(partial))
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        comparison = _require_same_play(session.run, names, recorded)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return comparison


class ExportedPolicy(nn.Module):
    """Maps observations in the environment's own form to Q-values and to actions in its own form."""

    def __init__(self, saved: SavedPolicy, parts: tuple[Part, ...], adapter: Adapter) -> None:
        """parts: the arrays of the environment's observation space, in the order of the graph's inputs."""
        super().__init__()
        spec, learner = network_spec(saved.spec), saved.config.learner
        tensors = {name: torch.tensor(array) for name, array in saved.named_weights().items()}
        tail = tensors.pop(NORMALIZER_TAIL, None)
        network = seeded_network(spec, learner)
        network.load_state_dict(tensors, strict=True)
        self._network = exportable(network)
        self._normalizer = None
        if tail is not None:
            self._normalizer = ObservationNormalizer(spec, torch.device("cpu"))
            self._normalizer.tail.copy_(tail)
        self._head = make_head(learner, torch.device("cpu"))
        self._parts = parts
        self._joined = bool(spec.parts)
        self._shape = spec.observation_shape
        self._leading = 2 if spec.stack > 1 else 1
        self._masked = saved.spec.action_mask
        self._first_action = adapter.first_action
        self._table = None if adapter.table is None else torch.tensor(adapter.table)

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, in the order of forward's arguments."""
        return [*map(input_name, self._parts), *([ACTION_MASK] if self._masked else [])]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of every input -> q_values [B, A], action [B, *action shape]."""
        arrays = [
            converted(part, values, self._leading) for part, values in zip(self._parts, inputs, strict=False)
        ]
        observations: Observations = (
            {part.field.name: array for part, array in zip(self._parts, arrays, strict=True)}
            if self._joined
            else arrays[0].reshape(arrays[0].shape[0], *self._shape)
        )
        if self._normalizer is not None:
            observations = self._normalizer(observations)
        allowed = q_values = self._head.values(self._network(observations))
        if self._masked:
            # Not minus infinity: a row without any allowed action must still give one.
            allowed = q_values.masked_fill(~inputs[-1], torch.finfo(torch.float32).min)
        best = allowed.argmax(dim=1)
        return q_values, best + self._first_action if self._table is None else self._table[best]


def input_name(part: Part) -> str:
    """Name of the graph's input for this part of an observation."""
    return f"{OBSERVATION}.{part.field.name}" if part.path else OBSERVATION


def converted(part: Part, values: Tensor, leading: int) -> Tensor:
    """`Part.converted` in torch: [*leading axes, *raw_shape] -> [*leading axes, *field.shape]."""
    lead = values.shape[:leading]
    if any(part.starts):
        values = values - torch.tensor(part.starts).reshape(part.raw_shape)
    if part.sizes:
        flat = values.long().reshape(*lead, len(part.sizes))
        hot = [functional.one_hot(flat[..., i], size) for i, size in enumerate(part.sizes)]
        return torch.cat(hot, dim=-1).bool()
    dtype = torch.from_numpy(np.empty(0, part.field.dtype)).dtype
    return values.to(dtype).reshape(*lead, *part.field.shape)


def exportable(network: nn.Module) -> nn.Module:
    """The network with each noisy layer replaced by a linear one of its mean weights, which are shared, and
    adaptive pooling, for which ONNX has no operator, by maxima of slices."""
    if isinstance(network, NoisyLinear):
        mean = nn.Linear(network.in_features, network.out_features)
        mean.weight, mean.bias = network.weight, network.bias
        return mean
    if isinstance(network, nn.AdaptiveMaxPool2d):
        assert isinstance(network.output_size, int), "torsos pool to squares"
        return WindowMaxima(network.output_size)
    for name, child in network.named_children():
        setattr(network, name, exportable(child))
    return network


class WindowMaxima(nn.Module):
    """nn.AdaptiveMaxPool2d of square maps of pool_size x pool_size, written with slices."""

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self._pool_size = pool_size

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, pool_size, pool_size]."""
        for axis in (2, 3):
            side, count = maps.shape[axis], self._pool_size
            edges = [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
            maxima = [maps.narrow(axis, low, high - low).amax(dim=axis) for low, high in edges]
            maps = torch.stack(maxima, dim=axis)
        return maps


@dataclass(frozen=True, eq=False)
class _Recorded:
    """N observations as the environment gave them, by graph input, and the policy's answers.

    inputs: name -> [N, ...] or [N, stack, ...]; q_values [N, A]; allowed [N, A] bool, or None without masks.
    """

    parts: tuple[Part, ...]
    adapter: Adapter
    inputs: Mapping[str, np.ndarray]
    q_values: np.ndarray
    allowed: np.ndarray | None


def _record(saved: SavedPolicy) -> _Recorded:
    """Plays episodes in which a quarter of the actions are random, so that observations vary."""
    adapter = make_adapter(saved.config.env, saved.spec)
    policy = saved.acting()
    seeds = np.random.SeedSequence(saved.config.run.seed, spawn_key=(_SEED_DOMAIN,))
    rng = np.random.default_rng(seeds)
    answers: list[np.ndarray] = []

    def explored(observations: np.ndarray) -> np.ndarray:
        answers.append(policy.q_values(observations).copy())
        q = answers[-1]
        return rng.random(q.shape, np.float32) if rng.random() < _EXPLORED else q

    episodes: list[list[TimeStep]] = []
    env = open_env(saved.config.env, saved.spec, pictures=False)
    try:
        parts = parts_of(env.observation_space)
        for seed in lane_seeds(seeds, _RECORDED):
            *acted_on, _ = play(env, GreedyPolicy(explored, adapter), int(seed), _EPISODE_STEPS)
            episodes.append(acted_on)
            if len(answers) >= _RECORDED:
                break
    finally:
        env.close()
    inputs = {input_name(part): _batch(part, episodes, saved.spec.stack) for part in parts}
    allowed = None
    if saved.spec.action_mask:
        allowed = np.array([step.action_mask for episode in episodes for step in episode]) != 0
        inputs[ACTION_MASK] = allowed
    return _Recorded(parts, adapter, inputs, np.concatenate(answers), allowed)


def _batch(part: Part, episodes: Sequence[Sequence[TimeStep]], stack: int) -> np.ndarray:
    """One part of all observations as the graph takes it: [N, *shape], with a stack [N, stack, *shape]."""
    batch: list[np.ndarray] = []
    for episode in episodes:
        frames = [np.asarray(part.of(step.observation)) for step in episode]
        # A stack begins with copies of the first frame.
        padded = frames[:1] * (stack - 1) + frames
        stacks = [np.stack(padded[i : i + stack]) for i in range(len(frames))]
        batch += frames if stack == 1 else stacks
    return np.array(batch)


def _require_same_play(run: Any, names: Sequence[str], recorded: _Recorded) -> Comparison:
    """Compares the exported graph run(outputs, inputs) with the policy.

    Raises ExportError where values differ, or an action is not among the policy's best.
    """
    q, count = recorded.q_values, len(recorded.q_values)
    # One observation alone, then the others together: the size of the batch is free.
    pieces = [run(None, {n: recorded.inputs[n][rows] for n in names}) for rows in (slice(1), slice(1, count))]
    q_values, actions = (np.concatenate([piece[i] for piece in pieces if len(piece[i])]) for i in (0, 1))
    difference = float(np.abs(q_values - q).max())
    limit = TOLERANCE * max(1.0, float(np.abs(q).max()))
    if not difference <= limit:
        raise ExportError(
            f"the exported graph differs from the policy: by up to {difference:.3g} in a Q-value over "
            f"{count} recorded observations, where {limit:.3g} is allowed; nothing was written"
        )
    values = q if recorded.allowed is None else np.where(recorded.allowed, q, -np.inf)
    own = [recorded.adapter.action(index) for index in range(q.shape[1])]
    for row, action in enumerate(actions):
        chosen = [index for index, one in enumerate(own) if np.array_equal(one, action)]
        if not chosen or values[row, chosen].max() < values[row].max() - 2 * limit:
            raise ExportError(
                f"the exported graph takes action {action} on recorded observation {row}, where the policy "
                f"takes {own[int(values[row].argmax())]}; nothing was written"
            )
    return Comparison(difference, count)
