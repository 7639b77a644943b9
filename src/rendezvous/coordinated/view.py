"""What a node knows of its run: the newest value that it received of each key under ``ctl/``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.records import Bootstrap, Closed, CoordinatorRecord, Keys, RoundRecord
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue

__all__ = ["CurrentCoordinator", "View"]

logger = logging.getLogger(__name__)


class CurrentCoordinator(NamedTuple):
    """The node id of the coordinator, and its fence: the create revision and the value of its key."""

    node_id: int
    revision: int
    value: bytes


class View:
    """The records under ``ctl/``, each at the newest revision that was received. Repeated and older events are ignored.

    Args:
        keys: the keys of the run.
        on_change: called after each change.

    Attributes:
        record: the round record; None if there is none or it is not valid.
        record_revision: the revision of the round record.
        run_lease: the lease to which the round record is bound.
        coordinator: the coordinator; None if there is none.
        bootstrap: the bootstrap; None if there is none or it is not valid.
        closed: who closed the rendezvous, and why; None if it is not closed.
        synced: whether all of ``ctl/`` has been read. Before that, a key that the view does not know may exist.
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
        self.coordinator: CurrentCoordinator | None = None
        self.bootstrap: Bootstrap | None = None
        self.closed: Closed | None = None
        self.synced = False
        self._errors: dict[bytes, RendezvousStateError] = {}

    @property
    def record_lost(self) -> int:
        """The revision at which the round record was deleted or overwritten; 0 if it is valid or never existed."""
        return 0 if self.record is not None else self._revisions.get(self._keys.round, 0)

    @property
    def foreign_coordinator(self) -> int:
        """The revision of ``ctl/coordinator`` if another program wrote the key; otherwise 0."""
        key = self._keys.coordinator
        return self._revisions[key] if key in self._present and self.coordinator is None else 0

    @property
    def error(self) -> RendezvousStateError | None:
        """Why a record cannot be used; None if all records are valid or absent."""
        return next(iter(self._errors.values()), None)

    @property
    def bootstrap_revision(self) -> int:
        """The newest known revision of ``ctl/bootstrap``; 0 if the key does not exist."""
        return self._revisions[self._keys.bootstrap] if self._keys.bootstrap in self._present else 0

    def receive(self, events: Iterable[Event]) -> None:
        """Apply the events of a watch."""
        changed = False
        for event in events:
            kv = event.kv
            changed |= self._apply(kv.key, kv, gone=event.type == DELETE)
        if changed:
            self.wake()

    def update(self, found: Iterable[KeyValue]) -> None:
        """Apply a read of some keys of ``ctl/``."""
        changed = False
        for kv in found:
            changed |= self._apply(kv.key, kv, gone=False)
        if changed:
            self.wake()

    def read(self, found: Iterable[KeyValue], revision: int) -> None:
        """Apply a read of all of ``ctl/`` at ``revision``: a key that is not in ``found`` does not exist."""
        changed = not self.synced
        self.synced = True
        existing = {kv.key: kv for kv in found}
        for key, kv in existing.items():
            changed |= self._apply(key, kv, gone=False)
        for key in [key for key in self._present if key not in existing]:
            if self._revisions[key] <= revision:
                self._revisions[key] = revision
                self._set(key, None)
                changed = True
        if changed:
            self.wake()

    def _apply(self, key: bytes, kv: KeyValue, gone: bool) -> bool:
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
        self._errors.pop(key, None)
        try:
            if key == self._keys.round:
                self.record = None
                if kv is not None:
                    self.record = RoundRecord.decode(key, kv.value)
                    self.run_lease = kv.lease
                    self.record_revision = kv.mod_revision
            elif key == self._keys.coordinator:
                self.coordinator = None
                if kv is not None:
                    CoordinatorRecord.check(kv)
                    self.coordinator = CurrentCoordinator(kv.lease, kv.create_revision, kv.value)
            elif key == self._keys.bootstrap:
                self._set_bootstrap(kv)
            elif key == self._keys.closed:
                self.closed = None if kv is None else Closed.decode(key, kv.value)
        except RendezvousStateError as exc:
            logger.error("%s", exc)
            self._errors[key] = exc

    def _set_bootstrap(self, kv: KeyValue | None) -> None:
        self.bootstrap = None
        try:
            self.bootstrap = None if kv is None else Bootstrap.decode(kv.key, kv.value)
        except RendezvousStateError as exc:
            logger.warning("%s; it is ignored, rank 0 publishes another", exc)

    def wake(self) -> None:
        """Wake all callers of :meth:`change`, and call ``on_change``."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        self._on_change()

    async def change(self, timeout: float) -> None:
        """Wait for the next change, at most ``timeout`` seconds."""
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
