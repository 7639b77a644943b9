"""Fuzzes without atheris: mutates known inputs, without looking at coverage. It makes more of them a second."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from tests.fuzz import targets

__all__ = ["Finding", "fuzz", "mutate"]

_MAX_LENGTH = 600
_INTERESTING = (0, 1, 7, 8, 16, 127, 128, 129, 191, 192, 223, 224, 254, 255)


class Finding(Exception):
    """An input has found a fault.

    Attributes:
        data: the input.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data.hex())
        self.data = data


def mutate(data: bytes, known: Sequence[bytes], rng: random.Random) -> bytes:
    """Return an input that differs from ``data`` in a few places."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            out[at : at + 1] = bytes([rng.choice(_INTERESTING)])
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 4 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 5:
            other = rng.choice(known)
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.randrange(1, 33)]
        else:
            out[at : at + 4] = out[at : at + 4][::-1]
    return bytes(out[:_MAX_LENGTH])


def fuzz(target: str, known: Sequence[bytes], seconds: float, runs: int, seed: int) -> int:
    """Run mutated inputs of a target; return how many.

    Args:
        target: the name of the target.
        known: inputs to begin with.
        seconds: for how long.
        runs: how many inputs at most; -1 for no limit.
        seed: the same seed makes the same inputs.

    Raises:
        Finding: an input has found a fault, which is the cause of the exception.
    """
    rng, ends, count = random.Random(seed), time.monotonic() + seconds, 0
    known = list(known) or [b""]
    while count != runs and (count % 100 or time.monotonic() < ends):
        data = rng.randbytes(rng.randrange(200)) if rng.randrange(8) == 0 else mutate(rng.choice(known), known, rng)
        count += 1
        try:
            targets.run(target, data)
        except Exception as exc:
            raise Finding(data) from exc
    return count
