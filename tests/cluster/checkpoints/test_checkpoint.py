"""Checkpoints on disk: what is wrong with a bad one is named, and the newest ones and the best are kept."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from qfleet_checkpoints import commit, flip_a_bit, learner_state, run_state, write_segment

from cluster.checkpoints.checkpoint import (
    CheckpointStore,
    DamagedCheckpointError,
    checkpoint_folders,
    newest_learner_state,
    read_checkpoint,
    read_manifest,
    shard_folder,
)
from replay_service.journal.writer import SegmentFact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of versions 100 and 200."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for version in (100, 200):
        commit(store, version)
    return tmp_path / "checkpoints"


def test_a_checkpoint_is_read_as_it_was_written(folder: Path) -> None:
    first, second = checkpoint_folders(folder)
    assert [first.name, second.name] == ["checkpoint-000000", "checkpoint-000001"]
    checkpoint = read_checkpoint(second)
    assert (checkpoint.manifest.number, checkpoint.manifest.version, checkpoint.learner.version) == (
        1,
        200,
        200,
    )
    np.testing.assert_array_equal(checkpoint.learner.tensors["online"], [200, 200, 200])
    assert checkpoint.manifest.run == run_state()
    names = {file.name for file in checkpoint.manifest.files}
    assert names == {"learner.safetensors", "shard-0/00000000-0.qfj", "shard-1/00000000-0.qfj"}
    assert not list(folder.glob("*.partial"))


def test_the_size_and_what_of_it_is_new_are_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    sizes = []
    for content in (b"a" * 100, b"a" * 100, b"b" * 100):
        partial = store.begin()
        fact = write_segment(shard_folder(partial, 0), content)
        sizes.append(store.commit(partial, run_state(), learner_state(7), {0: (fact,)}))
    learner = (tmp_path / "checkpoint-000000" / "learner.safetensors").stat().st_size
    assert [saved.name for saved in sizes] == [f"checkpoint-00000{number}" for number in range(3)]
    assert [saved.num_bytes for saved in sizes] == [learner + 100] * 3
    assert [saved.new_bytes for saved in sizes] == [learner + 100, 0, 100]


def segment(checkpoint: Path, shard: int) -> Path:
    return checkpoint / f"shard-{shard}" / "00000000-0.qfj"


def rewrite_manifest(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and gives it a checksum that fits."""
    body = json.loads((checkpoint / "manifest.json").read_bytes())["manifest"]
    change(body)
    raw = json.dumps(body).encode()
    (checkpoint / "manifest.json").write_bytes(
        msgspec.json.encode({"crc32": zlib.crc32(raw), "manifest": msgspec.Raw(raw)})
    )


# What happens to the newest checkpoint -> what is said about it.
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the learner": (
        lambda it: flip_a_bit(it / "learner.safetensors"),
        "learner.safetensors is not the file of this checkpoint",
    ),
    "a bit of a segment": (
        lambda it: flip_a_bit(segment(it, 1)),
        "shard-1/00000000-0.qfj is not the file of this checkpoint: it has 19 bytes with checksum",
    ),
    "a longer segment": (
        lambda it: segment(it, 1).write_bytes(b"version 200 shard 1 and more"),
        "it has 28 bytes with checksum .*, expected 19 with",
    ),
    "a missing segment": (
        lambda it: segment(it, 0).unlink(),
        "shard-0/00000000-0.qfj cannot be read: No such file",
    ),
    "a missing learner": (
        lambda it: (it / "learner.safetensors").unlink(),
        "learner.safetensors cannot be read: No such file",
    ),
    "a bit of the manifest": (lambda it: flip_a_bit(it / "manifest.json"), "manifest.json"),
    "half of the manifest": (
        lambda it: (it / "manifest.json").write_bytes((it / "manifest.json").read_bytes()[:200]),
        "manifest.json cannot be read",
    ),
    "a number in the manifest": (
        lambda it: (it / "manifest.json").write_text(
            (it / "manifest.json").read_text().replace('"version":200', '"version":201')
        ),
        "manifest.json was altered",
    ),
    "no manifest": (lambda it: (it / "manifest.json").unlink(), "manifest.json cannot be read"),
    "the manifest of another checkpoint": (
        lambda it: shutil.copyfile(it.with_name("checkpoint-000000") / "manifest.json", it / "manifest.json"),
        "holds checkpoint 0, not the one of its name",
    ),
    "a segment of another shard": (
        lambda it: shutil.copyfile(segment(it, 1), segment(it, 0)),
        "shard-0/00000000-0.qfj is not the file of this checkpoint",
    ),
    "an older learner": (
        lambda it: shutil.copyfile(
            it.with_name("checkpoint-000000") / "learner.safetensors", it / "learner.safetensors"
        ),
        "learner.safetensors is not the file of this checkpoint",
    ),
    "a manifest of a newer format": (
        lambda it: rewrite_manifest(it, lambda body: body.update(format=2)),
        "is of format 2, this version reads format 1",
    ),
    "a manifest that reaches outside": (
        lambda it: rewrite_manifest(it, lambda body: body["files"][1].update(name="../../etc/hostname")),
        "names ../../etc/hostname, outside of its folder",
    ),
    "a manifest with an absolute path": (
        lambda it: rewrite_manifest(it, lambda body: body["files"][1].update(name="/etc/hostname")),
        "names /etc/hostname, outside of its folder",
    ),
    "a manifest without the learner": (
        lambda it: rewrite_manifest(it, lambda body: body["files"].pop(0)),
        "does not name learner.safetensors",
    ),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_wrong_with_a_bad_checkpoint_is_named(folder: Path, spoil: str) -> None:
    change, problem = SPOILT[spoil]
    first, newest = checkpoint_folders(folder)
    change(newest)
    with pytest.raises(DamagedCheckpointError, match=problem) as found:
        read_checkpoint(newest)
    assert str(newest) in str(found.value)
    assert read_checkpoint(first).learner.version == 100


def test_a_checkpoint_without_its_last_name_is_none(folder: Path) -> None:
    first, newest = checkpoint_folders(folder)
    newest.rename(newest.with_name(f"{newest.name}.partial"))
    (folder / "checkpoint-abc").mkdir()
    assert checkpoint_folders(folder) == [first]
    assert checkpoint_folders(folder / "nowhere") == []


def test_what_an_interrupted_checkpoint_left_is_removed_and_numbers_go_on(folder: Path) -> None:
    (folder / "checkpoint-000002.partial").mkdir()
    store = CheckpointStore(folder, keep=2)
    partial = store.begin()
    assert [path.name for path in folder.glob("*.partial")] == [partial.name] == ["checkpoint-000002.partial"]
    store.abandon(partial)
    assert not partial.exists()
    assert commit(store, 300).number == 3


def test_the_newest_and_the_best_checkpoints_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    stay = []
    for version, evaluation in enumerate((None, 5.0, 9.0, 1.0, 2.0, 3.0, 9.5, 4.0)):
        commit(store, version, evaluation=evaluation)
        stay.append([read_manifest(path).version for path in checkpoint_folders(tmp_path)])
    assert stay == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7]]


def test_without_evaluations_none_is_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for version in range(3):
        commit(store, version, evaluation=None)
    assert [read_manifest(path).version for path in checkpoint_folders(tmp_path)] == [2]


def test_a_bad_checkpoint_is_never_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    commit(store, 100, evaluation=9.0)
    commit(store, 200, evaluation=1.0)
    best, second = checkpoint_folders(tmp_path)
    flip_a_bit(best / "manifest.json")
    commit(store, 300, evaluation=0.5)
    assert [path.name for path in checkpoint_folders(tmp_path)] == [second.name, "checkpoint-000002"]


def test_files_that_a_shard_wrote_elsewhere_are_missed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    partial = store.begin()
    with pytest.raises(DamagedCheckpointError, match="is not there, though shard 3 wrote it: give"):
        store.commit(partial, run_state(), learner_state(1), {3: (SegmentFact("a.qfj", 5, 0, 0, 1),)})
    assert checkpoint_folders(tmp_path) == []


def test_a_learner_goes_on_from_the_newest_sound_state_whatever_its_replay_is_like(folder: Path) -> None:
    first, newest = checkpoint_folders(folder)
    flip_a_bit(segment(newest, 0))
    state = newest_learner_state(folder)
    assert state is not None
    assert (state.version, state.tensors["online"].tolist()) == (200, [200.0] * 3)
    flip_a_bit(newest / "learner.safetensors")
    state = newest_learner_state(folder)
    assert state is not None
    assert state.version == 100
    flip_a_bit(first / "manifest.json")
    assert newest_learner_state(folder) is None
