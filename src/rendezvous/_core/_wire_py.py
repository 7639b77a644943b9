"""Checked integers, varints (LEB128) and checksums: the pure twin of ``src/_core/wire.pxd``."""

from __future__ import annotations

from zlib import crc32

from rendezvous.api import RendezvousStateError

__all__ = ["CHECKSUM", "checksum_holds", "integer", "read_varint", "with_checksum", "write_varint"]

CHECKSUM = 4
"""Bytes of a checksum."""

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


def read_varint(data: bytes, at: int, end: int, largest: int, whole: str, name: str) -> tuple[int, int]:
    """Return the varint at ``at``, and the position after it.

    Args:
        data: the bytes.
        at: where the varint begins.
        end: what it must not reach beyond.
        largest: the greatest value that it may have.
        whole: what is read, for the errors: "state".
        name: which part of that it is, for the errors: "pid".

    Raises:
        RendezvousStateError: it is not all there, is too long, or has too great a value.
    """
    # Nearly all varints are of one byte.
    if at < end and data[at] < 0x80 and data[at] <= largest:
        return data[at], at + 1
    value = 0
    for shift in range(0, 7 * _MAX_VARINT, 7):
        if at >= end:
            raise RendezvousStateError(f"the {whole} ends within its {name}: it is malformed")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > largest:
                raise RendezvousStateError(f"the {whole} has a {name} of {value}, more than {largest}")
            return value, at
    raise RendezvousStateError(f"the {whole} has an overlong {name}")


def with_checksum(body: bytearray) -> bytes:
    """Return ``body`` and its checksum."""
    return bytes(body) + crc32(body).to_bytes(CHECKSUM, "little")


def checksum_holds(data: bytes) -> bool:
    """Whether the last CHECKSUM bytes of ``data``, which has at least as many, are the checksum of the rest."""
    return crc32(data[:-CHECKSUM]) == int.from_bytes(data[-CHECKSUM:], "little")
