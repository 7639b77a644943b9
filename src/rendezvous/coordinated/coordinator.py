"""The elected node's part: it watches the nodes, and writes what the rules decide.

Each write is a transaction that compares the fence: after another node has been elected, no write of the old
coordinator is applied. A write whose outcome is unknown is sent again, because no other node can have written under the
same fence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from rendezvous._core import Roster
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.coordinated import rules
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Keys, NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Candidate, Counts, Move
from rendezvous.coordinated.table import Table
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

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

_MIN_RETRY_DELAY = 0.1  # seconds, after an error that is expected to be gone at once


class _DeposedError(Exception):
    """The fence does not hold: this node is not the coordinator any more."""


class Coordinator:
    """Coordinates a run until another node is elected, or its task is cancelled.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        limits: the configuration of the rules.
        fence: the create revision of ``ctl/coordinator``, which this node created.
        options: intervals and limits.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        limits: rules.Limits,
        fence: int,
        options: Options = Options(),  # noqa: B008, it is immutable
    ) -> None:
        self._client = client
        self._keys = keys
        self._limits = limits
        self._options = options
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
        # The nodes of a job start together: most rounds complete before their progress would be published.
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
            except _DeposedError:
                logger.info("this node is not the coordinator any more")
                return
            except EtcdError as exc:
                logger.info("the coordinator reads the state of the run again: %s", exc)
                await asyncio.sleep(_MIN_RETRY_DELAY)
            except (RendezvousConnectionError, RendezvousStateError) as exc:
                logger.warning("the coordinator cannot continue: %s; trying again", exc)
                await asyncio.sleep(self._options.retry_delay)
            except Exception:
                # If the task ended here, the node would stay the coordinator and the run would never go on.
                logger.exception("the coordinator failed; trying again")
                await asyncio.sleep(self._options.retry_delay)
            finally:
                if watch is not None:
                    watch.cancel()

    def close(self) -> None:
        """Record that the rendezvous is closed."""
        self._closed = True
        self._last_call_ends = None
        self._changed.set()

    # Reading.

    async def _watch(self) -> Any:
        self._table.nodes.clear()
        self._revisions.clear()
        self._stale = False
        nodes = self._keys.nodes
        return await self._client.watch(nodes, prefix_end(nodes), self._receive, self._lose_track, self._deadline())

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._options.request_timeout

    def _receive(self, events: Sequence[Event]) -> None:
        for event in events:
            self._apply(event.kv, event.type == DELETE)
        self._dirty = True
        self._changed.set()

    def _lose_track(self) -> None:
        self._stale = True
        self._changed.set()

    def _apply(self, kv: KeyValue, gone: bool) -> None:
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
        except RendezvousStateError as exc:
            logger.error("a node is ignored: %s", exc)

    async def _load(self) -> None:
        """Read the state of the run: the round record, the roster and the nodes."""
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
            # Delete the shards of a coordinator that ended before it completed the round.
            leftovers = self._keys.from_round("roster", self._table.number)
            await self._write([delete_op(*leftovers)])
        else:
            self._table.complete(record.round, await self._read_members(record.round, deadline))
        nodes, _ = await self._client.range(self._keys.nodes, prefix_end(self._keys.nodes), deadline)
        for kv in nodes:
            self._apply(kv, gone=False)
        self._missing = [name for node_id, name in before.items() if node_id not in self._table.nodes]
        self._last_call_ends = None

    async def _take_over_lease(self, current: KeyValue | None, deadline: float) -> None:
        """Renew the run lease; if it does not exist, grant another one."""
        lease = 0 if current is None else current.lease
        if not lease or not await self._client.keep_alive(lease, deadline):
            lease = await self._client.grant(self._options.run_ttl, deadline)
            if current is not None:
                await self._write([put_op(current.key, current.value, lease)])
        self._run_lease = lease
        self._renewed_at = asyncio.get_running_loop().time()

    async def _read_members(self, number: int, deadline: float) -> dict[int, str]:
        """Return the names of the members of a complete round by id, in the order of their ranks."""
        prefix = self._keys.of_round("roster", number)
        shards, _ = await self._client.range(prefix, prefix_end(prefix), deadline)
        members = Roster.decode([kv.value for kv in shards]).nodes()
        # The names of members that have left since then can only be read at the roster's revision.
        names: dict[int, str] = {}
        revision = min((kv.mod_revision for kv in shards), default=0)
        try:
            nodes, _ = await self._client.range(
                self._keys.nodes, prefix_end(self._keys.nodes), deadline, revision=revision
            )
            names = {self._keys.node_id(kv.key): NodeRecord.decode(kv.key, kv.value).name for kv in nodes}
        except EtcdError as exc:
            if not isinstance(exc, CompactedError):
                raise
        return {node_id: names.get(node_id, f"node {node_id:016x}") for node_id in members}

    # Deciding.

    async def _coordinate(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stale:
            self._changed.clear()
            left = None if self._last_call_ends is None else self._last_call_ends - clock()
            counts = self._table.counts(self._closed)
            decision = rules.coordinate(counts, self._limits, left)
            if decision.move is not Move.WAIT:
                logger.info("round %d: %s: %s", self._table.number, decision.move.name.lower(), decision.reason)
                await self._move(decision.move)
                continue
            wait = await self._publish(counts)
            interval = self._options.run_keep_alive_interval
            if clock() - self._renewed_at > interval:
                self._renewed_at = clock()
                await self._client.keep_alive(self._run_lease, self._deadline())
            await self._sleep(min(wait, interval if left is None else left))

    async def _sleep(self, seconds: float) -> None:
        """Wait for a change, at most ``seconds``."""
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

    async def _publish(self, counts: Counts) -> float:
        """Publish the round record if it has changed; return the seconds until it may be published again."""
        if not self._dirty or self._closed:
            return self._options.run_keep_alive_interval
        clock = asyncio.get_running_loop().time
        published = self._published
        told_to_reform = published is not None and published.waiting > 0
        urgent = counts.complete and not told_to_reform and rules.waiting(counts, self._limits) > 0
        # Nodes that have not joined yet may watch already.
        interval = rules.publish_interval(max(len(self._table.nodes), self._limits.min_nodes), urgent)
        if (due := self._published_at + interval - clock()) > 0:
            return due
        self._dirty = False
        record = self._record(counts)
        if record != published:
            await self._put_record(record)
        return interval

    def _record(self, counts: Counts) -> RoundRecord:
        least, most = rules.least(self._limits), self._limits.max_nodes
        if not counts.complete:
            missing = self._table.still_missing(self._missing)
            return RoundRecord(
                self._table.number,
                Phase.FORMING if self._last_call_ends is None else Phase.LAST_CALL,
                joined=counts.newcomers,
                min_nodes=least,
                max_nodes=most,
                missing=tuple(missing[: self._options.names]),
                missing_count=len(missing),
            )
        assert self._published is not None  # the record that completed the round
        lost = self._table.lost() if counts.lost else []
        return msgspec.structs.replace(
            self._published,
            waiting=rules.waiting(counts, self._limits),
            spares=rules.spares(counts, self._limits),
            lost=counts.lost,
            rank_0_gone=self._table.rank_0_gone(),
            missing=tuple(lost[: self._options.names]),
            missing_count=len(lost),
        )

    async def _complete(self) -> None:
        number = self._table.number
        members = rules.choose(self._table.nodes.values(), number, self._limits)
        roster = Roster([member.node_id for member in members])
        inline = len(members) <= self._options.inline_nodes
        shards = roster.encode(1 if inline else -(-len(members) // self._options.shard_nodes))
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
        # The record is written last: a node that reads it finds the whole roster.
        while len(writes) > self._options.operations:
            await self._write(writes[: self._options.operations])
            writes = writes[self._options.operations :]
        if not await self._put_record(record, writes):
            return
        self._last_call_ends = None
        self._table.complete(number, {member.node_id: member.record.name for member in members})
        if number > 1:
            old = [self._keys.before_round(kind, number - 1) for kind in ("roster", "store", "once")]
            await self._write([delete_op(*keys) for keys in old])

    # Writing.

    async def _put_record(self, record: RoundRecord, with_it: Sequence[Message] = ()) -> bool:
        """Write the round record and the operations ``with_it``; return False if the rendezvous is closed."""
        put = put_op(self._keys.round, record.encode(), self._run_lease)
        if not await self._write([*with_it, put], absent(self._keys.closed)):
            return False
        self._published = record
        self._published_at = asyncio.get_running_loop().time()
        return True

    async def _write(self, operations: Sequence[Message], *conditions: Message) -> bool:
        """Write under the fence; return False if ``conditions`` do not hold because the rendezvous is closed."""
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
            raise _DeposedError
        self.close()
        return False
