"""What a shard gets back from its journal, however it ended, and what it reports as damaged."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from qfleet_journal import SCHEMA, BlockMaker, are_same, contents, insert, keys_of, make_shard, seal

from replay_service.codec import encode
from replay_service.journal.segments import segment_paths
from replay_service.messages import PriorityUpdate, SampleRequest
from replay_service.shard import KEYS_PER_INCARNATION, SequenceGapError


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("capacity", [60, 1000])
def test_everything_within_capacity_comes_back_in_its_slots(
    tmp_path: Path, random_block: BlockMaker, capacity: int
) -> None:
    first = make_shard(tmp_path, capacity=capacity)
    for writer in (3, 9):
        insert(first, random_block, range(20), writer=writer)
    held, old = contents(first), first.status()
    # Nothing is closed or flushed: that is how a process dies.
    second = make_shard(tmp_path, 1, capacity)
    assert are_same(held, contents(second))
    status = second.status()
    assert (status.count, status.mass) == (old.count, pytest.approx(old.mass))
    assert (status.earlier_transitions_total, status.inserted_transitions_total) == (200, 0)
    assert (status.earlier_env_steps_total, status.env_steps_total) == (240, 0)
    assert second.recovery is not None
    assert (second.recovery.torn_bytes, second.recovery.damaged) == (0, ())
    # Keys are above all old ones, and each transition keeps its slot, so draws are the same, too.
    assert second.store.oldest_key >= KEYS_PER_INCARNATION
    assert second.store.oldest_key % capacity == first.store.oldest_key % capacity
    old_life = PriorityUpdate(keys_of(first)[-1:], np.ones(1, np.float32))
    assert second.exchange(old_life, SampleRequest(())).status.late_priorities_total == 0
    metrics = second.status().metrics
    assert metrics is not None
    assert metrics.refused_priorities == 1
    # And so from one incarnation to the next, with transitions of both.
    insert(second, random_block, range(20, 24), writer=3)
    held = contents(second)
    third = make_shard(tmp_path, 2, capacity)
    assert are_same(held, contents(third))
    assert third.status().earlier_transitions_total == 220


@pytest.mark.usefixtures("small_segments")
def test_each_push_counts_once_after_a_restart(tmp_path: Path, random_block: BlockMaker) -> None:
    first = make_shard(tmp_path)
    insert(first, random_block, range(3), writer=7)
    # So many others that the segments with writer 7's pushes are removed: who sent what is still known.
    insert(first, random_block, range(40), writer=1)
    assert first.store.oldest_key > 15
    second = make_shard(tmp_path, 1)
    rng = np.random.default_rng(0)
    for writer, due in ((7, 3), (1, 40)):
        for sequence in (due - 1, due, due + 1):
            block = random_block(
                SCHEMA, rng, num_transitions=2, num_frames=4, writer=writer, sequence=sequence
            )
            assert second.insert(encode(block)).accepted == (sequence >= due)
        with pytest.raises(SequenceGapError):
            second.insert(encode(dataclasses.replace(block, sequence=due + 9)))


def test_priorities_come_from_the_last_checkpoint(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path / "journal")
    insert(shard, random_block, range(16))
    keys = keys_of(shard)
    rng = np.random.default_rng(5)
    shard.exchange(PriorityUpdate(keys[::2], rng.random(30, np.float32)), SampleRequest(()))
    reply = seal(shard, tmp_path / "checkpoint")
    sealed = contents(shard)
    shard.exchange(PriorityUpdate(keys[:3], np.full(3, 9.0, np.float32)), SampleRequest(()))
    blocks = insert(shard, random_block, range(16, 18))
    back = contents(make_shard(tmp_path / "journal", 1))
    np.testing.assert_array_equal(back["td_error"][:50], sealed["td_error"][10:])
    np.testing.assert_array_equal(back["td_error"][50:], np.concatenate([b.priority for b in blocks]))
    # The checkpoint's folder holds the checkpoint alone, whatever came after.
    assert reply.segments is not None
    names = [path.name for path in segment_paths(tmp_path / "checkpoint")]
    assert names == [fact.name for fact in reply.segments]
    assert are_same(sealed, contents(make_shard(tmp_path / "checkpoint", 1)))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("capacity", [60, 1000])
def test_priorities_outlive_any_number_of_lives(
    tmp_path: Path, random_block: BlockMaker, capacity: int
) -> None:
    """Each life gives the transitions other keys, under which its checkpoint writes their priorities."""
    rng = np.random.default_rng(6)
    held: dict[str, np.ndarray] | None = None
    for life in range(4):
        shard = make_shard(tmp_path / "journal", life, capacity)
        if held is not None:
            assert are_same(held, contents(shard))
        insert(shard, random_block, range(8 * life, 8 * life + 8))
        keys = keys_of(shard)
        shard.exchange(PriorityUpdate(keys, rng.random(len(keys), np.float32)), SampleRequest(()))
        seal(shard, tmp_path / f"checkpoint-{life}")
        held = contents(shard)
    assert held is not None
    assert are_same(held, contents(make_shard(tmp_path / "checkpoint-3", 9, capacity)))


@pytest.mark.usefixtures("small_segments")
def test_damage_in_one_segment_leaves_the_others(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path, capacity=1000)
    insert(shard, random_block, range(30))
    held = contents(shard)
    paths = segment_paths(tmp_path)
    assert len(paths) > 4
    # One byte of a record's payload in one, everything from the middle on in another, a third is gone.
    data = bytearray(paths[1].read_bytes())
    data[-20] ^= 1
    paths[1].write_bytes(data)
    os.truncate(paths[2], paths[2].stat().st_size // 2)
    paths[3].unlink()
    back = make_shard(tmp_path, 1, 1000)
    report = back.recovery
    assert report is not None
    assert [damaged.name for damaged in report.damaged] == [paths[1].name, paths[2].name, paths[4].name]
    assert "checksum" in report.damaged[0].reason
    assert report.damaged[0].skipped_records == 1
    assert report.damaged[1].reason == "the file ends within a record"
    assert report.damaged[1].skipped_bytes > 0
    assert "are missing" in report.damaged[2].reason
    came_back = contents(back)["reward"]
    kept = np.isin(held["reward"], came_back)
    assert kept.sum() == len(came_back) == back.status().count
    np.testing.assert_array_equal(held["reward"][kept], came_back)
    assert 75 <= len(came_back) < 145
    # Totals are those of the last sound record; the writer goes on although its last pushes may be unknown.
    assert back.status().earlier_transitions_total == 150
    insert(back, random_block, range(30, 31))


def test_all_damage_of_a_segment_is_one_entry(tmp_path: Path, random_block: BlockMaker) -> None:
    insert(make_shard(tmp_path), random_block, range(3))
    (path,) = segment_paths(tmp_path)
    data = bytearray(path.read_bytes())
    # One byte in the payload of each of the first two blocks, and one in the head of the third.
    first, second, third = (match.start() for match in re.finditer(b"BLCK", data))
    for at in (first + 30, second + 30, third):
        data[at] ^= 1
    path.write_bytes(data)
    recovery = make_shard(tmp_path, 1).recovery
    assert recovery is not None
    (damaged,) = recovery.damaged
    assert damaged.reason.split("; ") == [
        f"the record at byte {third} was altered",
        "a record's checksum differs",
    ]
    assert (damaged.skipped_records, damaged.skipped_bytes) == (2, len(data) - third)


def test_an_incarnation_must_be_new(tmp_path: Path, random_block: BlockMaker) -> None:
    insert(make_shard(tmp_path, 3), random_block, range(2))
    with pytest.raises(ValueError, match="keys of a new incarnation begin at"):
        make_shard(tmp_path, 3)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("number", [0, 99])
def test_a_segment_copied_by_hand_is_not_replayed_twice(
    tmp_path: Path, random_block: BlockMaker, number: int
) -> None:
    first = make_shard(tmp_path)
    insert(first, random_block, range(30))
    seal(first, tmp_path / "checkpoint")
    held = contents(first)
    source = [path for path in segment_paths(tmp_path) if b"BLCK" in path.read_bytes()][2]
    copy = tmp_path / f"{number:08d}-{source.name.partition('-')[2]}"
    shutil.copyfile(source, copy)
    if number:  # not even the same bytes
        with copy.open("ab") as file:
            file.write(b"more")
    back = make_shard(tmp_path, 1)
    assert are_same(held, contents(back))
    assert back.status().earlier_transitions_total == first.status().inserted_transitions_total
    assert back.recovery is not None
    found = " ".join(damaged.reason for damaged in back.recovery.damaged)
    assert ("holds transitions that an earlier segment holds, too" if number else "a copy of") in found
    # The journal goes on, and the next recovery finds the same.
    insert(back, random_block, range(30, 33))
    held = contents(back)
    assert are_same(held, contents(make_shard(tmp_path, 2)))


@pytest.mark.parametrize("first_call", ["insert", "exchange", "status", "seal"])
def test_a_journal_is_read_slice_by_slice(tmp_path: Path, random_block: BlockMaker, first_call: str) -> None:
    first = make_shard(tmp_path / "journal")
    insert(first, random_block, range(10))
    held = contents(first)
    sliced = make_shard(tmp_path / "journal", 1, recovers_later=True)
    slices = 0
    while not sliced.recover(seconds=0.0):
        slices += 1
    assert slices >= 10
    assert are_same(held, contents(sliced))
    # Whoever calls before the end gets the answer of a shard that has read it all.
    early = make_shard(tmp_path / "journal", 2, recovers_later=True)
    assert not early.recover(seconds=0.0)
    if first_call == "insert":
        insert(early, random_block, range(10, 11))
    if first_call == "exchange":
        assert len(early.exchange(None, SampleRequest((3,))).keys) == 3
    if first_call == "seal":
        seal(early, tmp_path / "checkpoint")
    status = early.status()
    assert status.earlier_transitions_total == 50
    assert status.inserted_transitions_total == (5 if first_call == "insert" else 0)
