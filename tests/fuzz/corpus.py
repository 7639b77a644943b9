"""The inputs in the repository: a file for each target, an input in hexadecimal digits in each line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["inputs", "write"]

_FOLDER = Path(__file__).parent / "inputs"


def inputs(target: str) -> list[bytes]:
    """Return the inputs of a target."""
    path = _FOLDER / f"{target}.txt"
    lines = path.read_text().split("\n") if path.exists() else []
    return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]


def write(target: str, found: Iterable[bytes]) -> None:
    """Write the inputs of a target. Lines that begin with ``#``, and what follows the last of them, are kept."""
    path = _FOLDER / f"{target}.txt"
    old = path.read_text().split("\n") if path.exists() else []
    last = max((number for number, line in enumerate(old) if line.startswith("#")), default=len(old))
    path.write_text("\n".join([data.hex() for data in found] + old[last:]).rstrip("\n") + "\n")
