"""The journal: what comes back after any end, what is reported as torn or damaged, and what is removed."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service import shard as shard_module
from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.journal import segments as journal_module
from replay_service.journal.durability import SealReply
from replay_service.journal.segments import JournalFullError, segment_paths
from replay_service.messages import PriorityUpdate, SampleRequest
from replay_service.shard import KEYS_PER_INCARNATION, ReplayShard

BlockMaker = Callable[..., TransitionBlock]

SCHEMA = BlockSchema((FrameField("observation", "<f4", (2,)), FrameField("image", "|u1", (2, 2))), 2, 2)
CONFIG = ReplayConfig(
    sampling="prioritized", priority_exponent=0.6, priority_epsilon=1e-6, persist="continuous"
)


def make_shard(
    folder: Path, incarnation: int = 0, capacity: int = 60, config: ReplayConfig = CONFIG
) -> ReplayShard:
    return ReplayShard(
        config,
        SCHEMA,
        shard=0,
        incarnation=incarnation,
        capacity=capacity,
        seed=np.random.SeedSequence(0),
        folder=folder,
    )


def insert(
    shard: ReplayShard, random_block: BlockMaker, sequences: range, *, writer: int = 0, rows: int = 5
) -> list[TransitionBlock]:
    """Pushes blocks whose contents depend on writer and sequence alone."""
    blocks = []
    for sequence in sequences:
        rng = np.random.default_rng([writer, sequence])
        block = random_block(
            SCHEMA, rng, num_transitions=rows, num_frames=rows + 2, writer=writer, sequence=sequence
        )
        assert shard.insert(encode(block)).accepted
        blocks.append(block)
    return blocks


def contents(shard: ReplayShard) -> dict[str, np.ndarray]:
    """All rows held, oldest first, with their windows and TD errors."""
    store = shard._store
    keys = np.arange(store.oldest_key, store.next_key)
    rows = store.gather(keys)
    fields = ("action", "reward", "discount", "policy_version")
    return {
        **rows.windows,
        **{name: getattr(rows, name) for name in fields},
        "td_error": shard._selector.td_errors(store.oldest_key, store.next_key),
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], rows: slice = slice(None)) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array[rows], other[name], err_msg=name)


def seal(shard: ReplayShard, into: Path) -> SealReply:
    while not (reply := shard.seal_slice(into)).done:
        pass
    return reply


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few blocks each."""
    monkeypatch.setattr(shard_module, "SEGMENT_BYTES", 4_000)


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
    assert_same(held, contents(second))
    status = second.status()
    assert (status.count, status.mass) == (old.count, pytest.approx(old.mass))
    assert (status.earlier_transitions_total, status.inserted_transitions_total) == (200, 0)
    assert (status.earlier_env_steps_total, status.env_steps_total) == (240, 0)
    assert second.recovery is not None
    assert (second.recovery.rows, second.recovery.torn_bytes) == (old.count, 0)
    assert second.recovery.damaged == ()
    # Keys are above all old ones, and each row lies where it lay: draws are the same, too.
    assert second._store.oldest_key >= KEYS_PER_INCARNATION
    assert second._store.oldest_key % capacity == first._store.oldest_key % capacity
    late = PriorityUpdate(np.array([first._store.next_key - 1]), np.ones(1, np.float32))
    assert second.update_priorities(late).late_priorities_total == 1
    # And so from one incarnation to the next, with rows of both.
    insert(second, random_block, range(20, 24), writer=3)
    held = contents(second)
    third = make_shard(tmp_path, 2, capacity)
    assert_same(held, contents(third))
    assert third.status().earlier_transitions_total == 220


@pytest.mark.usefixtures("small_segments")
def test_each_push_counts_once_after_a_restart(tmp_path: Path, random_block: BlockMaker) -> None:
    first = make_shard(tmp_path)
    insert(first, random_block, range(3), writer=7)
    # So many others that the segments with writer 7's pushes are removed: who sent what is still known.
    insert(first, random_block, range(40), writer=1)
    gone = first._store.oldest_key
    assert gone > 15
    second = make_shard(tmp_path, 1)
    rng = np.random.default_rng(0)
    for writer, due in ((7, 3), (1, 40)):
        for sequence in (due - 1, due, due + 1):
            block = random_block(
                SCHEMA, rng, num_transitions=2, num_frames=4, writer=writer, sequence=sequence
            )
            assert second.insert(encode(block)).accepted == (sequence >= due)
        with pytest.raises(shard_module.SequenceGapError):
            second.insert(encode(dataclasses.replace(block, sequence=due + 9)))


def test_a_shard_without_a_past_takes_up_where_its_writers_are(random_block: BlockMaker) -> None:
    shard = ReplayShard(
        dataclasses.replace(CONFIG, persist="none"),
        SCHEMA,
        shard=0,
        incarnation=1,
        capacity=60,
        seed=np.random.SeedSequence(0),
    )
    insert(shard, random_block, range(12, 15))
    assert shard.recovery is None
    block = random_block(SCHEMA, np.random.default_rng(0), num_transitions=1, num_frames=2, sequence=16)
    with pytest.raises(shard_module.SequenceGapError, match="waits for push 15"):
        shard.insert(encode(block))


def test_priorities_come_from_the_last_cut(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path / "journal")
    insert(shard, random_block, range(16))
    keys = np.arange(shard._store.oldest_key, shard._store.next_key)
    rng = np.random.default_rng(5)
    shard.update_priorities(PriorityUpdate(keys[::2], rng.random(30, np.float32)))
    reply = seal(shard, tmp_path / "cut")
    cut = contents(shard)
    shard.update_priorities(PriorityUpdate(keys[:3], np.full(3, 9.0, np.float32)))
    blocks = insert(shard, random_block, range(16, 18))
    back = contents(make_shard(tmp_path / "journal", 1))
    np.testing.assert_array_equal(back["td_error"][:50], cut["td_error"][10:])
    np.testing.assert_array_equal(back["td_error"][50:], np.concatenate([b.priority for b in blocks]))
    # The folder of the cut holds the cut alone, whatever came after.
    assert reply.segments is not None
    assert [path.name for path in segment_paths(tmp_path / "cut")] == [fact.name for fact in reply.segments]
    assert_same(cut, contents(make_shard(tmp_path / "cut", 1)))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("capacity", [60, 1000])
def test_priorities_outlive_any_number_of_lives(
    tmp_path: Path, random_block: BlockMaker, capacity: int
) -> None:
    """Each life gives the rows other keys, under which its cut writes their priorities."""
    rng = np.random.default_rng(6)
    held: dict[str, np.ndarray] | None = None
    for life in range(4):
        shard = make_shard(tmp_path / "journal", life, capacity)
        if held is not None:
            assert_same(held, contents(shard))
        insert(shard, random_block, range(8 * life, 8 * life + 8))
        keys = np.arange(shard._store.oldest_key, shard._store.next_key)
        shard.update_priorities(PriorityUpdate(keys, rng.random(len(keys), np.float32)))
        seal(shard, tmp_path / f"cut-{life}")
        held = contents(shard)
    assert held is not None
    assert_same(held, contents(make_shard(tmp_path / "cut-3", 9, capacity)))


@pytest.mark.parametrize("sampling", ["uniform", "prioritized"])
def test_a_checkpoint_writes_what_is_new(tmp_path: Path, random_block: BlockMaker, sampling: str) -> None:
    config = dataclasses.replace(CONFIG, persist="checkpoint", sampling=sampling)
    shard = make_shard(tmp_path / "journal", capacity=1000, config=config)
    insert(shard, random_block, range(40))
    assert segment_paths(tmp_path / "journal") == []
    one = seal(shard, tmp_path / "one")
    assert one.segments is not None
    keys = np.arange(100)
    shard.update_priorities(PriorityUpdate(keys, np.linspace(0, 1, 100, dtype=np.float32)))
    insert(shard, random_block, range(40, 50))
    held = contents(shard)
    two = seal(shard, tmp_path / "two")
    assert two.segments is not None
    assert two.segments[: len(one.segments)] == one.segments
    new = sum(fact.num_bytes for fact in two.segments[len(one.segments) :])
    assert new < 0.4 * sum(fact.num_bytes for fact in one.segments)
    for folder, rows in (("one", 200), ("two", 250), ("journal", 250)):
        back = make_shard(tmp_path / folder, 1, 1000, config)
        assert back.status().count == rows
        assert back.status().earlier_transitions_total == rows
        assert back.recovery is not None
        assert back.recovery.damaged == ()
        if rows == 250:
            assert_same(held, contents(back))


def test_inserts_and_draws_go_on_between_slices(
    tmp_path: Path, random_block: BlockMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay_service.journal import durability

    monkeypatch.setattr(durability, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(durability, "SLICE_PRIORITIES", 7)
    config = dataclasses.replace(CONFIG, persist="checkpoint")
    shard = make_shard(tmp_path / "journal", config=config)
    insert(shard, random_block, range(10))
    seal(shard, tmp_path / "earlier")
    sequence, slices = 10, 0
    cut: dict[str, np.ndarray] = {}
    while not shard.seal_slice(tmp_path / "cut").done:
        assert shard._durability is not None
        assert shard._durability._sealing is not None
        if not cut and shard._durability._sealing.synced is not None:
            cut = contents(shard)
        # Fewer than a slice writes, or the cut would never catch up; enough that rows leave meanwhile.
        if slices % 2 == 0 and sequence < 24:
            insert(shard, random_block, range(sequence, sequence + 1))
            sequence += 1
        shard.exchange(None, SampleRequest((4,)))
        slices += 1
    assert slices > 10
    assert sequence > 14
    back = make_shard(tmp_path / "cut", 1, config=config)
    assert_same(cut, contents(back))


@pytest.mark.usefixtures("small_segments")
def test_old_segments_are_removed_and_a_cut_keeps_its_own(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path / "journal")
    insert(shard, random_block, range(12))
    seal(shard, tmp_path / "cut")
    before = contents(shard)
    names = [path.name for path in segment_paths(tmp_path / "cut")]
    for sequence in range(12, 112):
        insert(shard, random_block, range(sequence, sequence + 1))
        paths = segment_paths(tmp_path / "journal")
        held = sum(path.stat().st_size for path in paths)
        # The rows held, a segment that is partly old, and one that is being written.
        assert held < 12 * 800 + 3 * 4_000
        firsts = [int(path.stem.partition("-")[2]) for path in paths]
        assert firsts == sorted(firsts)
    assert not {path.name for path in paths} & set(names)
    assert_same(before, contents(make_shard(tmp_path / "cut", 1)))


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory, random_block: BlockMaker) -> tuple[str, bytes, list]:
    """Name and bytes of a segment of three blocks and a cut's priorities; where each record ends."""
    folder = tmp_path_factory.mktemp("journal")
    shard = make_shard(folder)
    ends = []
    for sequence in range(3):
        insert(shard, random_block, range(sequence, sequence + 1), rows=2)
        (path,) = segment_paths(folder)
        ends.append(path.stat().st_size)
    shard.close()
    return path.name, path.read_bytes(), ends


def test_a_torn_tail_is_cut_off_wherever_it_is_torn(
    tmp_path: Path, random_block: BlockMaker, one_file: tuple[str, bytes, list]
) -> None:
    name, data, ends = one_file
    for length in range(len(data) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / name).write_bytes(data[:length])
        shard = make_shard(folder, 1)
        assert shard.recovery is not None
        whole = sum(end <= length for end in ends)
        assert shard.status().count == 2 * whole
        assert shard.recovery.damaged == (), length
        if whole:
            assert shard.recovery.torn_bytes == length - ends[whole - 1]
        # What was cut off is no damage later on, when the file is not the last any more.
        insert(shard, random_block, range(whole, whole + 1), rows=2)
        later = make_shard(folder, 2)
        assert later.recovery is not None
        assert (later.recovery.rows, later.recovery.torn_bytes) == (2 * whole + 2, 0)
        assert later.recovery.damaged == ()
        shard.close()


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_every_altered_bit_is_reported(
    tmp_path_factory: pytest.TempPathFactory, one_file: tuple[str, bytes, list], data: st.DataObject
) -> None:
    name, good, ends = one_file
    at = data.draw(st.integers(0, len(good) - 1))
    altered = bytearray(good)
    altered[at] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("altered")
    (folder / name).write_bytes(altered)
    shard = make_shard(folder, 1)
    assert shard.recovery is not None
    assert [damaged.name for damaged in shard.recovery.damaged] == [name], at
    (damaged,) = shard.recovery.damaged
    assert damaged.skipped_records + damaged.skipped_bytes > 0
    # Whatever lies before is there, and nothing that is there is wrong.
    assert shard.status().count >= 2 * sum(end <= at for end in ends)
    assert shard.status().count < 6 or at < ends[0]
    shard.close()


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
    assert kept.sum() == len(came_back) == report.rows
    np.testing.assert_array_equal(held["reward"][kept], came_back)
    assert 75 <= report.rows < 145
    # Totals are those of the last sound record; the writer goes on although its last pushes may be unknown.
    assert back.status().earlier_transitions_total == 150
    insert(back, random_block, range(30, 31))


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_survived(
    tmp_path_factory: pytest.TempPathFactory, one_file: tuple[str, bytes, list], noise: bytes, sound: bool
) -> None:
    name, good, _ = one_file
    folder = tmp_path_factory.mktemp("noise")
    (folder / name).write_bytes((good if sound else b"") + noise)
    shard = make_shard(folder, 1)
    assert shard.status().count == (6 if sound else 0)
    assert shard.recovery is not None
    assert (shard.recovery.torn_bytes > 0 or shard.recovery.damaged != ()) == (len(noise) > 0)


def test_a_length_that_is_a_lie_allocates_nothing(tmp_path: Path, one_file: tuple[str, bytes, list]) -> None:
    name, good, _ = one_file
    payload = np.zeros(0, np.uint8)
    for length in (1 << 40, (1 << 64) - 1):
        head = bytearray(journal_module._head(journal_module.PRIORITIES, 0, payload))
        head[12:20] = length.to_bytes(8, "little")
        head[24:28] = journal_module._checksum(bytes(head[:24]))
        (tmp_path / name).write_bytes(good + bytes(head))
        shard = make_shard(tmp_path, 1)
        assert shard.recovery is not None
        assert shard.recovery.torn_bytes == 28
        assert shard.status().count == 6


def test_an_incarnation_must_be_new(tmp_path: Path, random_block: BlockMaker) -> None:
    insert(make_shard(tmp_path, 3), random_block, range(2))
    with pytest.raises(ValueError, match="a new incarnation's begin at"):
        make_shard(tmp_path, 3)


def test_persisting_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="no folder"):
        ReplayShard(
            CONFIG, SCHEMA, shard=0, incarnation=0, capacity=9, seed=np.random.SeedSequence(0), folder=None
        )


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
    shard = make_shard(tmp_path / "journal", capacity=1000)
    insert(shard, random_block, range(1 if limit == 100 else 0))
    with file_size_limit(limit):
        insert(shard, random_block, range(1 if limit == 100 else 0, 20))
        error = shard.status().journal_error
        assert error is not None
        assert "no room for" in error
        assert "File too large" in error
        assert not seal(shard, tmp_path / "failed").segments
    # What was there before is whole: the part that did not fit is no torn record.
    back = make_shard(tmp_path / "journal", 1, 1000)
    assert back.recovery is not None
    assert (back.recovery.torn_bytes, back.recovery.damaged) == (0, ())
    rows = back.recovery.rows
    assert rows == (5 if limit == 100 else rows) < 100
    assert_same(contents(shard), contents(back), slice(0, rows))
    back.close()
    for path in segment_paths(tmp_path / "journal"):
        os.stat(path)
    # With room again, the next cut fills the gap, and the journal follows from there on.
    assert seal(shard, tmp_path / "cut").segments
    assert shard.status().journal_error is None
    insert(shard, random_block, range(20, 23))
    assert_same(contents(shard), contents(make_shard(tmp_path / "journal", 1, 1000)))


def test_a_full_disk_may_stop_the_run(tmp_path: Path, random_block: BlockMaker) -> None:
    shard = make_shard(tmp_path, config=dataclasses.replace(CONFIG, on_disk_full="stop"))
    with file_size_limit(2_000), pytest.raises(JournalFullError, match=r"no room for .* Free some space"):
        insert(shard, random_block, range(20))
