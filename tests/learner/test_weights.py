from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learner.weights import load_tensors, load_weights, save_tensors, save_weights


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "latest.safetensors"
    flat = np.array([1.5, -0.0, np.nan, np.inf, 1e-45], np.float32)
    save_weights(path, flat, {"version": "7", "network": "mlp"})
    loaded, metadata = load_weights(path)
    assert loaded.tobytes() == flat.tobytes()
    assert loaded.dtype == np.float32
    assert metadata == {"version": "7", "network": "mlp"}
    assert list(tmp_path.iterdir()) == [path]


def test_named_tensors_round_trip(tmp_path: Path) -> None:
    strided = np.arange(6).reshape(2, 3)[:, ::2]
    tensors: dict[str, np.ndarray] = {"online": np.arange(3, dtype=np.float32), "count": strided}
    save_tensors(tmp_path / "state.safetensors", tensors, {})
    loaded, metadata = load_tensors(tmp_path / "state.safetensors")
    assert metadata == {}
    assert sorted(loaded) == ["count", "online"]
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.safetensors"
    save_weights(path, np.zeros(3, np.float32), {"version": "1"})

    def disk_full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_weights(path, np.ones(3, np.float32), {"version": "2"})
    loaded, metadata = load_weights(path)
    assert metadata == {"version": "1"}
    assert not loaded.any()


@pytest.mark.parametrize("flat", [np.zeros((2, 2), np.float32), np.zeros(3, np.float64)])
def test_only_flat_float32_is_saved(tmp_path: Path, flat: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \[P\]"):
        save_weights(tmp_path / "w.safetensors", flat, {})


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError):
        load_weights(path)
    save_weights(path, np.zeros(100, np.float32), {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_weights(path)
    save_tensors(path, {"other": np.zeros(3, np.float32)}, {})
    with pytest.raises(ValueError, match="not weights"):
        load_weights(path)
    save_tensors(path, {"weights": np.zeros((3, 1), np.float32)}, {})
    with pytest.raises(ValueError, match="expected float32"):
        load_weights(path)
