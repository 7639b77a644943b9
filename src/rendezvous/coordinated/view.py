"""What a node knows of its run: the newest value that it received of each key under ``ctl/``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Bootstrap, Closed, CoordinatorRecord, Keys, RoundRecord
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue

__all__ = ["CurrentCoordinator", "Known", "View", "older_key"]

logger = logging.getLogger(__name__)


class CurrentCoordinator(NamedTuple):
    """The node id of the coordinator, and its fence: the create revision and the value of its key."""

    node_id: int
    revision: int
    value: bytes


class Known(NamedTuple):
    """What was known when a read was sent: how often the view has forgotten everything, and the keys' revisions."""

    forgotten: int
    revisions: Mapping[bytes, int]


class View:
    """The records under ``ctl/``, each at the newest revision that was received. Repeated and older events are ignored.

    Args:
        keys: the keys of the run.
        on_change: called after each change.
        on_restored: called with the reason if a key that was read shows that etcd was restored from a snapshot.

    Attributes:
        record: the round record; None if there is none or it is not valid.
        record_revision: the revision of the round record.
        last_record: the last valid round record, also if it was deleted or overwritten since.
        run_lease: the lease to which the round record is bound.
        coordinator: the coordinator; None if there is none.
        bootstrap: the bootstrap; None if there is none or it is not valid.
        closed: who closed the rendezvous, and why; None if it is not closed.
        closed_lease: the lease to which the key that closes it is bound; 0 if there is none.
        synced: whether all of ``ctl/`` has been read. Before that, a key that the view does not know may exist.
    """

    def __init__(
        self, keys: Keys, on_change: Callable[[], None], on_restored: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._keys = keys
        self._on_change = on_change
        self._on_restored = on_restored
        self._forgotten = 0
        self._revisions: dict[bytes, int] = {}
        self._present: dict[bytes, None] = {}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self.record: RoundRecord | None = None
        self.record_revision = 0
        self.last_record: RoundRecord | None = None
        self.run_lease = 0
        self.coordinator: CurrentCoordinator | None = None
        self.bootstrap: Bootstrap | None = None
        self.bootstrap_created = 0
        self.closed: Closed | None = None
        self.closed_lease = 0
        self.synced = False
        self._errors: dict[bytes, RendezvousStateError] = {}

    @property
    def record_lost(self) -> int:
        """The revision at which the round record was deleted or overwritten; 0 if it is valid or never existed."""
        return 0 if self.record is not None else self._revisions.get(self._keys.round, 0)

    @property
    def coordinator_revision(self) -> int:
        """The newest known revision of ``ctl/coordinator``, whoever wrote it; 0 if the key does not exist."""
        return self._revisions[self._keys.coordinator] if self._keys.coordinator in self._present else 0

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

    def known(self) -> Known:
        """Return what is known now, to be compared with a read that is sent next."""
        return Known(self._forgotten, dict(self._revisions))

    def forget(self) -> None:
        """Forget everything, because etcd was restored, but that the rendezvous is closed: that is final."""
        self._forgotten += 1
        self._revisions.clear()
        self._present.clear()
        self._errors.clear()
        self.record = self.coordinator = self.bootstrap = None
        self.record_revision = self.run_lease = self.bootstrap_created = self.closed_lease = 0
        self.synced = False

    def read(self, found: Iterable[KeyValue], revision: int, known: Known) -> None:
        """Apply a linearizable read of all of ``ctl/`` at ``revision``: a key that is not in ``found`` does not exist.

        Args:
            found: the keys that exist.
            revision: the revision of the answer.
            known: what :meth:`known` returned before the request was sent. A key that is older now was restored.
        """
        existing = {kv.key: kv for kv in found}
        if known.forgotten == self._forgotten:
            before = known.revisions
            older = next((kv for kv in existing.values() if kv.mod_revision < before.get(kv.key, 0)), None)
            if older is not None:
                self._on_restored(older_key(older, before[older.key]))  # which makes the view forget everything
        changed = not self.synced
        self.synced = True
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
                    self.record = self.last_record = RoundRecord.decode(key, kv.value)
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
                self.closed_lease = 0 if kv is None else kv.lease
                self.closed = None if kv is None else _read_closed(kv)
        except RendezvousStateError as exc:
            logger.error("%s", exc)
            self._errors[key] = exc

    def _set_bootstrap(self, kv: KeyValue | None) -> None:
        self.bootstrap, self.bootstrap_created = None, 0 if kv is None else kv.create_revision
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


def _read_closed(kv: KeyValue) -> Closed:
    """Return who closed the rendezvous, and why. The key closes it, whatever it contains."""
    try:
        return Closed.decode(kv.key, kv.value)
    except RendezvousStateError as exc:
        logger.error("%s; the rendezvous is closed", exc)
        return Closed(str(exc), "another program")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def older_key(kv: KeyValue, revision: int) -> str:
    """Return in words that a key is older than it has been: the reason to conclude that etcd was restored."""
    return f"the key '{printable(kv.key)}' was written at revision {kv.mod_revision}, and it has been at {revision}"
