# cython: language_level=3, auto_pickle=False
"""The compare-and-swap loop and its backoff. ``_swap_py.py`` is its pure twin and documents the arguments."""

import random
import time

cimport cython
from libc.math cimport isfinite

from rendezvous.api import RendezvousTimeoutError

__all__ = ["Backoff", "compare_and_swap"]


@cython.final
cdef class Backoff:
    """Delays in seconds with decorrelated jitter: each is drawn from ``base`` to three times the one before."""

    cdef double base
    cdef double cap
    cdef double last
    cdef object random

    def __init__(self, base=0.005, cap=1.0, seed=None):
        self.base = float(base)
        self.cap = float(cap)
        if not (0 < self.base <= self.cap and isfinite(self.cap)):
            raise ValueError(f"a backoff needs 0 < base <= cap, not base {base} and cap {cap}")
        self.last = self.base
        self.random = random.Random(seed).random

    def next(self):
        """Return the next delay, in seconds."""
        cdef double delay = self.base + (3 * self.last - self.base) * <double> self.random()
        self.last = delay if delay < self.cap else self.cap
        return self.last

    def reset(self):
        """Start again as if no delay had been drawn yet."""
        self.last = self.base


def compare_and_swap(read, write, change, Backoff backoff not None, deadline=None, clock=time.monotonic,
                     sleep=time.sleep):
    """Read, change and write a shared value until a write succeeds; return (value, token, changed, attempts)."""
    cdef Py_ssize_t attempts = 0
    cdef double delay, left
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
        # time.sleep() releases the GIL and lets signal handlers run, which a sleep in C would have to do itself.
        sleep(delay)
        current = read()
