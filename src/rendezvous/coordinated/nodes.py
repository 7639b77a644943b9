"""Keeps the coordinator's table current: it reads and watches the keys of the nodes.

A key counts only if its name is a node id, it is bound to the lease with that number, and its record is valid. So a key
under ``nodes/`` that another program wrote never takes a rank. It is ignored, with one warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.agreement import Agreement
from rendezvous.coordinated.candidates import Candidate
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.table import Table
from rendezvous.etcd.v3.client import EtcdClient, Watch
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue, prefix_end

__all__ = ["NodeWatch"]

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 1000  # keys that are remembered, so that there is one warning for each


class NodeWatch:
    """Reads and watches the keys of the nodes.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        table: what is kept current.
        agreement: compares the settings of the nodes with those of the coordinator.
        on_change: called after each change of the table, and if all must be read again.

    Attributes:
        stale: whether all must be read again: the watch has ended, or it was interrupted, and etcd may have been
            restored from a snapshot meanwhile.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, table: Table, agreement: Agreement, on_change: Callable[[], None]
    ) -> None:
        self._client = client
        self._keys = keys
        self._table = table
        self._agreement = agreement
        self._on_change = on_change
        self._watch: Watch | None = None
        self._revisions: dict[int, int] = {}
        self._read_at = 0
        self._newest = 0
        self._warned: set[bytes] = set()
        self.stale = False

    async def start(self, deadline: float) -> None:
        """Clear the table, and watch from now on."""
        self._table.clear()
        self._revisions.clear()
        self._read_at = self._newest = 0
        self.stale = False
        nodes = self._keys.nodes
        self._watch = await self._client.watch(
            nodes, prefix_end(nodes), self._receive, self.lose_track, deadline, resumed=self.lose_track
        )

    def stop(self) -> None:
        """End the watch."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    async def load(self, deadline: float) -> None:
        """Make the table what etcd has at one revision. Events up to that revision that come later are ignored."""
        nodes, revision = await self._client.range(self._keys.nodes, prefix_end(self._keys.nodes), deadline)
        existing = {kv.key for kv in nodes}
        for node_id in list(self._table.nodes):
            if self._keys.node(node_id) not in existing and self._revisions[node_id] <= revision:
                self._table.remove(node_id)
        for kv in nodes:
            self._apply(kv, gone=False)
        self._read_at = revision
        self._newest = max(self._newest, revision)

    async def confirm(self, deadline: float) -> bool:
        """Return whether the watch has reported everything that etcd has now. A key that was deleted does not count."""
        nodes = self._keys.nodes
        newer, _ = await self._client.range(nodes, prefix_end(nodes), deadline, changed_since=self._newest + 1)
        return not newer

    def lose_track(self) -> None:
        """Record that all must be read again."""
        self.stale = True
        self._on_change()

    def _receive(self, events: Sequence[Event]) -> None:
        for event in events:
            self._apply(event.kv, event.type == DELETE)
            self._newest = max(self._newest, event.kv.mod_revision)
        self._on_change()

    def _apply(self, kv: KeyValue, gone: bool) -> None:
        try:
            node_id = self._keys.node_id(kv.key)
            if kv.mod_revision <= max(self._read_at, self._revisions.get(node_id, 0)):
                return
            self._revisions[node_id] = kv.mod_revision
            if gone:
                self._table.remove(node_id)
            else:
                self._put(node_id, kv)
        except RendezvousStateError as exc:
            if kv.key not in self._warned and len(self._warned) < _MAX_WARNINGS:
                self._warned.add(kv.key)
                logger.warning("%s; the key is ignored", exc)

    def _put(self, node_id: int, kv: KeyValue) -> None:
        try:
            if kv.lease != node_id:
                lease = f"the lease {kv.lease:x}" if kv.lease else "no lease"
                raise RendezvousStateError(
                    f"the etcd key '{printable(kv.key)}' is bound to {lease}, not to the lease that it names; another "
                    f"program wrote it"
                )
            record = NodeRecord.decode(kv.key, kv.value)
        except RendezvousStateError:
            self._table.remove(node_id)
            raise
        self._agreement.check_node(record)
        self._table.put(Candidate(node_id, kv.create_revision, record))
