"""The watches of the simulated etcd: they may be behind, break and resume, report a change twice, and end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rendezvous.etcd.v3.client import Watch, WatchSpec
from tests.simulation.etcd import within
from tests.simulation.virtual import now

if TYPE_CHECKING:
    from tests.simulation.network import Link

__all__ = ["LinkWatch"]

PROGRESS_INTERVAL = 10.0
"""Seconds between two reports of etcd's revision to a watch. etcd's are ten minutes."""

_RETRY_INTERVAL = 0.1


class LinkWatch(Watch):
    """One watch of one process.

    Args:
        link: the connection.
        spec: what it reports, and to whom.
    """

    def __init__(self, link: Link, spec: WatchSpec) -> None:
        self._link = link
        self._spec = spec
        self._next = spec.revision or link.etcd.revision + 1
        """The first revision that is not on its way to the process."""
        self._known = self._next
        """The first revision with which the process would resume, but for reports of the revision."""
        self._last: list[Any] = []
        self._awake = False
        self._ended = self._cancelled = self._interrupted = False
        link.watches.append(self)
        link.etcd.watches[self] = None
        self.notice()

    def cancel(self) -> None:
        self._cancelled = True
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._link.watches.remove(self)
            del self._link.etcd.watches[self]

    def lose(self) -> None:
        """End: the process may have missed changes."""
        self._end()
        self._link.deliver(self._lose)

    def _lose(self) -> None:
        if not self._cancelled:
            self._spec.lost()

    def interrupt(self) -> None:
        """Continue on another stream, with the first revision that the process may not have."""
        self._go_back()
        self.notice()

    def _go_back(self) -> None:
        reported = self._link.etcd.revision_at(now() - now() % PROGRESS_INTERVAL)
        self._next = min(self._next, max(self._known, reported + 1))
        self._interrupted = True

    def notice(self) -> None:
        """Send what is new, after the time that it is on the way."""
        if not self._awake and not self._ended:
            self._awake = True
            self._link.later(self._link.latency(), self._send)

    def _again(self, seconds: float) -> None:
        self._link.later(seconds, self._send)

    def _send(self) -> None:
        link, etcd, spec = self._link, self._link.etcd, self._spec
        if link.dead:
            self.cancel()
        if self._ended:
            return
        if not link.connected:
            self._go_back()
            self._again(_RETRY_INTERVAL)
            return
        if self._interrupted:
            self._interrupted = False
            link.deliver(self._resume)
        if self._next < etcd.compacted:
            self.lose()
            return
        self._awake = False
        visible = etcd.revision_at(now() - link.behind) if link.behind else etcd.revision
        if visible < etcd.revision:
            self._awake = True
            self._again(_RETRY_INTERVAL)
        batch = [
            event
            for revision, event in etcd.events_since(self._next)
            if revision <= visible and within(event.kv.key, spec.key, spec.end)
        ]
        self._next = max(self._next, visible + 1)
        if batch:
            if self._last and link.rng.random() < link.conditions.repeated_events:
                link.deliver(self._receive, self._last)
            link.deliver(self._receive, batch)
            self._last = batch

    def _resume(self) -> None:
        if not self._cancelled:
            self._spec.resumed()

    def _receive(self, batch: list[Any]) -> None:
        if not self._cancelled:
            self._known = max(self._known, batch[-1].kv.mod_revision + 1)
            self._spec.receive(batch)
