"""Checked integers, varints (LEB128) and checksums: the pure twin of ``src/_core/wire.pxd``."""

from __future__ import annotations

from zlib import crc32

__all__ = [
    "CHECKSUM",
    "OVERLONG",
    "TRUNCATED",
    "checksum_holds",
    "integer",
    "read_varint",
    "with_checksum",
    "write_varint",
]

CHECKSUM = 4
"""Bytes of a checksum."""

TRUNCATED, OVERLONG = -1, -2
"""What ``read_varint`` returns instead of a value."""

_MAX_VARINT = 9


def integer(value: object, name: str, largest: int, least: int = 0) -> int:
    """Return ``value``, an int from ``least`` to ``largest``; else raise TypeError or ValueError."""
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not least <= value <= largest:
        raise ValueError(f"{name} must be from {least} to {largest}, not {value}")
    return value


def write_varint(out: bytearray, value: int) -> None:
    """Append ``value``, which is not negative."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read the varint at ``at``, all of it before ``end``.

    Returns:
        Its value, or TRUNCATED, or OVERLONG if it has more than nine bytes; and the position after it.
    """
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift == 7 * _MAX_VARINT:
            return OVERLONG, at
    return TRUNCATED, at


def with_checksum(body: bytearray) -> bytes:
    """Return ``body`` and its checksum."""
    return bytes(body) + crc32(body).to_bytes(CHECKSUM, "little")


def checksum_holds(data: bytes) -> bool:
    """Whether the last CHECKSUM bytes of ``data``, which has at least as many, are the checksum of the rest."""
    return crc32(data[:-CHECKSUM]) == int.from_bytes(data[-CHECKSUM:], "little")
