"""How long a call takes in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def least(call: Callable[[], Any], number: int) -> float:
    """Return the least mean time of ``number`` calls over seven runs, in microseconds."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(number):
            call()
        times.append((time.perf_counter() - start) / number * 1e6)
    return min(times)
