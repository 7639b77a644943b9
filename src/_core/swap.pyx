# cython: language_level=3, auto_pickle=False
"""The compare-and-swap loop and its backoff. ``_swap_py`` is its pure twin and documents the arguments."""

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
        """Begin again with short delays."""
        self.last = self.base


def compare_and_swap(read, write, change, Backoff backoff not None, deadline=None, clock=time.monotonic,
                     sleep=time.sleep):
    """Change a shared value until no other writer came between; returns (value, token, changed, attempts)."""
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
                    f"the state in etcd changed under each of {attempts} attempts to write it until the time was up"
                )
            delay = min(delay, left)
        # time.sleep() lets other threads run and answers signals.
        sleep(delay)
        current = read()
