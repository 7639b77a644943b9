"""The elected node's part: to count the nodes, and to write what the rules decide.

A coordinator writes nothing but by transactions that compare its fencing token: once deposed it changes nothing,
whatever it still believes. A write whose outcome was lost is sent again: under the fence nobody else can have
written in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rendezvous._core import Roster
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.coordinated import rules
from rendezvous.coordinated.records import Keys, NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Candidate, Move, Tally
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import CompactedError, EtcdError
from rendezvous.etcd.v3.operations import (
    DELETE,
    Event,
    KeyValue,
    Message,
    absent,
    compare,
    delete_op,
    get_op,
    prefix_end,
    put_op,
)

__all__ = ["Coordinator", "Table"]

logger = logging.getLogger(__name__)

RUN_TTL = 7200
"""Seconds that what a run has written outlives its last coordinator."""

_RENEWAL = 600.0
_PATIENCE = 60.0
_SHARD_NODES = 128
# A roster of so many nodes goes into the round record itself: a few KiB once, rather than a request of each node.
_INLINE_NODES = 1024
_OPS = 100  # etcd takes 128 operations a transaction, unless told otherwise
_NAMES = 8


class _Deposed(Exception):
    """Another node coordinates now, or will."""


class Table:
    """The nodes that are there, and the members of the round that is complete.

    Attributes:
        number: the number of the round.
        nodes: the nodes by id.
    """

    def __init__(self) -> None:
        self.number = 0
        self.nodes: dict[int, Candidate] = {}
        self._members: dict[int, str] = {}  # a round that forms has none
        self._present = self._returned = 0

    def put(self, candidate: Candidate) -> None:
        """Take in a node, or what it says of itself now."""
        self.remove(candidate.node_id)
        self.nodes[candidate.node_id] = candidate
        self._count(candidate, 1)

    def remove(self, node_id: int) -> None:
        """Take out a node that is gone."""
        gone = self.nodes.pop(node_id, None)
        if gone is not None:
            self._count(gone, -1)

    def _count(self, candidate: Candidate, by: int) -> None:
        if candidate.node_id in self._members:
            if candidate.record.last_round < self.number:
                self._present += by
            else:
                self._returned += by

    def complete(self, number: int, members: dict[int, str]) -> None:
        """Take note that round ``number`` is complete, with ``members``: names by id, in the order of the ranks."""
        self.number, self._members = number, members
        self._present = self._returned = 0
        for candidate in self.nodes.values():
            self._count(candidate, 1)

    def open(self, number: int) -> None:
        """Take note that round ``number`` forms."""
        self.complete(number, {})  # nobody is a member of it yet

    def tally(self, closed: bool) -> Tally:
        """Count."""
        members = len(self._members)
        inside = self._present + self._returned
        return Tally(bool(members), self._present, self._returned, members - inside, len(self.nodes) - inside, closed)

    def lost(self) -> list[str]:
        """Return the names of the members that are gone."""
        return [name for node_id, name in self._members.items() if node_id not in self.nodes]

    def still_missing(self, names: Sequence[str]) -> list[str]:
        """Return which of ``names``, lost members of the last round, have not come back: themselves, or their host."""
        left = list(names)
        if left:
            back = {candidate.record.name for candidate in self.nodes.values()}
            left = [name for name in left if name not in back]
            newcomers = [c.record.addr for c in self.nodes.values() if c.record.last_round < self.number - 1]
            for addr in newcomers:
                successor = next((name for name in left if name.startswith(f"{addr}_")), None)
                if successor is not None:
                    left.remove(successor)
        return left

    def headless(self) -> bool:
        """Return whether the member of rank 0 is gone or has left."""
        first = next(iter(self._members), None)
        if first is None:
            return False
        candidate = self.nodes.get(first)
        return candidate is None or candidate.record.last_round >= self.number


class Coordinator:
    """Coordinates a run until it is deposed or cancelled.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        limits: what the rules go by.
        fence: the create revision of this node's ``ctl/coordinator``.
    """

    def __init__(self, client: EtcdClient, keys: Keys, limits: rules.Limits, fence: int) -> None:
        self._client = client
        self._keys = keys
        self._limits = limits
        self._fence = compare(keys.coordinator, "create_revision", fence)
        self._table = Table()
        self._revisions: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._stale = False
        self._run_lease = 0
        self._missing: list[str] = []
        self._last_call_ends: float | None = None
        self._published: RoundRecord | None = None
        # The first nodes of a job come together: most rounds are complete before there is progress to tell.
        self._published_at = asyncio.get_running_loop().time()
        self._dirty = True
        self._renewed_at = 0.0

    async def run(self) -> None:
        """Coordinate."""
        while True:
            watch = None
            try:
                watch = await self._watch()
                await self._load()
                await self._coordinate()
            except _Deposed:
                logger.info("this node does not coordinate the run any more")
                return
            except EtcdError as exc:
                logger.info("the coordinator begins anew: %s", exc)
                await asyncio.sleep(0.1)
            except (RendezvousConnectionError, RendezvousStateError) as exc:
                logger.warning("the coordinator cannot go on: %s; trying again", exc)
                await asyncio.sleep(1)
            except Exception:
                # A run whose coordinator fails in silence would stand still for ever.
                logger.exception("the coordinator failed; trying again")
                await asyncio.sleep(1)
            finally:
                if watch is not None:
                    watch.cancel()

    def close(self) -> None:
        """Take note that the rendezvous is closed."""
        self._closed = True
        self._last_call_ends = None
        self._changed.set()

    # What is there.

    async def _watch(self) -> Any:
        self._table.nodes.clear()
        self._revisions.clear()
        self._stale = False
        nodes = self._keys.nodes
        return await self._client.watch(nodes, prefix_end(nodes), self._receive, self._lose_track, self._deadline())

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + _PATIENCE

    def _receive(self, events: Sequence[Event]) -> None:
        for event in events:
            self._take(event.kv, event.type == DELETE)
        self._dirty = True
        self._changed.set()

    def _lose_track(self) -> None:
        self._stale = True
        self._changed.set()

    def _take(self, kv: KeyValue, gone: bool) -> None:
        try:
            node_id = self._keys.node_id(kv.key)
            if kv.mod_revision <= self._revisions.get(node_id, 0):
                return
            self._revisions[node_id] = kv.mod_revision
            if gone:
                self._table.remove(node_id)
            else:
                record = NodeRecord.decode(kv.key, kv.value)
                self._table.put(Candidate(node_id, kv.create_revision, record))
        except (ValueError, RendezvousStateError) as exc:
            logger.error("a node is ignored: %s", exc)

    async def _load(self) -> None:
        """Read the state of the run: the nodes, the round, and its roster."""
        deadline = self._deadline()
        ctl, _ = await self._client.range(self._keys.ctl, prefix_end(self._keys.ctl), deadline)
        found = {kv.key: kv for kv in ctl}
        self._closed = self._keys.closed in found
        current = found.get(self._keys.round)
        record = None if current is None else RoundRecord.decode(current.key, current.value)
        self._published = record
        self._dirty = True
        await self._take_over_lease(current, deadline)
        before: dict[int, str] = {}
        if record is None or not record.complete:
            self._table.open(0 if record is None else record.round)
            if self._table.number:
                before = await self._read_members(self._table.number - 1, deadline)
            # What a coordinator wrote that did not live to complete the round.
            leftovers = self._keys.from_round("roster", self._table.number)
            await self._write([delete_op(*leftovers)])
        else:
            self._table.complete(record.round, await self._read_members(record.round, deadline))
        nodes, _ = await self._client.range(self._keys.nodes, prefix_end(self._keys.nodes), deadline)
        for kv in nodes:
            self._take(kv, gone=False)
        self._missing = [name for node_id, name in before.items() if node_id not in self._table.nodes]
        self._last_call_ends = None

    async def _take_over_lease(self, current: KeyValue | None, deadline: float) -> None:
        """Keep alive what the run's records hang on; where that is gone, begin anew."""
        lease = 0 if current is None else current.lease
        if not lease or not await self._client.keep_alive(lease, deadline):
            lease = await self._client.grant(RUN_TTL, deadline)
            if current is not None:
                await self._write([put_op(current.key, current.value, lease)])
        self._run_lease = lease
        self._renewed_at = asyncio.get_running_loop().time()

    async def _read_members(self, number: int, deadline: float) -> dict[int, str]:
        """Return the names of the members of a complete round by id, in the order of their ranks."""
        prefix = self._keys.of_round("roster", number)
        shards, _ = await self._client.range(prefix, prefix_end(prefix), deadline)
        members = Roster.decode([kv.value for kv in shards]).nodes()
        # The names of those that have gone since stand in what etcd was when the roster was written.
        names: dict[int, str] = {}
        revision = min((kv.mod_revision for kv in shards), default=0)
        try:
            then, _ = await self._client.range(
                self._keys.nodes, prefix_end(self._keys.nodes), deadline, revision=revision
            )
            names = {self._keys.node_id(kv.key): NodeRecord.decode(kv.key, kv.value).name for kv in then}
        except EtcdError as exc:
            if not isinstance(exc, CompactedError):
                raise
        return {node_id: names.get(node_id, f"node {node_id:016x}") for node_id in members}

    # What to do.

    async def _coordinate(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stale:
            self._changed.clear()
            left = None if self._last_call_ends is None else self._last_call_ends - clock()
            tally = self._table.tally(self._closed)
            decision = rules.coordinate(tally, self._limits, left)
            if decision.move is not Move.REST:
                logger.info("round %d: %s: %s", self._table.number, decision.move.name.lower(), decision.reason)
                await self._move(decision.move)
                continue
            wait = await self._publish(tally)
            if clock() - self._renewed_at > _RENEWAL:
                self._renewed_at = clock()
                await self._client.keep_alive(self._run_lease, self._deadline())
            await self._rest(min(wait, _RENEWAL if left is None else left))

    async def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, seconds), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    async def _move(self, move: Move) -> None:
        if move is Move.OPEN:
            self._missing = self._table.lost()
            self._table.open(self._table.number + 1)
            self._dirty = True
        elif move is Move.BEGIN_LAST_CALL:
            self._last_call_ends = asyncio.get_running_loop().time() + self._limits.last_call
            self._dirty = True
        elif move is Move.END_LAST_CALL:
            self._last_call_ends = None
            self._dirty = True
        elif move is Move.COMPLETE:
            await self._complete()

    async def _publish(self, tally: Tally) -> float:
        """Publish the round record where it says something new; return the seconds until it is time again."""
        if not self._dirty or self._closed:
            return _RENEWAL
        clock = asyncio.get_running_loop().time
        published = self._published
        calm = published is None or not published.waiting
        urgent = tally.complete and calm and rules.waiting(tally, self._limits) > 0
        # Nodes that are still to come may watch already.
        interval = rules.publish_interval(max(len(self._table.nodes), self._limits.min_nodes), urgent)
        if (due := self._published_at + interval - clock()) > 0:
            return due
        self._dirty = False
        record = self._record(tally)
        if record != published:
            await self._put_record(record)
        return interval

    def _record(self, tally: Tally) -> RoundRecord:
        least, most = rules.least(self._limits), self._limits.max_nodes
        if not tally.complete:
            missing = self._table.still_missing(self._missing)
            return RoundRecord(
                self._table.number,
                Phase.FORMING if self._last_call_ends is None else Phase.LAST_CALL,
                joined=tally.newcomers,
                min_nodes=least,
                max_nodes=most,
                missing=tuple(missing[:_NAMES]),
                missing_count=len(missing),
            )
        assert self._published is not None  # the record that completed the round
        lost = self._table.lost() if tally.lost else []
        return replace(
            self._published,
            waiting=rules.waiting(tally, self._limits),
            spares=rules.spares(tally, self._limits),
            lost=tally.lost,
            headless=self._table.headless(),
            missing=tuple(lost[:_NAMES]),
            missing_count=len(lost),
        )

    async def _complete(self) -> None:
        number = self._table.number
        members = rules.choose(self._table.nodes.values(), number, self._limits)
        roster = Roster([member.node_id for member in members])
        inline = len(members) <= _INLINE_NODES
        shards = roster.encode(1 if inline else -(-len(members) // _SHARD_NODES))
        record = RoundRecord(
            number,
            Phase.COMPLETE,
            min_nodes=rules.least(self._limits),
            max_nodes=self._limits.max_nodes,
            world_size=len(members),
            shards=len(shards),
            roster=shards[0] if inline else None,
        )
        writes = [put_op(self._keys.shard(number, k), data, self._run_lease) for k, data in enumerate(shards)]
        # The record goes last: whoever reads it finds the whole roster.
        while len(writes) > _OPS:
            await self._write(writes[:_OPS])
            writes = writes[_OPS:]
        if not await self._put_record(record, writes):
            return
        self._last_call_ends = None
        self._table.complete(number, {member.node_id: member.record.name for member in members})
        if number > 1:
            old = [self._keys.before_round(kind, number - 1) for kind in ("roster", "store", "once")]
            await self._write([delete_op(*keys) for keys in old])

    # Writing.

    async def _put_record(self, record: RoundRecord, with_it: Sequence[Message] = ()) -> bool:
        """Write the round record, and what goes ``with_it``; False where the rendezvous is closed."""
        put = put_op(self._keys.round, record.encode(), self._run_lease)
        if not await self._write([*with_it, put], absent(self._keys.closed)):
            return False
        self._published = record
        self._published_at = asyncio.get_running_loop().time()
        return True

    async def _write(self, operations: Sequence[Message], *conditions: Message) -> bool:
        """Write under the fence; False where the rendezvous is closed and ``conditions`` say that it must not be."""
        fence = self._keys.coordinator
        answer = await self._client.txn(
            [self._fence, *conditions],
            operations,
            [get_op(fence), get_op(self._keys.closed)],
            deadline=self._deadline(),
        )
        if answer.succeeded:
            return True
        leader, closed = (response.response_range.kvs for response in answer.responses)
        if not leader or leader[0].create_revision != self._fence.create_revision or not closed:
            raise _Deposed
        self.close()
        return False
