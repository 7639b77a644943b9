"""What the pure twins share: checked integers, and varints (LEB128) as they are written."""

from __future__ import annotations

__all__ = ["integer", "write_varint"]


def integer(value: object, name: str, largest: int, least: int = 0) -> int:
    """Return ``value``, an int from ``least`` to ``largest``; raise TypeError or ValueError for anything else."""
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not least <= value <= largest:
        raise ValueError(f"{name} must be from {least} to {largest}, not {value}")
    return value


def write_varint(out: bytearray, value: int) -> None:
    """Append ``value``."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
