"""The store as users get it: each operation blocks until it is done."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from datetime import timedelta

from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store.operations import AsyncEtcdStore
from rendezvous.coordinated.store.options import DEFAULT_OPTIONS, StoreOptions
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.store import Key, Store

__all__ = ["EtcdStore"]


class EtcdStore(Store):
    """The key-value store of one round of a run, on etcd's v3 API.

    Any text or bytes may be a key. An operation reads, writes and watches only the keys that it is given. A request
    that does not reach etcd is sent again until the timeout; then RendezvousConnectionError is raised. A change is
    applied once even if its request is sent more than once. Threads may share a store.

    Args:
        client: the etcd cluster, on the background loop.
        keys: the keys of the run.
        number: the number of the round.
        lease: the lease of the store's keys; 0 for none.
        since: a revision of etcd at which the store was empty; 0 if it is not known.
        timeout: how long operations wait; 300 s by default, as torch's stores.
        options: the limits of requests.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        number: int,
        lease: int,
        since: int,
        timeout: timedelta | None = None,
        options: StoreOptions = DEFAULT_OPTIONS,
    ) -> None:
        # Two stores with one id would share idempotency keys, and each would skip changes of its own.
        client_id = uuid.uuid4().hex
        self._store = AsyncEtcdStore(client, keys, number, lease, since, client_id, random.Random(), options)
        if timeout is not None:
            self.set_timeout(timeout)

    def _seconds(self, timeout: timedelta | None = None) -> float:
        return (self.timeout if timeout is None else timeout).total_seconds()

    def set(self, key: Key, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        background.run(self._store.set(key, value, self._seconds()))

    def get(self, key: Key, timeout: timedelta | None = None) -> bytes:
        """See :meth:`Store.get`."""
        return self.multi_get([key], timeout)[0]

    def wait(self, keys: Sequence[Key], timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`."""
        background.run(self._store.wait(keys, self._seconds(timeout)))

    def check(self, keys: Sequence[Key]) -> bool:
        """See :meth:`Store.check`."""
        return background.run(self._store.check(keys, self._seconds()))

    def add(self, key: Key, num: int) -> int:
        """See :meth:`Store.add`. To add 1 takes one request, even if many nodes do so at the same time.

        Raises:
            RendezvousConnectionError: etcd could not be reached in time; the addition may have been applied, once.
            RendezvousTimeoutError: other nodes changed the number before each attempt.
            TypeError: ``num`` is not an integer.
            ValueError: the value under ``key`` is not a number, or ``num`` or the sum does not fit into 64 bits.
        """
        return background.run(self._store.add(key, num, self._seconds()))

    def compare_set(self, key: Key, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        return background.run(self._store.compare_set(key, expected_value, desired_value, self._seconds()))

    def append(self, key: Key, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        background.run(self._store.append(key, value, self._seconds()))

    def delete_key(self, key: Key) -> bool:
        """See :meth:`Store.delete_key`."""
        return background.run(self._store.delete_key(key, self._seconds()))

    def num_keys(self) -> int:
        """Return the number of keys in the store of this round."""
        return background.run(self._store.num_keys(self._seconds()))

    def list_keys(self) -> list[str]:
        """Return the keys in the store of this round, sorted by their bytes."""
        return background.run(self._store.list_keys(self._seconds()))

    def multi_get(self, keys: Sequence[Key], timeout: timedelta | None = None) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        return background.run(self._store.multi_get(keys, self._seconds(timeout)))

    def multi_set(self, keys: Sequence[Key], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        background.run(self._store.multi_set(keys, values, self._seconds()))
