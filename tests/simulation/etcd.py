"""A simulated etcd: revisions, history, transactions, leases, watches and compaction, on the loop's clock.

It implements what etcd documents for its v3 API, for the requests that the protocol sends.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.errors import CompactedError, EtcdError, FutureRevisionError, LeaseNotFoundError
from rendezvous.etcd.v3.messages import rpc_pb2

Message = Any


def within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return start <= key and (end == b"\0" or key < end)


class Etcd:
    """One cluster. Its answers are linearizable.

    Args:
        on_write: called after each request that changed something, and after each lease that ended with its keys: with
            the writer (None if a lease ended) and the keys.

    Attributes:
        revision: the current revision.
        compacted: the oldest revision that can be read.
        current: the keys that exist.
        events: all changes, each with its revision.
        leases: the time to live of each lease, and the timer that ends it.
        cluster_id: the id of the cluster; another one after some restorations.
        restarts: how often all members were restarted, so that all connections broke.
    """

    def __init__(self, on_write: Callable[[Any, list[bytes]], None] = lambda writer, keys: None) -> None:
        self.cluster_id = 1
        self.restarts = 0
        self.revision = 1
        self.compacted = 0
        self.current: dict[bytes, Any] = {}
        self.events: list[tuple[int, Any]] = []
        self.leases: dict[int, tuple[int, asyncio.TimerHandle]] = {}
        # Indexes, for runs with many nodes: all keys that ever existed, in order; the versions of each, with None for a
        # deletion; and the keys that are bound to each lease.
        self._keys: list[bytes] = []
        self._versions: dict[bytes, list[tuple[int, Any]]] = {}
        self._bound: defaultdict[int, set[bytes]] = defaultdict(set)
        self._last_lease = 7_587_880_000_000_000_000
        self._changed: set[asyncio.Future[None]] = set()
        self._on_write = on_write

    # Requests.

    def handle(self, call: Call, request: Message, writer: Any) -> Message:
        """Apply one request and return etcd's answer. Raises EtcdError."""
        before = self.revision
        if call is Call.RANGE:
            answer = self._range(request)
        elif call is Call.TXN:
            self._check_duplicates(request)
            answer = self._txn(request, self.revision + 1)
        elif call is Call.DELETE:
            answer = rpc_pb2.DeleteRangeResponse(deleted=self._delete(request.key, request.range_end, before + 1))
        elif call is Call.GRANT:
            answer = self._grant(request)
        elif call is Call.REVOKE:
            answer = self._revoke(request.ID)
        else:
            raise AssertionError(f"the protocol does not send {call}")
        self._settle(before, writer)
        answer.header.CopyFrom(self.header())
        return answer

    def header(self) -> Message:
        """Return the header of an answer."""
        return rpc_pb2.ResponseHeader(cluster_id=self.cluster_id, revision=self.revision)

    def restart(self) -> None:
        """Break all connections."""
        self.restarts += 1
        self._wake()

    def _settle(self, before: int, writer: Any) -> None:
        if self.events and self.events[-1][0] > before:
            self.revision = self.events[-1][0]
            self._on_write(writer, [event.kv.key for revision, event in self.events_since(before + 1)])
            self._wake()

    def _wake(self) -> None:
        waiting, self._changed = self._changed, set()
        for future in sorted(waiting, key=lambda f: f.number):  # type: ignore[attr-defined]
            if not future.done():
                future.set_result(None)

    def _range(self, request: Message) -> Message:
        if request.revision and request.revision < self.compacted:
            raise CompactedError("mvcc: required revision has been compacted")
        if request.revision > self.revision:
            raise FutureRevisionError("mvcc: required revision is a future revision")
        at = request.revision or self.revision + 1  # a transaction reads what it has written
        found = [kv for key in self._between(request.key, request.range_end) if (kv := self._at(key, at)) is not None]
        more = bool(request.limit) and len(found) > request.limit
        return rpc_pb2.RangeResponse(kvs=found[: request.limit or None], more=more, count=len(found))

    def _between(self, start: bytes, end: bytes) -> Iterator[bytes]:
        """Return all keys of a range that ever existed, in order."""
        if not end:
            return iter((start,))
        stop = len(self._keys) if end == b"\0" else bisect_left(self._keys, end)
        return iter(self._keys[bisect_left(self._keys, start) : stop])

    def _at(self, key: bytes, revision: int) -> Any:
        """Return the key and its value at a revision, or None."""
        versions = self._versions.get(key, ())
        index = bisect_right(versions, revision, key=lambda version: version[0])
        return versions[index - 1][1] if index else None

    def _record(self, key: bytes, revision: int, kv: Any, kind: Any) -> None:
        """Record a change of a key."""
        if key not in self._versions:
            self._versions[key] = []
            insort(self._keys, key)
        before = self.current.pop(key, None)
        if before is not None and before.lease:
            self._bound[before.lease].discard(key)
        exists = kind == rpc_pb2.Event.PUT
        if exists:
            self.current[key] = kv
            if kv.lease:
                self._bound[kv.lease].add(key)
        self._versions[key].append((revision, kv if exists else None))
        self.events.append((revision, rpc_pb2.Event(type=kind, kv=kv)))

    def _put(self, request: Message, revision: int) -> Message:
        if request.lease and request.lease not in self.leases:
            raise LeaseNotFoundError("etcdserver: requested lease not found")
        old = self.current.get(request.key)
        kv = rpc_pb2.KeyValue(
            key=request.key,
            value=old.value if request.ignore_value else request.value,
            lease=old.lease if request.ignore_lease else request.lease,
            create_revision=revision if old is None else old.create_revision,
            mod_revision=revision,
            version=1 if old is None else old.version + 1,
        )
        self._record(request.key, revision, kv, rpc_pb2.Event.PUT)
        return rpc_pb2.PutResponse(prev_kv=old if request.prev_kv else None)

    def _delete(self, key: bytes, end: bytes, revision: int) -> int:
        gone = [each for each in self._between(key, end) if each in self.current]
        for each in gone:
            kv = rpc_pb2.KeyValue(key=each, mod_revision=revision)
            self._record(each, revision, kv, rpc_pb2.Event.DELETE)
        return len(gone)

    def _check_duplicates(self, request: Message) -> None:
        for branch in (request.success, request.failure):
            puts = [op.request_put.key for op in branch if op.HasField("request_put")]
            deletes = [op.request_delete_range for op in branch if op.HasField("request_delete_range")]
            clash = any(within(key, each.key, each.range_end) for key in puts for each in deletes)
            if clash or len(set(puts)) != len(puts):
                raise EtcdError("etcdserver: duplicate key given in txn request")

    def _txn(self, request: Message, revision: int) -> Message:
        succeeded = all(self._holds(compare) for compare in request.compare)
        answer = rpc_pb2.TxnResponse(succeeded=succeeded)
        branch = request.success if succeeded else request.failure
        for op in branch:  # etcd checks the leases of all puts before it applies one
            lease = op.request_put.lease
            if op.HasField("request_put") and lease and lease not in self.leases:
                raise LeaseNotFoundError("etcdserver: requested lease not found")
        for op in branch:
            response = answer.responses.add()
            if op.HasField("request_range"):
                response.response_range.CopyFrom(self._range(op.request_range))
            elif op.HasField("request_put"):
                response.response_put.CopyFrom(self._put(op.request_put, revision))
            elif op.HasField("request_delete_range"):
                gone = self._delete(op.request_delete_range.key, op.request_delete_range.range_end, revision)
                response.response_delete_range.deleted = gone
            else:
                response.response_txn.CopyFrom(self._txn(op.request_txn, revision))
        return answer

    def _holds(self, compare: Message) -> bool:
        target = {0: "version", 1: "create_revision", 2: "mod_revision", 3: "value"}[compare.target]
        kv = self.current.get(compare.key)
        if kv is None and target == "value":
            return False
        value = getattr(kv, target) if kv is not None else 0
        wanted = getattr(compare, target)
        return {0: value == wanted, 1: value > wanted, 2: value < wanted, 3: value != wanted}[compare.result]

    # Leases.

    def _grant(self, request: Message) -> Message:
        self._last_lease += 1
        self._arm(self._last_lease, request.TTL)
        return rpc_pb2.LeaseGrantResponse(ID=self._last_lease, TTL=request.TTL)

    def _arm(self, lease: int, ttl: int) -> None:
        if lease in self.leases:
            self.leases[lease][1].cancel()
        self.leases[lease] = (ttl, asyncio.get_running_loop().call_later(ttl, self._expire, lease))

    def _expire(self, lease: int) -> None:
        before = self.revision
        self._end(lease)
        self._settle(before, None)

    def _end(self, lease: int) -> None:
        self.leases.pop(lease)[1].cancel()
        for key in sorted(self._bound.pop(lease, ())):
            self._delete(key, b"", self.revision + 1)

    def _revoke(self, lease: int) -> Message:
        if lease not in self.leases:
            raise LeaseNotFoundError("etcdserver: requested lease not found")
        self._end(lease)
        return rpc_pb2.LeaseRevokeResponse()

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; return whether it exists."""
        if lease in self.leases:
            self._arm(lease, self.leases[lease][0])
        return lease in self.leases

    def change_leader(self) -> None:
        """Restart the time to live of all leases, as a newly elected leader of etcd does."""
        for lease, (ttl, _) in list(self.leases.items()):
            self._arm(lease, ttl)

    # History.

    def compact(self, revision: int) -> None:
        """Discard the history before ``revision``."""
        self.compacted = max(self.compacted, revision)

    def events_since(self, revision: int) -> list[tuple[int, Any]]:
        """Return the changes since ``revision``, including it, each with its revision."""
        at = len(self.events)
        while at > 0 and self.events[at - 1][0] >= revision:
            at -= 1
        return self.events[at:]

    async def change(self, number: int) -> None:
        """Wait for the next change; all that wait are resumed in the order of ``number``."""
        future = asyncio.get_running_loop().create_future()
        future.number = number  # type: ignore[attr-defined]
        self._changed.add(future)
        try:
            await future
        finally:
            self._changed.discard(future)
