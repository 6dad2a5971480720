"""What is written when: checkpoints slice by slice, old segments removed, a full disk.

Also tests replay_service/journal/writer.py, by which Durability writes.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from qfleet_journal import CONFIG, BlockMaker, are_same, contents, insert, make_shard, seal

from replay_service.journal import durability
from replay_service.journal.durability import JournalFullError
from replay_service.journal.segments import segment_paths
from replay_service.messages import PriorityUpdate, SampleRequest


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_a_checkpoint_writes_what_is_new(tmp_path: Path, random_block: BlockMaker, sampling: str) -> None:
    config = dataclasses.replace(CONFIG, persist="checkpoint", sampling=sampling)
    shard = make_shard(tmp_path / "journal", capacity=1000, config=config)
    insert(shard, random_block, range(40))
    assert segment_paths(tmp_path / "journal") == []
    one = seal(shard, tmp_path / "one")
    assert one.segments is not None
    update = PriorityUpdate(np.arange(100), np.linspace(0, 1, 100, dtype=np.float32))
    shard.exchange(update, SampleRequest(()))
    insert(shard, random_block, range(40, 50))
    held = contents(shard)
    two = seal(shard, tmp_path / "two")
    assert two.segments is not None
    assert two.segments[: len(one.segments)] == one.segments
    new = sum(fact.num_bytes for fact in two.segments[len(one.segments) :])
    assert new < 0.4 * sum(fact.num_bytes for fact in one.segments)
    for folder, count in (("one", 200), ("two", 250), ("journal", 250)):
        back = make_shard(tmp_path / folder, 1, 1000, config)
        assert back.status().count == count
        assert back.status().earlier_transitions_total == count
        assert back.recovery is not None
        assert back.recovery.damaged == ()
        if count == 250:
            assert are_same(held, contents(back))


def test_inserts_and_draws_go_on_between_slices(
    tmp_path: Path, random_block: BlockMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(durability, "SLICE_PRIORITIES", 7)
    config = dataclasses.replace(CONFIG, persist="checkpoint")
    shard = make_shard(tmp_path / "journal", config=config)
    insert(shard, random_block, range(10))
    seal(shard, tmp_path / "earlier")
    sequence = 10
    moments = [contents(shard)]
    while not shard.seal_slice(tmp_path / "checkpoint").done:
        # Fewer than a slice writes, or the checkpoint would never catch up; enough that transitions are
        # evicted meanwhile.
        if len(moments) % 2 == 1 and sequence < 24:
            insert(shard, random_block, range(sequence, sequence + 1))
            sequence += 1
        shard.exchange(None, SampleRequest((4,)))
        moments.append(contents(shard))
    assert len(moments) > 10
    assert sequence > 14
    # The checkpoint is the shard's state at one moment, after some of the inserts.
    back = contents(make_shard(tmp_path / "checkpoint", 1, config=config))
    assert [are_same(moment, back) for moment in moments].index(True) > 8


@pytest.mark.usefixtures("small_segments")
def test_old_segments_are_removed_and_a_checkpoint_keeps_its_own(
    tmp_path: Path, random_block: BlockMaker
) -> None:
    shard = make_shard(tmp_path / "journal")
    insert(shard, random_block, range(12))
    seal(shard, tmp_path / "checkpoint")
    before = contents(shard)
    names = [path.name for path in segment_paths(tmp_path / "checkpoint")]
    for sequence in range(12, 112):
        insert(shard, random_block, range(sequence, sequence + 1))
        paths = segment_paths(tmp_path / "journal")
        held = sum(path.stat().st_size for path in paths)
        # The transitions held, a segment that is partly old, and one that is being written.
        assert held < 12 * 800 + 3 * 4_000
        firsts = [int(path.stem.partition("-")[2]) for path in paths]
        assert firsts == sorted(firsts)
    assert not {path.name for path in paths} & set(names)
    assert are_same(before, contents(make_shard(tmp_path / "checkpoint", 1)))


@pytest.mark.usefixtures("small_segments")
def test_a_checkpoint_drops_what_is_evicted_before_it_writes(
    tmp_path: Path, random_block: BlockMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, on which nothing can be written, is emptied in time."""
    monkeypatch.setattr(durability, "SLICE_SECONDS", 0.0)
    shard = make_shard(tmp_path / "journal", config=dataclasses.replace(CONFIG, persist="checkpoint"))
    insert(shard, random_block, range(12))
    seal(shard, tmp_path / "one")
    held = segment_paths(tmp_path / "journal")
    insert(shard, random_block, range(12, 112))
    assert segment_paths(tmp_path / "journal") == held
    shard.seal_slice(tmp_path / "two")
    assert not set(segment_paths(tmp_path / "journal")) & set(held[:-1])


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond num_bytes: writes stop half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [100, 5_000])
def test_a_full_disk_is_told_and_training_goes_on(
    tmp_path: Path, random_block: BlockMaker, limit: int
) -> None:
    before = 1 if limit == 100 else 0
    shard = make_shard(tmp_path / "journal", capacity=1000)
    insert(shard, random_block, range(before))
    with file_size_limit(limit):
        insert(shard, random_block, range(before, 20))
        error = shard.status().journal_error
        assert error is not None
        assert f"no room for {tmp_path / 'journal'}: File too large. Free some space" in error
        assert not seal(shard, tmp_path / "failed").segments
    # What was there before is whole: the part that did not fit is no torn record.
    back = make_shard(tmp_path / "journal", 1, 1000)
    assert back.recovery is not None
    assert (back.recovery.torn_bytes, back.recovery.damaged) == (0, ())
    count = back.status().count
    assert count == (5 if limit == 100 else count) < 100
    assert are_same({name: array[:count] for name, array in contents(shard).items()}, contents(back))
    back.close()
    # With room again, the next checkpoint fills the gap, and the journal follows from there on.
    assert seal(shard, tmp_path / "checkpoint").segments
    assert shard.status().journal_error is None
    insert(shard, random_block, range(20, 23))
    assert are_same(contents(shard), contents(make_shard(tmp_path / "journal", 1, 1000)))


@pytest.mark.parametrize("operation", ["fsync", "writev", "link"])
def test_another_failure_of_the_disk_costs_a_checkpoint_only(
    tmp_path: Path, random_block: BlockMaker, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    shard = make_shard(tmp_path / "journal", capacity=1000)
    insert(shard, random_block, range(5))
    with monkeypatch.context() as patched:
        patched.setattr(os, operation, failing)
        reply = seal(shard, tmp_path / "failed")
    assert reply.segments is None
    assert reply.problem is not None
    assert "Input/output error" in reply.problem
    insert(shard, random_block, range(5, 8))
    assert seal(shard, tmp_path / "checkpoint").segments
    assert are_same(contents(shard), contents(make_shard(tmp_path / "checkpoint", 1, 1000)))


def test_a_full_disk_may_stop_the_run(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path, config=dataclasses.replace(CONFIG, on_disk_full="stop"))
    with file_size_limit(2_000), pytest.raises(JournalFullError, match=r"no room for .* Free some space"):
        insert(shard, random_block, range(20))
