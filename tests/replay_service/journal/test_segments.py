"""The format of segments, read by a shard that recovers: torn ends, altered bits, any bytes.

Tests replay_service/journal/delivered.py, too: its state is packed into records.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from qfleet_journal import BlockMaker, insert, make_shard

from replay_service.journal.delivered import Delivered
from replay_service.journal.segments import (
    JournalError,
    KeyRun,
    pack_delivery,
    pack_key_runs,
    segment_paths,
    unpack_delivery,
    unpack_key_runs,
    unpack_priorities,
)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory, random_block: BlockMaker) -> tuple[str, bytes, list]:
    """Name and bytes of a segment of three blocks of two transitions; where each block's record ends."""
    folder = tmp_path_factory.mktemp("journal")
    shard = make_shard(folder)
    ends = []
    for sequence in range(3):
        insert(shard, random_block, range(sequence, sequence + 1), count=2)
        (path,) = segment_paths(folder)
        ends.append(path.stat().st_size)
    shard.close()
    return path.name, path.read_bytes(), ends


def test_a_torn_tail_is_removed_wherever_it_is_torn(
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
        # What was removed is no damage later on, when the file is not the last any more.
        insert(shard, random_block, range(whole, whole + 1), count=2)
        later = make_shard(folder, 2)
        assert later.recovery is not None
        assert later.status().count == 2 * whole + 2
        assert (later.recovery.torn_bytes, later.recovery.damaged) == (0, ())
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


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_a_length_that_is_a_lie_allocates_nothing(
    tmp_path: Path, one_file: tuple[str, bytes, list], length: int
) -> None:
    name, good, _ = one_file
    head = struct.pack("<4sQQI", b"PRIO", 0, length, zlib.crc32(b""))
    (tmp_path / name).write_bytes(good + head + struct.pack("<I", zlib.crc32(head)))
    shard = make_shard(tmp_path, 1)
    assert shard.recovery is not None
    assert shard.recovery.torn_bytes == 28
    assert shard.status().count == 6


def test_delivery_and_keys_are_read_as_they_were_written() -> None:
    delivered = Delivered({7: (1, 43), 8: (0, 0)}, 1 << 40, 12)
    assert unpack_delivery(pack_delivery(delivered)) == delivered
    runs = (KeyRun(0, 1 << 40, 3), KeyRun(9, (1 << 40) + 9, 1))
    assert unpack_key_runs(pack_key_runs(runs)) == runs


WRITERS = {"writers": [[1, 0, 5]], "inserted_rows_total": 3, "env_steps_total": 4}


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"writers": []},
        WRITERS | {"writers": [[1, 0]]},
        WRITERS | {"writers": ["abc"]},
        WRITERS | {"writers": [[[], 0, 5]]},
        WRITERS | {"writers": [[1, 0, True]]},
        WRITERS | {"inserted_rows_total": -1},
        WRITERS | {"env_steps_total": 1.5},
        WRITERS | {"env_steps_total": 1 << 63},
    ],
    ids=str,
)
def test_a_malformed_delivery_is_refused(state: object) -> None:
    import msgpack

    assert unpack_delivery(np.frombuffer(msgpack.packb(WRITERS), np.uint8)) == Delivered({1: (0, 5)}, 3, 4)
    with pytest.raises(JournalError, match="a delivery record"):
        unpack_delivery(np.frombuffer(msgpack.packb(state), np.uint8))
    with pytest.raises(JournalError, match="a delivery record"):
        unpack_delivery(np.frombuffer(b"\xc1", np.uint8))


def test_malformed_keys_and_priorities_are_refused() -> None:
    for runs in ([KeyRun(0, 0, 0)], [KeyRun(-1, 0, 1)], [KeyRun(0, -1, 1)]):
        with pytest.raises(JournalError, match="negative or empty"):
            unpack_key_runs(pack_key_runs(runs))
    with pytest.raises(JournalError, match="not triples"):
        unpack_key_runs(np.zeros(23, np.uint8))
    for priority in (-1.0, np.nan, np.inf):
        with pytest.raises(JournalError, match="a priority is"):
            unpack_priorities(np.array([0.0, priority], "<f4").view(np.uint8))
    with pytest.raises(JournalError, match="not float32"):
        unpack_priorities(np.zeros(5, np.uint8))
