"""A block as bytes, on the wire and on disk: one uint8 array (docs/block-format.md).

Owns the layout and the checks of untrusted bytes; must not import anything but numpy, msgpack, `block` and
`extremes`.
"""

import math
import struct
import zlib
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from replay_service.block import (
    TERMINATED,
    TRANSITION_FIELDS,
    TRUNCATED,
    BlockSchema,
    FrameField,
    TransitionBlock,
)
from replay_service.extremes import largest, least

MAGIC = b"QFTB"
VERSION = 1
ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 30
MAX_STACK = 255
MAX_N_STEP = 65_535
FRAME_DTYPES = frozenset(
    {"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"},
)

# Magic, version, CRC-32 of all bytes after the CRC, header bytes, body bytes.
_PREFIX = struct.Struct("<4sIIIQ")
_CHECKED_FROM = 12
# Header key -> attribute of TransitionBlock. The format's name for R is older than the attribute's.
_COUNTERS = {
    "writer": "writer",
    "incarnation": "incarnation",
    "sequence": "sequence",
    "env_steps": "env_steps",
    "num_rows": "num_transitions",
    "num_frames": "num_frames",
}
_HEADER_KEYS = frozenset({"schema", *_COUNTERS})
_SCHEMA_KEYS = frozenset({"frame_fields", "stack", "n_step"})


class BlockError(ValueError):
    """A block, or the bytes of one, breaks the format."""


def encode(block: TransitionBlock) -> np.ndarray:
    """The block as one uint8 array [bytes]; frames and transitions are copied once.

    Raises BlockError where a dtype or shape differs from the schema. `decode` checks the values.
    """
    counters = {key: getattr(block, attribute) for key, attribute in _COUNTERS.items()}
    header_bytes = msgpack.packb({"schema": _wire_schema(block.schema), **counters})
    if len(header_bytes) > MAX_HEADER_BYTES:
        raise BlockError(f"header of {len(header_bytes)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    body_start = _aligned(_PREFIX.size + len(header_bytes))
    layout, body_bytes = _layout(block.schema, block.num_transitions, block.num_frames)
    # Zeroed padding, so that equal blocks give equal bytes.
    out = np.zeros(body_start + body_bytes, np.uint8)
    out[_PREFIX.size : _PREFIX.size + len(header_bytes)] = np.frombuffer(header_bytes, np.uint8)
    arrays = [block.frames.get(field.name) for field in block.schema.frame_fields]
    arrays += [getattr(block, name) for name, _ in TRANSITION_FIELDS]
    for (name, dtype, shape, offset), array in zip(layout, arrays, strict=True):
        if array is None or array.dtype != dtype or array.shape != shape:
            got = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise BlockError(f"field {name!r} is {got}; the schema says {dtype} {shape}")
        np.ndarray(shape, dtype, buffer=out, offset=body_start + offset)[...] = array
    _PREFIX.pack_into(out.data, 0, MAGIC, VERSION, 0, len(header_bytes), body_bytes)
    struct.pack_into("<I", out.data, 8, zlib.crc32(out.data[_CHECKED_FROM:]))
    return out


def decode(
    buffer: np.ndarray | bytes | memoryview,
    *,
    expected_schema: BlockSchema | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> TransitionBlock:
    """The block in `buffer`; its arrays are views into the buffer, nothing is copied.

    Raises BlockError for bytes that are truncated, too long, altered or of another version or schema, and for
    values that break the invariants of TransitionBlock. Sizes are checked against the buffer's length before
    any array is made.
    """
    data = np.frombuffer(buffer, np.uint8)
    header_end, body_start, body_bytes = _check_prefix(data, max_body_bytes)
    try:
        header = msgpack.unpackb(data[_PREFIX.size : header_end])
    except (ValueError, msgpack.UnpackException) as error:
        raise BlockError(f"header is not msgpack: {error}") from error
    if not isinstance(header, dict) or header.keys() != _HEADER_KEYS:
        raise BlockError(f"header is not a map with the keys {sorted(_HEADER_KEYS)}")
    for name in _COUNTERS:
        if type(header[name]) is not int or not 0 <= header[name] < 1 << 63:
            raise BlockError(
                f"header field {name!r} is {header[name]!r}; it must be an integer from 0 to 2^63 - 1"
            )
    schema = _read_schema(header["schema"], expected_schema)
    num_transitions, num_frames = header["num_rows"], header["num_frames"]
    layout, expected_bytes = _layout(schema, num_transitions, num_frames)
    if body_bytes != expected_bytes:
        raise BlockError(
            f"body of {body_bytes} bytes; {num_transitions} transitions and {num_frames} frames "
            f"take {expected_bytes}"
        )
    arrays = {
        name: np.ndarray(shape, dtype, buffer=data, offset=body_start + offset)
        for name, dtype, shape, offset in layout
    }
    block = TransitionBlock(
        schema=schema,
        writer=header["writer"],
        incarnation=header["incarnation"],
        sequence=header["sequence"],
        env_steps=header["env_steps"],
        frames={field.name: arrays["frames." + field.name] for field in schema.frame_fields},
        **{name: arrays[name] for name, _ in TRANSITION_FIELDS},
    )
    if num_transitions:
        _check_transitions(block)
    return block


def _check_prefix(data: np.ndarray, max_body_bytes: int) -> tuple[int, int, int]:
    """Checks prefix, lengths and checksum; returns header end, body start and body length in bytes."""
    if len(data) < _PREFIX.size:
        raise BlockError(f"{len(data)} bytes are too short for a block")
    magic, version, checksum, header_bytes, body_bytes = _PREFIX.unpack_from(data.data)
    if magic != MAGIC:
        raise BlockError(f"starts with {magic!r}, not {MAGIC!r}: not a block")
    if version != VERSION:
        raise BlockError(f"format version {version}; this program reads version {VERSION}")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > max_body_bytes:
        raise BlockError(
            f"header of {header_bytes} and body of {body_bytes} bytes; "
            f"at most {MAX_HEADER_BYTES} and {max_body_bytes} are allowed"
        )
    header_end = _PREFIX.size + header_bytes
    body_start = _aligned(header_end)
    if len(data) != body_start + body_bytes:
        raise BlockError(f"{len(data)} bytes; the block's own lengths make {body_start + body_bytes} bytes")
    if zlib.crc32(data.data[_CHECKED_FROM:]) != checksum:
        raise BlockError("checksum differs: the block was altered after encoding")
    return header_end, body_start, body_bytes


def _check_transitions(block: TransitionBlock) -> None:
    """Raises BlockError if values break the invariants of TransitionBlock; the block has transitions."""
    first, obs, following = block.first_frame, block.obs_frame, block.next_frame
    # The order matters: the difference of two int32 indices may wrap around unless both lie in [0, F).
    rules = (
        (least(first) >= 0 and least(first <= obs), "0 <= first_frame <= obs_frame"),
        (least(obs < following) and largest(following) < block.num_frames, "obs_frame < next_frame < frames"),
        (largest(following - obs) <= block.schema.n_step, "next_frame - obs_frame <= n_step"),
        (largest(block.end) <= TERMINATED | TRUNCATED, "end has only the bits terminated and truncated"),
        # NaN makes the minimum NaN, which fails the comparison.
        (least(block.priority) >= 0.0 and largest(block.priority) < math.inf, "priority is finite and >= 0"),
        (least(np.isfinite(block.reward)), "reward is finite"),
        (least(np.isfinite(block.discount)), "discount is finite"),
        (least(np.isfinite(block.one_step_reward)), "one_step_reward is finite"),
    )
    for holds, rule in rules:
        if not holds:
            raise BlockError(f"a transition breaks the rule: {rule}")


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@lru_cache(maxsize=256)
def _layout(
    schema: BlockSchema, num_transitions: int, num_frames: int
) -> tuple[tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...], int]:
    """Name, dtype, shape and body offset of each buffer in wire order; and the body's length in bytes.

    Computed in Python's integers, which no count in a hostile header can overflow.
    """
    layout = []
    end = 0
    for name, dtype, shape, item_bytes, per_frame in _columns(schema):
        count = num_frames if per_frame else num_transitions
        offset = _aligned(end)
        layout.append((name, dtype, (count, *shape), offset))
        end = offset + count * item_bytes
    return tuple(layout), end


@lru_cache(maxsize=16)
def _columns(schema: BlockSchema) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, bool], ...]:
    """Each buffer in wire order: name, dtype, shape and bytes of one item, and whether items are frames."""
    frames = [
        ("frames." + field.name, np.dtype(_wire_dtype(field)), field.shape, field.bytes_per_frame, True)
        for field in schema.frame_fields
    ]
    transitions = [
        (name, np.dtype(dtype), (), np.dtype(dtype).itemsize, False) for name, dtype in TRANSITION_FIELDS
    ]
    return (*frames, *transitions)


@lru_cache(maxsize=16)
def _wire_schema(schema: BlockSchema) -> dict[str, Any]:
    """The schema in types of msgpack, with dtypes in their explicit little-endian form."""
    fields = [[field.name, _wire_dtype(field), list(field.shape)] for field in schema.frame_fields]
    return {"frame_fields": fields, "stack": schema.stack, "n_step": schema.n_step}


def _wire_dtype(field: FrameField) -> str:
    dtype = np.dtype(field.dtype).newbyteorder("<").str
    if dtype not in FRAME_DTYPES:
        raise BlockError(
            f"frame field {field.name!r} has dtype {field.dtype!r}; only numbers and bool are allowed"
        )
    return dtype


def _read_schema(wire: Any, expected: BlockSchema | None) -> BlockSchema:
    """The schema in a header: `expected`, if that is given and equal. Raises BlockError."""
    if expected is not None:
        if wire != _wire_schema(expected):
            raise BlockError(
                f"schema differs: the block has {wire!r}, the run has {_wire_schema(expected)!r}"
            )
        return expected
    if not isinstance(wire, dict) or wire.keys() != _SCHEMA_KEYS:
        raise BlockError(f"schema is not a map with the keys {sorted(_SCHEMA_KEYS)}")
    for name, limit in (("stack", MAX_STACK), ("n_step", MAX_N_STEP)):
        if type(wire[name]) is not int or not 1 <= wire[name] <= limit:
            raise BlockError(f"schema's {name} is {wire[name]!r}; it must be an integer from 1 to {limit}")
    if not isinstance(wire["frame_fields"], list) or not wire["frame_fields"]:
        raise BlockError("schema has no frame fields")
    fields = tuple(_read_field(field) for field in wire["frame_fields"])
    if len({field.name for field in fields}) != len(fields):
        raise BlockError("schema names a frame field twice")
    return BlockSchema(fields, wire["stack"], wire["n_step"])


def _read_field(wire: Any) -> FrameField:
    match wire:
        case [str(name), str(dtype), list(shape)] if dtype in FRAME_DTYPES and len(shape) <= 8:
            if all(type(size) is int and 1 <= size < 1 << 31 for size in shape):
                return FrameField(name, dtype, tuple(shape))
    raise BlockError(f"frame field {wire!r} is not [name, dtype, shape] with an allowed dtype")
