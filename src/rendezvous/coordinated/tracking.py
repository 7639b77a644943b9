"""Keeps a node's view of its run current: a watch on ``ctl/``, and a read whenever the watch may have missed something.

That is the case if the watch has ended, and if it was interrupted: etcd may have been restored from a snapshot
meanwhile. The read then shows it. A key under ``ctl/``, or the node's own key, is older than it was, or the round
record and the node's key are both gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.view import View, older_key
from rendezvous.etcd.v3.client import EtcdClient, Watch
from rendezvous.etcd.v3.operations import KeyValue, get_op, prefix_end

__all__ = ["Tracker"]

logger = logging.getLogger(__name__)

_FOREVER = 3600.0  # seconds of a request that nobody waits for; it is repeated


class Tracker:
    """Keeps the view of one node current.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        view: what the node knows of its run.
        session: returns the node's session, or None if it has no lease.
        name: the node's name, for messages.
        pause: seconds after a failure before the next attempt.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        view: View,
        session: Callable[[], Session | None],
        name: str,
        pause: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._view = view
        self._session = session
        self._name = name
        self._pause = pause
        self._watch: Watch | None = None
        self._losses = 0  # how many watches have ended
        self._stale = False
        self._reading: asyncio.Task[None] | None = None

    @property
    def watching(self) -> bool:
        """Whether a watch is active."""
        return self._watch is not None

    async def start(self, deadline: float) -> None:
        """Start the watch, unless it is active. Raises RendezvousConnectionError."""
        reading, self._reading = self._reading, None
        busy = reading is not None and not reading.done()
        if reading is not None:
            reading.cancel()  # it tries to start the watch too, and does not keep this deadline
        try:
            await self._begin(deadline)
        finally:
            if busy:
                self._read_soon()

    async def _begin(self, deadline: float) -> None:
        ctl = self._keys.ctl
        while self._watch is None:
            losses = self._losses
            watch = await self._client.watch(
                ctl, prefix_end(ctl), self._view.receive, self._lose_track, deadline, resumed=self._read_soon
            )
            if losses == self._losses:  # it has not ended while it was started
                self._watch = watch

    def stop(self) -> None:
        """End the watch."""
        reading, self._reading = self._reading, None
        watch, self._watch = self._watch, None
        if reading is not None:
            reading.cancel()
        if watch is not None:
            watch.cancel()

    def _lose_track(self) -> None:
        self._losses += 1
        self._watch = None
        self._read_soon()

    def _read_soon(self) -> None:
        self._stale = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_again())

    async def _read_again(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._stale:
            self._stale = False
            try:
                await self._begin(clock() + _FOREVER)
                await self._read(clock() + _FOREVER)
            except RendezvousConnectionError as exc:
                self._stale = True
                logger.warning("node %s receives no events of its run: %s; trying again", self._name, exc)
                await asyncio.sleep(self._pause)

    async def _read(self, deadline: float) -> None:
        """Read ``ctl/`` into the view, and the node's own key."""
        ctl, view, session = self._keys.ctl, self._view, self._session()
        known, had_record = view.known(), view.record is not None
        own = 0 if session is None else session.key_revision
        reads = [get_op(ctl, prefix_end(ctl))]
        if session is not None and own:
            reads.append(get_op(self._keys.node(session.lease)))
        answer = await self._client.txn([], reads, deadline=deadline)
        found = answer.responses[0].response_range.kvs
        if view.known().forgotten == known.forgotten:  # otherwise it is known already that etcd was restored
            gone = had_record and all(kv.key != self._keys.round for kv in found)
            mine = answer.responses[1].response_range.kvs if len(reads) > 1 else ()
            self._check(session, own, mine, gone)
        view.read(found, answer.header.revision, known)

    def _check(self, session: Session | None, own: int, found: Sequence[KeyValue], record_gone: bool) -> None:
        """Check that etcd was not restored, by the key that the node wrote at revision ``own``, if it has a lease."""
        if found and found[0].mod_revision < own:
            self._client.history.restored(older_key(found[0], own))
        elif not found and record_gone:
            key = printable(self._keys.round)
            self._client.history.restored(f"the key '{key}' does not exist any more, and neither does the node's")
        elif not found and own and session is not None:
            session.lose()
