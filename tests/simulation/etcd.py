"""A simulated etcd: revisions, history, transactions, leases, watches and compaction, on the loop's clock.

It implements what etcd documents for its v3 API, for the requests that the protocol sends.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.errors import (
    CompactedError,
    EtcdError,
    FutureRevisionError,
    LeaseNotFoundError,
    NoSpaceError,
)
from rendezvous.etcd.v3.messages import rpc_pb2

if TYPE_CHECKING:
    from tests.simulation.watching import LinkWatch

Message = Any

_BEFORE_FIRST_LEASE = 7_587_880_000_000_000_000
MAX_OPERATIONS = 128  # in one transaction, etcd's --max-txn-ops
MAX_BYTES = 3 << 19  # of one request, etcd's --max-request-bytes


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
        no_space: the quota is exceeded: etcd accepts no writes that need space.
        lateness: by how many seconds at most a lease ends too late. It is renewed no more, but its keys still exist.
        watches: all watches, in the order in which they were started.
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
        self._last_lease = _BEFORE_FIRST_LEASE
        self._ending: set[int] = set()
        self._random = random.Random(0)
        self._times: list[float] = [0.0]  # when each revision of the next list became the current one
        self._revisions: list[int] = [1]
        self.no_space = False
        self.lateness = 0.0
        self.watches: dict[LinkWatch, None] = {}
        self._on_write = on_write

    # Requests.

    def handle(self, call: Call, request: Message, writer: Any, behind: float = 0.0) -> Message:
        """Apply one request and return etcd's answer. Raises EtcdError.

        Args:
            call: the method.
            request: the message.
            writer: who sent it.
            behind: by how many seconds the data of the member that was asked is behind the others'.
        """
        if request.ByteSize() > MAX_BYTES:
            raise EtcdError("etcdserver: request is too large")
        before = self.revision
        if call is Call.RANGE:
            self._check_stale(request, behind)
            answer = self._range(request)
        elif call is Call.TXN:
            self._check_operations(request, MAX_OPERATIONS)
            self._check_duplicates(request)
            self._check_space(request)
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
        self._note_revision()
        for watch in list(self.watches):
            watch.interrupt()

    def _note_revision(self) -> None:
        self._times.append(asyncio.get_running_loop().time())
        self._revisions.append(self.revision)

    def _settle(self, before: int, writer: Any) -> None:
        if self.events and self.events[-1][0] > before:
            self.revision = self.events[-1][0]
            self._note_revision()
            self._on_write(writer, [event.kv.key for revision, event in self.events_since(before + 1)])
            for watch in list(self.watches):
                watch.notice()

    def _check_stale(self, request: Message, behind: float) -> None:
        """Refuse a read of a member's own data that is not there yet, or that may be old without anyone knowing it."""
        if not request.serializable:
            return
        assert request.revision, "a serializable read without a revision may be answered with old data"
        if behind and request.revision > self.revision_at(asyncio.get_running_loop().time() - behind):
            raise FutureRevisionError("etcdserver: mvcc: required revision is a future revision")

    def _check_operations(self, request: Message, most: int) -> None:
        number = max(len(request.compare), len(request.success), len(request.failure))
        if number > most:
            raise EtcdError("etcdserver: too many operations in txn request")
        for op in (*request.success, *request.failure):
            if op.HasField("request_txn"):
                self._check_operations(op.request_txn, most - number)

    def _check_space(self, request: Message) -> None:
        """Refuse a transaction that puts. As etcd does, do not look into the transactions inside it."""
        if self.no_space and any(op.HasField("request_put") for op in (*request.success, *request.failure)):
            raise NoSpaceError("etcdserver: mvcc: database space exceeded")

    def _range(self, request: Message) -> Message:
        if request.revision and request.revision < self.compacted:
            raise CompactedError("mvcc: required revision has been compacted")
        if request.revision > self.revision:
            raise FutureRevisionError("mvcc: required revision is a future revision")
        at = request.revision or self.revision + 1  # a transaction reads what it has written
        found = [kv for key in self._between(request.key, request.range_end) if (kv := self._at(key, at)) is not None]
        found = [kv for kv in found if kv.mod_revision >= request.min_mod_revision]
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
        if self.no_space:
            raise NoSpaceError("etcdserver: mvcc: database space exceeded")
        self._last_lease += 1
        self._arm(self._last_lease, request.TTL)
        return rpc_pb2.LeaseGrantResponse(ID=self._last_lease, TTL=request.TTL)

    def _arm(self, lease: int, ttl: int) -> None:
        if lease in self.leases:
            self.leases[lease][1].cancel()
        self._ending.discard(lease)
        self.leases[lease] = (ttl, asyncio.get_running_loop().call_later(ttl, self._expire, lease))

    def _expire(self, lease: int) -> None:
        if self.lateness and lease not in self._ending:
            self._ending.add(lease)
            late = self._random.uniform(0, self.lateness)
            timer = asyncio.get_running_loop().call_later(late, self._expire, lease)
            self.leases[lease] = (self.leases[lease][0], timer)
        else:
            self.end_lease(lease)

    def end_lease(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        before = self.revision
        self._end(lease)
        self._settle(before, None)

    def _end(self, lease: int) -> None:
        self.leases.pop(lease)[1].cancel()
        self._ending.discard(lease)
        for key in sorted(self._bound.pop(lease, ())):
            self._delete(key, b"", self.revision + 1)

    def _revoke(self, lease: int) -> Message:
        if lease not in self.leases:
            raise LeaseNotFoundError("etcdserver: requested lease not found")
        self._end(lease)
        return rpc_pb2.LeaseRevokeResponse()

    def granted(self, lease: int) -> bool:
        """Return whether there is, or was, such a lease."""
        return _BEFORE_FIRST_LEASE < lease <= self._last_lease

    def ttl(self, lease: int) -> int:
        """Return the time to live of a lease in seconds; 0 if there is no such lease."""
        return self.leases[lease][0] if lease in self.leases else 0

    def keep_alive(self, lease: int) -> bool | None:
        """Renew a lease; return whether it exists. None if etcd does not answer, because it is about to end it."""
        if lease in self._ending:
            return None
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

    def revision_at(self, time: float) -> int:
        """Return what the revision was at a time."""
        return self._revisions[max(0, bisect_right(self._times, time) - 1)]
