"""The compare-and-swap loop and its backoff. The pure twin of ``src/_core/swap.pyx``."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar, final

from rendezvous.api import RendezvousTimeoutError

__all__ = ["Backoff", "compare_and_swap"]

_T = TypeVar("_T")


@final
class Backoff:
    """Delays in seconds with decorrelated jitter: each is drawn from ``base`` to three times the one before.

    Args:
        base: the least delay, in seconds.
        cap: the greatest delay, in seconds.
        seed: the same seed always gives the same delays. None, the default, takes a random one.

    Raises:
        ValueError: ``base`` and ``cap`` are not finite, or not ``0 < base <= cap``.
    """

    def __init__(self, base: float = 0.005, cap: float = 1.0, seed: int | None = None) -> None:
        self._base = float(base)
        self._cap = float(cap)
        if not 0 < self._base <= self._cap < float("inf"):
            raise ValueError(f"a backoff needs 0 < base <= cap, not base {base} and cap {cap}")
        self._last = self._base
        self._random = random.Random(seed).random

    def next(self) -> float:
        """Return the next delay, in seconds."""
        delay = self._base + (3 * self._last - self._base) * self._random()
        self._last = delay if delay < self._cap else self._cap
        return self._last

    def reset(self) -> None:
        """Start again as if no delay had been drawn yet."""
        self._last = self._base


def compare_and_swap(
    read: Callable[[], tuple[_T, Any] | None],
    write: Callable[[_T, Any], tuple[_T, Any, bool] | None],
    change: Callable[[_T | None], _T | None],
    backoff: Backoff,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[_T | None, Any, bool, int]:
    """Read a shared value, change it, and write it if it is still the same; repeat until a write succeeds.

    If another writer was first, ``write`` returns its value, and ``change`` is called with that at once: if nothing
    is left to change, the loop ends without another read. Otherwise it waits, without the GIL and never past the
    deadline, and reads the value again, which may have changed during the wait.

    Args:
        read: returns the value and its token, or None if there is no value.
        write: takes a value and the token of the value that it replaces (None: there must be no value yet). Returns
            the value that is stored afterwards, its token, and whether it is the one that was written; or None if
            there is no value any more.
        change: takes the value (None: there is none) and returns the value to write, or None for no change. It may
            be called more than once, and must depend on its argument alone.
        backoff: the delays between attempts.
        deadline: the time on ``clock`` at which to give up. None, the default, means never.
        clock: returns the time in seconds.
        sleep: waits for a number of seconds.

    Returns:
        The value, its token, whether it was changed, and the number of attempts to write.

    Raises:
        RendezvousTimeoutError: the deadline has passed.
    """
    attempts = 0
    current = read()
    while True:
        value, token = (None, None) if current is None else current
        wanted = change(value)
        if wanted is None:
            return value, token, False, attempts
        attempts += 1
        response = write(wanted, token)
        if response is not None:
            value, token, swapped = response
            if swapped:
                return value, token, True, attempts
            if change(value) is None:
                return value, token, False, attempts
        delay = backoff.next()
        if deadline is not None:
            left = deadline - clock()
            if left <= 0:
                raise RendezvousTimeoutError(
                    f"other nodes changed the state in etcd before each of {attempts} attempts to write it, until the "
                    "deadline"
                )
            delay = min(delay, left)
        sleep(delay)
        current = read()
