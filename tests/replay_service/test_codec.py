"""The codec: round trip, refusal of everything malformed, and the documented test vector.

Also tests replay_service/block.py, whose invariants the codec checks.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service.block import TRANSITION_FIELDS, BlockSchema, FrameField, TransitionBlock
from replay_service.codec import ALIGNMENT_BYTES, BlockError, decode, encode

IMAGES = BlockSchema((FrameField("image", "|u1", (4, 3)), FrameField("mask", "|b1", ())), 4, 3)
SCHEMAS = st.builds(
    BlockSchema,
    st.lists(
        st.builds(
            FrameField,
            st.text(min_size=1, max_size=8),
            st.sampled_from(["|u1", "<f4", "|b1", "<i8", "<f2"]),
            st.lists(st.integers(1, 3), max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda field: field.name,
    ).map(tuple),
    st.integers(1, 4),
    st.integers(1, 5),
)


def _assert_equal(a: TransitionBlock, b: TransitionBlock) -> None:
    for field in dataclasses.fields(TransitionBlock):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "frames":
            assert x.keys() == y.keys()
            for name in x:
                assert x[name].dtype == y[name].dtype
                np.testing.assert_array_equal(x[name], y[name])
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y


@pytest.fixture(scope="module")
def encoded(random_block: Callable[..., TransitionBlock]) -> np.ndarray:
    return encode(random_block(IMAGES, np.random.default_rng(0), num_transitions=5, num_frames=9, sequence=3))


def _resealed(encoded: np.ndarray, change: Callable[[dict], None]) -> bytes:
    """The same body under a changed header, with right lengths and checksum."""
    old_header = struct.unpack_from("<I", encoded, 12)[0]
    header = msgpack.unpackb(encoded[24 : 24 + old_header].tobytes())
    body = encoded[-(-(24 + old_header) // 64) * 64 :].tobytes()
    change(header)
    packed = msgpack.packb(header)
    padding = bytes(-(24 + len(packed)) % 64)
    tail = struct.pack("<IQ", len(packed), len(body)) + packed + padding + body
    return encoded[:8].tobytes() + struct.pack("<I", zlib.crc32(tail)) + tail


@given(SCHEMAS, st.integers(0, 20), st.integers(2, 12), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_round_trip(
    random_block: Callable[..., TransitionBlock],
    schema: BlockSchema,
    transitions: int,
    frames: int,
    seed: int,
) -> None:
    block = random_block(
        schema, np.random.default_rng(seed), num_transitions=transitions, num_frames=frames, writer=seed
    )
    encoded = encode(block)
    _assert_equal(decode(encoded), block)
    _assert_equal(decode(encoded.tobytes(), expected_schema=schema), block)


def test_decoded_arrays_are_aligned_views(encoded: np.ndarray) -> None:
    block = decode(encoded)
    base = encoded.__array_interface__["data"][0]
    for array in (*block.frames.values(), *(getattr(block, name) for name, _ in TRANSITION_FIELDS)):
        assert np.shares_memory(array, encoded)
        assert (array.__array_interface__["data"][0] - base) % ALIGNMENT_BYTES == 0


def test_dtype_spellings_of_one_schema_agree(random_block: Callable[..., TransitionBlock]) -> None:
    loose = BlockSchema((FrameField("observation", "float32", (2,)),), 1, 1)
    strict = BlockSchema((FrameField("observation", "<f4", (2,)),), 1, 1)
    encoded = encode(random_block(loose, np.random.default_rng(0), num_transitions=2, num_frames=3))
    assert decode(encoded).schema == strict
    assert decode(encoded, expected_schema=loose).schema is loose


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_truncation_is_refused(encoded: np.ndarray, data: st.DataObject) -> None:
    with pytest.raises(BlockError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(BlockError):
        decode(np.append(encoded, np.zeros(data.draw(st.integers(1, 100)), np.uint8)))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_refused(encoded: np.ndarray, data: st.DataObject) -> None:
    broken = encoded.copy()
    broken[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BlockError):
        decode(broken)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BlockError):
        decode(data)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_headers_under_a_right_checksum_are_refused(header: bytes) -> None:
    tail = struct.pack("<IQ", len(header), 0) + header + bytes(-(24 + len(header)) % 64)
    with pytest.raises(BlockError):
        decode(b"QFTB" + struct.pack("<II", 1, zlib.crc32(tail)) + tail)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(
    key=st.sampled_from(
        ["schema", "stack", "n_step", "frame_fields", "field", "num_rows", "num_frames", "writer"]
    ),
    value=JSON,
)
@settings(max_examples=300, deadline=None)
def test_a_changed_header_is_refused_or_means_the_same_layout(
    encoded: np.ndarray, key: str, value: object
) -> None:
    def change(header: dict) -> None:
        match key:
            case "stack" | "n_step" | "frame_fields":
                header["schema"][key] = value
            case "field":
                header["schema"]["frame_fields"][0] = value
            case _:
                header[key] = value

    try:
        block = decode(_resealed(encoded, change))
    except BlockError:
        return
    # Only numbers that leave the layout as it was may pass.
    assert key in {"stack", "n_step", "writer"}
    assert type(value) is int
    assert block.num_transitions == 5


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda h: h.update(num_frames=2**62), id="frames"),
        pytest.param(lambda h: h.update(num_rows=2**62), id="transitions"),
        pytest.param(lambda h: h["schema"]["frame_fields"][0][2].append(2**30), id="shape"),
        pytest.param(lambda h: h["schema"]["frame_fields"][0].__setitem__(1, "|O"), id="objects"),
        pytest.param(lambda h: h["schema"]["frame_fields"][0].__setitem__(1, ">f4"), id="big endian"),
        pytest.param(lambda h: h["schema"]["frame_fields"][1].__setitem__(1, "bool"), id="other spelling"),
        pytest.param(lambda h: h["schema"]["frame_fields"][1].__setitem__(1, "zzz"), id="no dtype"),
        pytest.param(lambda h: h["schema"]["frame_fields"][1].__setitem__(0, "image"), id="name twice"),
        pytest.param(lambda h: h["schema"].update(stack=2**40), id="stack"),
        pytest.param(lambda h: h["schema"].update(frame_fields=[]), id="no fields"),
        pytest.param(lambda h: h.update(num_rows=True), id="bool"),
        pytest.param(lambda h: h.update(sequence=-1), id="negative"),
        pytest.param(lambda h: h.update(extra=1), id="unknown key"),
        pytest.param(lambda h: h.pop("writer"), id="missing key"),
    ],
)
def test_hostile_headers_are_refused_without_allocating(
    encoded: np.ndarray, change: Callable[[dict], None]
) -> None:
    hostile = _resealed(encoded, change)
    tracemalloc.start()
    with pytest.raises(BlockError):
        decode(hostile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_lengths_under_a_right_checksum_are_refused(encoded: np.ndarray, change: int) -> None:
    tail = encoded[12:].tobytes() + bytes(change) if change > 0 else encoded[12:change].tobytes()
    with pytest.raises(BlockError, match="lengths make"):
        decode(encoded[:8].tobytes() + struct.pack("<I", zlib.crc32(tail)) + tail)


def test_limits_version_magic_and_schema(encoded: np.ndarray) -> None:
    with pytest.raises(BlockError, match="at most"):
        decode(encoded, max_body_bytes=100)
    with pytest.raises(BlockError, match="version 2"):
        decode(encoded[:4].tobytes() + struct.pack("<I", 2) + encoded[8:].tobytes())
    with pytest.raises(BlockError, match="not a block"):
        decode(b"PK\3\4" + encoded[4:].tobytes())
    with pytest.raises(BlockError, match="checksum"):
        decode(encoded[:8].tobytes() + bytes(4) + encoded[12:].tobytes())
    for other in ({"stack": 3}, {"n_step": 4}, {"frame_fields": IMAGES.frame_fields[:1]}):
        with pytest.raises(BlockError, match="schema differs"):
            decode(encoded, expected_schema=dataclasses.replace(IMAGES, **other))


LOWEST, HIGHEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("priority", np.nan, "priority"),
        ("priority", -1.0, "priority"),
        ("priority", np.inf, "priority"),
        ("reward", np.nan, "reward"),
        ("discount", np.inf, "discount"),
        ("one_step_reward", -np.inf, "one_step_reward"),
        ("end", 4, "end"),
        ("first_frame", -1, "first_frame"),
        ("first_frame", 5, "first_frame"),
        ("first_frame", LOWEST, "first_frame"),
        ("obs_frame", LOWEST, "first_frame"),
        ("obs_frame", 6, "obs_frame < next_frame"),
        ("next_frame", 4, "obs_frame < next_frame"),
        ("next_frame", 9, "obs_frame < next_frame"),
        ("next_frame", LOWEST, "obs_frame < next_frame"),
        ("next_frame", HIGHEST, "obs_frame < next_frame"),
        ("next_frame", 8, "n_step"),
    ],
)
def test_bad_values_are_refused(
    random_block: Callable[..., TransitionBlock], field: str, value: float, message: str
) -> None:
    block = random_block(IMAGES, np.random.default_rng(0), num_transitions=3, num_frames=9)
    block.first_frame[1], block.obs_frame[1], block.next_frame[1] = 2, 4, 6
    decode(encode(block))
    getattr(block, field)[1] = value
    with pytest.raises(BlockError, match=message):
        decode(encode(block))


def test_encode_refuses_other_shapes_and_dtypes(random_block: Callable[..., TransitionBlock]) -> None:
    block = random_block(IMAGES, np.random.default_rng(0), num_transitions=3, num_frames=9)
    bad = [
        {"reward": block.reward.astype(np.float64)},
        {"reward": block.reward[:, None]},
        {"reward": block.reward[:2]},
        {"frames": {"image": block.frames["image"]}},
        {"frames": block.frames | {"mask": block.frames["mask"][:-1]}},
        {"schema": BlockSchema((FrameField("image", "O", ()),), 1, 1)},
    ]
    for change in bad:
        with pytest.raises(BlockError):
            encode(dataclasses.replace(block, **change))


def test_documented_vector() -> None:
    page = (Path(__file__).parents[2] / "docs" / "block-format.md").read_text(encoding="utf-8")
    match = re.search(r"```hex\n(.*?)```", page, re.DOTALL)
    assert match is not None
    vector = bytes.fromhex(match[1])
    block = decode(vector)
    assert block.schema == BlockSchema((FrameField("observation", "<f4", (2,)),), 1, 1)
    assert (block.writer, block.incarnation, block.sequence, block.env_steps) == (7, 1, 42, 2)
    assert block.frames["observation"].tolist() == [[0.0, 1.0], [0.5, -1.0], [2.0, 3.0]]
    transitions = {name: getattr(block, name).tolist() for name, _ in TRANSITION_FIELDS}
    assert transitions == {
        "action": [1, 0],
        "reward": [1.0, -0.5],
        "discount": [0.75, 0.0],
        "one_step_reward": [1.0, -0.5],
        "end": [0, 1],
        "policy_version": [5, 6],
        "obs_frame": [0, 1],
        "next_frame": [1, 2],
        "first_frame": [0, 0],
        "priority": [0.25, 2.0],
    }
    assert encode(block).tobytes() == vector
