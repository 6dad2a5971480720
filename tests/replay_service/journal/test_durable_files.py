"""Data and names are synced in the order that makes them safe when a machine loses power."""

from __future__ import annotations

import errno
import io
import os
import threading
import zlib
from pathlib import Path

import pytest
from qfleet_journal import BlockMaker, insert, make_shard, seal

from replay_service.journal.durable_files import crc32_of, link_or_copy, sync_folder
from replay_service.journal.segments import segment_paths

Calls = list[tuple[str, Path]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """("sync", file or folder) and ("link", new name), in the order in which they were done."""
    done: Calls = []
    fsync, link = os.fsync, os.link

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def recorded_link(source: Path, target: Path) -> None:
        link(source, target)
        done.append(("link", target))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "link", recorded_link)
    return done


@pytest.mark.usefixtures("small_segments")
def test_data_is_synced_before_it_is_linked_and_both_folders_after(
    tmp_path: Path, random_block: BlockMaker, calls: Calls
) -> None:
    journal, into = tmp_path / "journal", tmp_path / "checkpoint"
    shard = make_shard(journal)
    insert(shard, random_block, range(12))
    # A push is acknowledged once it is in the page cache.
    assert calls == []
    segments = seal(shard, into).segments
    assert segments is not None
    assert len(segments) > 2
    expected: Calls = []
    for fact in segments:
        expected += [("sync", journal / fact.name), ("link", into / fact.name)]
    assert calls == [*expected, ("sync", journal), ("sync", into)]
    # The next checkpoint syncs only what is new.
    calls.clear()
    later = tmp_path / "later"
    again = seal(shard, later).segments
    assert again is not None
    assert [path.name for name, path in calls if name == "sync"] == [again[-1].name, "journal", "later"]


def test_a_checkpoint_is_not_done_before_it_is_on_the_disk(
    tmp_path: Path, random_block: BlockMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, may_sync, waiting = os.fsync, threading.Event(), threading.Event()

    def slow_disk(descriptor: int) -> None:
        waiting.set()
        assert may_sync.wait(30)
        fsync(descriptor)

    shard = make_shard(tmp_path / "journal")
    insert(shard, random_block, range(3))
    monkeypatch.setattr(os, "fsync", slow_disk)
    while not waiting.is_set():
        assert not shard.seal_slice(tmp_path / "checkpoint").done
    assert not shard.seal_slice(tmp_path / "checkpoint").done
    # Pushes and evictions go on meanwhile, and no segment of the checkpoint is removed.
    insert(shard, random_block, range(3, 40))
    may_sync.set()
    segments = seal(shard, tmp_path / "checkpoint").segments
    assert segments is not None
    assert [path.name for path in segment_paths(tmp_path / "checkpoint")] == [fact.name for fact in segments]


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_there_are_no_links_a_synced_copy_is_made(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", no_links)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"whole")
    link_or_copy(source, target)
    assert target.read_bytes() == b"whole"
    assert target.stat().st_ino != source.stat().st_ino
    assert calls == [("sync", target)]


def test_a_link_that_is_there_stays_and_other_errors_are_raised(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"whole")
    target.write_bytes(b"there")
    link_or_copy(source, target)
    assert target.read_bytes() == b"there"
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "other")


def test_a_folder_is_synced_by_a_descriptor_of_its_own(tmp_path: Path, calls: Calls) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    sync_folder(tmp_path)
    assert calls == [("sync", tmp_path)]
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("data", [b"", b"some bytes"])
def test_a_checksum_covers_the_whole_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        assert crc32_of(file) == zlib.crc32(data)
