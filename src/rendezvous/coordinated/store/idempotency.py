"""Idempotency keys: a change is applied once, even if its request is sent or applied more than once.

A request whose answer is lost is sent again, although etcd may have applied it, or may apply it later: even after the
operation has ended and other nodes have changed the key again. So each transaction of a change also writes an
idempotency key, with a number that grows with each transaction. It is carried out only if the stored number is lower.
A request that etcd applies late finds its own number or a higher one, and changes nothing. This needs the idempotency
key to be written also if a condition of the change does not hold; the key says whether the change was made.

A store has one idempotency key, a *slot*, for each change that is under way at the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rendezvous.api import RendezvousStateError
from rendezvous.etcd.v3.operations import Condition, KeyValue, Operation, compare, put_op
from rendezvous.store import quoted_key
from rendezvous.utils import quoted

__all__ = ["IdempotencyKey", "IdempotencyKeys", "change_was_made"]


_MADE, _NOT_MADE = b"+", b"-"
_AFTER_ALL = b"~"  # sorts behind both


@dataclass
class IdempotencyKey:
    """The etcd key that stores the number of the last transaction.

    Attributes:
        key: the etcd key.
        number: the number of the transaction that is under way, or else of the next one.
    """

    key: bytes
    number: int = 1

    @property
    def carried_out(self) -> Condition:
        """The condition that the transaction has been carried out."""
        return compare(self.key, "value", b"%016x" % (self.number - 1) + _AFTER_ALL, "GREATER")

    def put(self, lease: int, made: bool = True) -> Operation:
        """Return the operation that marks the transaction as carried out, and says whether the change was made."""
        return put_op(self.key, b"%016x" % self.number + (_MADE if made else _NOT_MADE), lease)

    def check(self, mark: KeyValue) -> None:
        """Check that this store wrote what is stored. Raises RendezvousStateError."""
        if not mark.value.startswith(b"%016x" % self.number):
            raise RendezvousStateError(
                f"the etcd key {quoted_key(self.key)} contains {quoted(mark.value)}, which this store did not write: "
                f"another program wrote it, and the change is not applied"
            )


def change_was_made(mark: bytes) -> bool:
    """Return what :meth:`IdempotencyKey.put` was told, by what is stored under the key."""
    return mark.endswith(_MADE)


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
            self._free.append(key)
