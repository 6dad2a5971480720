"""What a run learned as a file for other programs: an ONNX graph, or weights by name.

Owns the graph from an environment's own observation to its own action, and the check that it plays as the
policy does; onnx and onnxruntime are imported only when a graph is made.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from actors.core import EnvSpec, Policy
from actors.envs.adapter import Adapter, make_adapter
from actors.envs.make import lane_seeds
from actors.envs.observations import Part, parts_of
from cluster.policies.evaluate import GreedyPolicy
from cluster.policies.playback import Moment, open_stage
from cluster.record.run_dir import WeightsName, read_config, read_provenance, read_spec, read_weights
from cluster.runtime.roles import make_policy
from cluster.settings.config import ConfigError
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedConfig
from learner.batch import Observations
from learner.named_weights import NORMALIZER_TAIL, named_weights, network_facts, seeded_network
from learner.networks.noisy import NoisyLinear
from learner.normalization import ObservationNormalizer
from learner.objectives.heads import make_head
from learner.weights import save_tensors
from replay_service.block import ACTION_MASK, OBSERVATION

Format = Literal["onnx", "safetensors"]

TOLERANCE = 1e-4
"""Largest difference of a Q-value, relative to the largest |Q| of all recorded ones (at least 1): sums of
float32 in another order differ by some 1e-6."""

_RECORDED = 256
_EPISODE_STEPS = 64
_EXPLORED = 0.25
_SEED_DOMAIN = 1 << 42


class ExportError(RuntimeError):
    """The exported graph does not play as the policy does; no file was put in place."""


@dataclass(frozen=True)
class Exported:
    """A file that was written. The difference and the number of observations are of the check of a graph."""

    path: Path
    weights: WeightsName
    version: int
    max_abs_difference: float | None = None
    observations: int = 0


def export_run(
    run_dir: Path, format: Format, which: WeightsName | None = None, out: Path | None = None
) -> Exported:
    """Writes a run's weights (best, else latest, unless `which` says so) for other programs.

    "safetensors": parameters by name. "onnx": a graph whose inputs are a batch of observations as the
    environment gives them (`observation`, or `observation.NAME` for each part of one; [batch, *shape], with a
    stack [batch, stack, *shape], oldest first) and, where it has them, `action_mask` [batch, A] bool; its
    outputs are `q_values` [batch, A] float32 and `action` [batch, ...], the best one as the environment takes
    it. Both carry where they come from as metadata.

    Args:
        out: default RUN_DIR/policy.onnx or RUN_DIR/policy.safetensors; holds the old file or the whole new
            one at any time.

    Raises:
        ConfigError: no run, no such weights, a missing package.
        EnvError: the environment cannot be made.
        ExportError: graph and policy differ.
    """
    path = out or run_dir / f"policy.{format}"
    if not path.parent.is_dir():
        raise ConfigError(f"--out is {path}: there is no folder {path.parent}")
    config, spec = read_config(run_dir), read_spec(run_dir)
    name, flat, facts = read_weights(run_dir, which)
    try:
        named = named_weights(network_spec(spec), config.learner, flat)
    except ValueError as error:
        raise ConfigError(f"{run_dir}: {error}") from error
    metadata = _metadata(run_dir, config, spec, name, facts)
    if format == "safetensors":
        save_tensors(path, named, metadata)
        return Exported(path, name, int(facts["version"]))
    recorded = _record(config, spec, flat)
    graph = ExportedPolicy(config, spec, named, recorded.parts, recorded.adapter)
    difference = _write_onnx(path, graph, recorded, metadata)
    return Exported(path, name, int(facts["version"]), difference, len(recorded.q_values))


@dataclass(frozen=True, eq=False)
class _Recorded:
    """N observations as the environment gave them, by graph input, and what the policy makes of them.

    inputs: name -> [N, ...] or [N, stack, ...]; q_values [N, A]; allowed [N, A] bool or None.
    """

    parts: tuple[Part, ...]
    adapter: Adapter
    inputs: Mapping[str, np.ndarray]
    q_values: np.ndarray
    allowed: np.ndarray | None


class ExportedPolicy(nn.Module):
    """From observations as the environment gives them to Q-values and actions as it takes them."""

    def __init__(
        self,
        config: ResolvedConfig,
        spec: EnvSpec,
        named: Mapping[str, np.ndarray],
        parts: tuple[Part, ...],
        adapter: Adapter,
    ) -> None:
        super().__init__()
        inner = network_spec(spec)
        network = seeded_network(inner, config.learner)
        tensors = {name: torch.tensor(array) for name, array in named.items()}
        network.load_state_dict({n: t for n, t in tensors.items() if n != NORMALIZER_TAIL}, strict=True)
        self._network = without_noise(network)
        self._normalizer = None
        if NORMALIZER_TAIL in tensors:
            self._normalizer = ObservationNormalizer(inner, torch.device("cpu"))
            self._normalizer.tail.copy_(tensors[NORMALIZER_TAIL])
        self._head = make_head(config.learner, torch.device("cpu"))
        self._parts = parts
        self._joined = bool(inner.parts)
        self._shape = inner.observation_shape
        self._leading = 2 if spec.stack > 1 else 1
        self._masked = spec.action_mask
        self._first_action = adapter.first_action
        self._table = None if adapter.table is None else torch.tensor(adapter.table)

    @property
    def input_names(self) -> list[str]:
        """In the order of forward's arguments."""
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
        q_values = self._head.values(self._network(observations))
        # Not minus infinity: a row without any allowed action must still give one.
        allowed = (
            q_values.masked_fill(~inputs[-1], torch.finfo(torch.float32).min) if self._masked else q_values
        )
        best = allowed.argmax(dim=1)
        return q_values, best + self._first_action if self._table is None else self._table[best]


def input_name(part: Part) -> str:
    """The graph's input that takes this part of an observation."""
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


def without_noise(network: nn.Module) -> nn.Module:
    """The network with every noisy layer replaced by the mean that evaluation plays, sharing its weights."""
    if isinstance(network, NoisyLinear):
        mean = nn.Linear(network.in_features, network.out_features)
        mean.weight, mean.bias = network.weight, network.bias
        return mean
    for name, child in network.named_children():
        setattr(network, name, without_noise(child))
    return network


def _record(config: ResolvedConfig, spec: EnvSpec, flat: np.ndarray) -> _Recorded:
    """Plays episodes, a quarter of the actions at random so that more than one path is seen."""
    adapter = make_adapter(config.env, spec)
    policy = make_policy(config, spec)
    policy.load(flat)
    seeds = np.random.SeedSequence(config.run.seed, spawn_key=(_SEED_DOMAIN,))
    watched = _Watched(policy, np.random.default_rng(seeds))
    acts = GreedyPolicy(watched, adapter)
    seen: list[tuple[Moment, bool]] = []
    stage = open_stage(config.env, spec, pictures=False)
    try:
        parts = parts_of(stage.observation_space)
        for seed in lane_seeds(seeds, _RECORDED):
            acts.reset()
            moment, begins = stage.reset(int(seed)), True
            for _ in range(_EPISODE_STEPS):
                seen.append((moment, begins))
                moment, begins = stage.step(acts(moment.observation, moment.action_mask)), False
                if moment.ended:
                    break
            if len(seen) >= _RECORDED:
                break
    finally:
        stage.close()
    inputs = {
        input_name(part): _stacked([(part.of(m.observation), begins) for m, begins in seen], spec.stack)
        for part in parts
    }
    allowed = None
    if spec.action_mask:
        allowed = inputs[ACTION_MASK] = np.array([moment.action_mask for moment, _ in seen]) != 0
    return _Recorded(parts, adapter, inputs, np.concatenate(watched.q_values_seen), allowed)


class _Watched:
    """A policy whose values are kept; a quarter of those that it gives are random instead."""

    def __init__(self, policy: Policy, rng: np.random.Generator) -> None:
        self._policy, self._rng = policy, rng
        self.q_values_seen: list[np.ndarray] = []

    def load(self, flat_weights: np.ndarray) -> None:
        """See Policy."""
        self._policy.load(flat_weights)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """See Policy."""
        q = self._policy.q_values(observations).copy()
        self.q_values_seen.append(q)
        return self._rng.random(q.shape, np.float32) if self._rng.random() < _EXPLORED else q


def _stacked(values: Sequence[tuple[Any, bool]], stack: int) -> np.ndarray:
    """N values, each with whether it begins an episode, as the graph takes them: [N, *shape], or
    [N, stack, *shape] for a stack."""
    rows: list[np.ndarray] = []
    newest: list[np.ndarray] = []
    for value, begins in values:
        array = np.asarray(value)
        newest = [array] * stack if begins else [*newest[1:], array]
        rows.append(array if stack == 1 else np.stack(newest))
    return np.array(rows)


def _write_onnx(path: Path, graph: ExportedPolicy, recorded: _Recorded, metadata: Mapping[str, str]) -> float:
    """Exports beside `path`, checks what lies there, renames it; the largest difference of a Q-value."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"an ONNX graph needs {error.name}: install the extra with pip install -e '.[export]' in the "
            "checkout, or take --format safetensors"
        ) from error
    graph.eval()
    names = graph.input_names
    inputs = tuple(torch.from_numpy(recorded.inputs[name][:2].copy()) for name in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that nobody needs
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.onnx.export(
            graph,
            inputs,
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
        difference = _require_same_play(session.run, names, recorded, graph)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _require_same_play(run: Any, names: Sequence[str], recorded: _Recorded, graph: ExportedPolicy) -> float:
    """The largest |difference| of a Q-value; run(outputs, inputs) is the exported graph.

    Raises ExportError where values differ, or an action is not among the policy's best.
    """
    count = len(recorded.q_values)
    # One alone, and the others together: the batch is free.
    pieces = [run(None, {n: recorded.inputs[n][rows] for n in names}) for rows in (slice(1), slice(1, count))]
    q_values, actions = (np.concatenate([piece[i] for piece in pieces if len(piece[i])]) for i in (0, 1))
    difference = float(np.abs(q_values - recorded.q_values).max())
    limit = TOLERANCE * max(1.0, float(np.abs(recorded.q_values).max()))
    if not difference <= limit:
        raise ExportError(
            f"the exported graph differs from the policy: by up to {difference:.3g} in a Q-value over "
            f"{count} recorded observations, where {limit:.3g} is allowed; nothing was written"
        )
    q = recorded.q_values
    values = q if recorded.allowed is None else np.where(recorded.allowed, q, -np.inf)
    own = [recorded.adapter.action(index) for index in range(q.shape[1])]
    for row, action in enumerate(actions):
        chosen = [index for index, one in enumerate(own) if np.array_equal(one, action)]
        if not chosen or values[row, chosen].max() < values[row].max() - 2 * limit:
            raise ExportError(
                f"the exported graph takes action {action} on recorded observation {row}, where the policy "
                f"takes {own[int(values[row].argmax())]}; nothing was written"
            )
    return difference


def _metadata(
    run_dir: Path, config: ResolvedConfig, spec: EnvSpec, name: WeightsName, facts: Mapping[str, str]
) -> dict[str, str]:
    """Where weights come from and what they mean; lists and numbers as JSON."""
    provenance = read_provenance(run_dir)
    return {
        "environment": config.env.id,
        "environment_kwargs": json.dumps(config.env.kwargs),
        "weights": name,
        **facts,
        "commit": str(provenance.get("commit")),
        "packages": json.dumps(provenance.get("packages", {})),
        "run_seed": str(config.run.seed),
        "policy": json.dumps(network_facts(network_spec(spec), config.learner)),
    }
