"""Exports the weights of a run for other programs: as an ONNX graph, or as parameters by name.

Owns the command and the metadata in both files; onnx is imported only when a graph is made.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.policies.onnx_export import Comparison, write_onnx
from cluster.policies.saved_policy import SavedPolicy, output_path, read_policy
from cluster.record.run_dir import WeightsName, read_provenance
from cluster.settings.resolve import network_spec
from learner.named_weights import network_facts
from learner.weights import save_tensors

Format = Literal["onnx", "safetensors"]


@dataclass(frozen=True)
class Exported:
    """A file that was written. comparison: of an ONNX graph with the policy."""

    path: Path
    weights: WeightsName
    version: int
    comparison: Comparison | None = None


def export_run(
    run_dir: Path, format: Format, which: WeightsName | None = None, out: Path | None = None
) -> Exported:
    """Writes a run's weights (best, else latest, unless `which` names them) for other programs.

    "safetensors": parameters by name. "onnx": a graph from observations as the environment gives them. Its
    inputs are `observation`, or `observation.NAME` for each part ([batch, *shape], with a stack
    [batch, stack, *shape], oldest first), and `action_mask` [batch, A] bool where the environment has masks.
    Its outputs are `q_values` [batch, A] float32 and `action` [batch, ...], the best one as the environment
    takes it. Metadata in both files name the origin of the weights.

    Args:
        out: default RUN_DIR/policy.onnx or RUN_DIR/policy.safetensors; at any time the path holds the old
            file or the whole new one.

    Raises:
        ConfigError: there is no run or no such weights, or a package is missing.
        EnvError: the environment cannot be made.
        ExportError: graph and policy differ.
    """
    saved = read_policy(run_dir, which)
    path = output_path(out, run_dir / f"policy.{format}")
    metadata = _metadata(saved)
    if format == "safetensors":
        save_tensors(path, saved.named_weights(), metadata)
        return Exported(path, saved.weights, saved.version)
    return Exported(path, saved.weights, saved.version, write_onnx(path, saved, metadata))


def _metadata(saved: SavedPolicy) -> dict[str, str]:
    """The origin of the weights and the network that they fit; lists and numbers as JSON."""
    provenance = read_provenance(saved.run_dir)
    return {
        "environment": saved.config.env.id,
        "environment_kwargs": json.dumps(saved.config.env.kwargs),
        "weights": saved.weights,
        **saved.facts,
        "commit": str(provenance.get("commit")),
        "packages": json.dumps(provenance.get("packages", {})),
        "run_seed": str(saved.config.run.seed),
        "policy": json.dumps(network_facts(network_spec(saved.spec), saved.config.learner)),
    }
