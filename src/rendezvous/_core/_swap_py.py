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
        seed: makes the delays repeatable; from the system's randomness unless given.

    Raises:
        ValueError: not ``0 < base <= cap``, or not finite.
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
        """Begin again with short delays."""
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
    """Change a shared value until no other writer came between.

    A lost race costs no read: what ``write`` returns then goes to ``change`` at once, which may find that nothing
    is left to do. If something is, the loop waits, without the GIL and never past the deadline, and reads anew,
    since what it saw before the pause is old.

    Args:
        read: returns the value and its fencing token, or None where there is no value.
        write: takes a value and the token it replaces (None: there must be no value yet); returns the value that
            is there then, its token, and whether it is the one written; None where there is no value any more.
        change: returns the value to write in place of the one given (None: there is none), or None for no change.
            It may be called more than once and must depend on its argument alone.
        backoff: the pauses between attempts.
        deadline: when to give up, on ``clock``; never unless given.
        clock: the time in seconds.
        sleep: waits for so many seconds.

    Returns:
        The value, its token, whether it was changed, and the number of writes tried.

    Raises:
        RendezvousTimeoutError: the deadline came first.
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
                    f"the state in etcd changed under each of {attempts} attempts to write it until the time was up"
                )
            delay = min(delay, left)
        sleep(delay)
        current = read()
