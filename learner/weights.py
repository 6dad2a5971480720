"""Weights on disk: flat float32 vectors in safetensors files, written whole or not at all.

Owns the file format; must not import torch, so that drivers and actors can read weights cheaply.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from replay_service.journal.durable_files import write_whole


def save_weights(path: Path, flat: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Writes flat [P] float32 and metadata. At any time `path` holds the old file or the whole new one.

    Raises:
        ValueError: flat is not [P] float32.
    """
    _require_flat(path, flat)
    save_tensors(path, {"weights": flat}, metadata)


def load_weights(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """The vector [P] float32 and the metadata that `save_weights` wrote. Executes nothing from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds something else.
    """
    tensors, metadata = load_tensors(path)
    if "weights" not in tensors:
        raise ValueError(f"{path} holds {sorted(tensors)}, not weights")
    _require_flat(path, tensors["weights"])
    return tensors["weights"], metadata


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes named arrays to a file beside `path`, syncs it, and renames it to `path`."""
    # safetensors takes the bytes in their order in memory, which is wrong for a strided view.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    write_whole(path, safetensors.numpy.save(contiguous, dict(metadata)))


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and metadata that `save_tensors` wrote; errors as in `load_weights`."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def _require_flat(path: Path, flat: np.ndarray) -> None:
    if flat.ndim != 1 or flat.dtype != np.float32:
        raise ValueError(f"weights of {path} are {flat.dtype} {list(flat.shape)}, expected float32 [P]")
