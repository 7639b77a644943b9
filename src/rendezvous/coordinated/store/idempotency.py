"""Idempotency keys: a change is applied once, even if its request is sent or applied more than once.

A request whose answer is lost is sent again, although etcd may have applied it. To set a value twice changes nothing;
to add, append, compare-and-set or delete twice does. Such a change also writes an idempotency key, in the same
transaction, with a number that grows with each change. The transaction is applied only if the stored number is lower.
A request that etcd applies late finds a higher number and changes nothing.

A store has one idempotency key, a *slot*, for each change that is under way at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rendezvous.etcd.v3.operations import Condition, Operation, compare, put_op

__all__ = ["IdempotencyKey", "IdempotencyKeys"]


@dataclass
class IdempotencyKey:
    """The etcd key that stores the number of the last change.

    Attributes:
        key: the etcd key.
        number: the number of the change that is under way.
    """

    key: bytes
    number: int = 1

    @property
    def applied(self) -> Condition:
        """The condition that the change has been applied."""
        return compare(self.key, "value", b"%016x" % (self.number - 1), "GREATER")

    def put(self, lease: int) -> Operation:
        """Return the operation that marks the change as applied."""
        return put_op(self.key, b"%016x" % self.number, lease)


class IdempotencyKeys:
    """The idempotency keys of one store.

    Args:
        prefix: of the etcd keys; no other store uses it.
    """

    def __init__(self, prefix: bytes) -> None:
        self._free: list[IdempotencyKey] = []
        self._new = (IdempotencyKey(prefix + b"%d" % slot) for slot in itertools.count())

    @contextmanager
    def use(self) -> Iterator[IdempotencyKey]:
        """Use an idempotency key for one change."""
        key = self._free.pop() if self._free else next(self._new)
        try:
            yield key
        finally:
            key.number += 1
            self._free.append(key)
