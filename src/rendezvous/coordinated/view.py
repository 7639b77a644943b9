"""What a node knows of its run: the last heard value of each key under ``ctl/``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.records import Bootstrap, Closed, Keys, RoundRecord
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue

__all__ = ["Leader", "View"]

logger = logging.getLogger(__name__)


class Leader(NamedTuple):
    """The coordinator: its node id, and the fencing token of its term."""

    node_id: int
    fence: int


class View:
    """The records under ``ctl/``, each as of the newest revision heard of. Hearing twice, or late, changes nothing.

    Args:
        keys: the keys of the run.
        on_change: called after each change.
    """

    def __init__(self, keys: Keys, on_change: Callable[[], None]) -> None:
        self._keys = keys
        self._on_change = on_change
        self._revisions: dict[bytes, int] = {}
        self._present: dict[bytes, None] = {}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self.record: RoundRecord | None = None
        self.record_revision = 0
        self.run_lease = 0
        self.leader: Leader | None = None
        self.bootstrap: Bootstrap | None = None
        self.closed: Closed | None = None
        self.synced = False
        """Whether what is under ``ctl/`` was ever read: until then, what is not known may still be there."""
        self.trouble: RendezvousStateError | None = None
        """Why the newest round record cannot be read."""

    @property
    def bootstrap_revision(self) -> int:
        """The revision of ``ctl/bootstrap`` as last heard; 0 where it is not there."""
        return 0 if self.bootstrap is None else self._revisions[self._keys.bootstrap]

    def receive(self, events: Iterable[Event]) -> None:
        """Take in changes."""
        changed = False
        for event in events:
            kv = event.kv
            changed |= self._take(kv.key, kv, gone=event.type == DELETE)
        if changed:
            self.wake()

    def update(self, found: Iterable[KeyValue]) -> None:
        """Take in some keys, as they were read; nothing follows for the others."""
        changed = False
        for kv in found:
            changed |= self._take(kv.key, kv, gone=False)
        if changed:
            self.wake()

    def read(self, found: Iterable[KeyValue], revision: int) -> None:
        """Take in all that stands under ``ctl/`` at ``revision``: what is not found is gone."""
        changed = not self.synced
        self.synced = True
        there = {kv.key: kv for kv in found}
        for key, kv in there.items():
            changed |= self._take(key, kv, gone=False)
        for key in [key for key in self._present if key not in there]:
            if self._revisions[key] <= revision:
                self._revisions[key] = revision
                self._set(key, None)
                changed = True
        if changed:
            self.wake()

    def _take(self, key: bytes, kv: KeyValue, gone: bool) -> bool:
        revision = kv.mod_revision
        if revision <= self._revisions.get(key, 0):
            return False
        self._revisions[key] = revision
        self._set(key, None if gone else kv)
        return True

    def _set(self, key: bytes, kv: KeyValue | None) -> None:
        if kv is None:
            self._present.pop(key, None)
        else:
            self._present[key] = None
        try:
            if key == self._keys.round:
                self.record, self.trouble = None, None
                if kv is not None:
                    self.run_lease = kv.lease
                    self.record_revision = kv.mod_revision
                    self.record = RoundRecord.decode(key, kv.value)
            elif key == self._keys.coordinator:
                self.leader = None if kv is None else Leader(kv.lease, kv.create_revision)
            elif key == self._keys.bootstrap:
                self.bootstrap = None if kv is None else Bootstrap.decode(key, kv.value)
            elif key == self._keys.closed:
                self.closed = None if kv is None else Closed.decode(key, kv.value)
        except RendezvousStateError as exc:
            logger.error("%s", exc)
            self.trouble = exc

    def wake(self) -> None:
        """Have those who wait look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        self._on_change()

    async def change(self, timeout: float) -> None:
        """Wait for the next change, or ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters[waiter] = None
        timer = loop.call_later(max(0.0, timeout), _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
