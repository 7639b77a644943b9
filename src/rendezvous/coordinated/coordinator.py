"""The elected node's part: it watches the nodes, and writes what the rules decide.

:mod:`rendezvous.coordinated.writer` makes sure that no write is applied after another node has been elected, or after a
newer write of this node. A complete round record that is found is adopted, and never overwritten by anything but a new
edition of itself or the next round.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

import msgspec

from rendezvous._core import Roster
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.coordinated import candidates, roster, rules
from rendezvous.coordinated.agreement import Agreement
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.last_call import LastCallTimer
from rendezvous.coordinated.nodes import NodeWatch
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import MAX_ROUND, Keys, Phase, RoundRecord, new_id
from rendezvous.coordinated.retry import Retry, wait
from rendezvous.coordinated.rules import Counts, Move
from rendezvous.coordinated.table import Table
from rendezvous.coordinated.view import CurrentCoordinator
from rendezvous.coordinated.writer import ClosedError, DeposedError, OutdatedError, Writer, batches
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import KeyValue, Operation, delete_op, prefix_end

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

_MAX_ERROR = 500  # characters of an error in the round record
_MIN_RETRY_DELAY = 0.1  # seconds, after an error that is expected to be gone at once
# Seconds, so that a difference of two times that was rounded down does not make a loop without a pause.
_MIN_WAIT = 0.001


class Coordinator:
    """Coordinates a run until another node is elected, or its task is cancelled.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        limits: the configuration of the rules.
        fence: the key ``ctl/coordinator``, which this node created.
        random: draws attempt ids.
        agreement: what this node is configured with, and how other nodes differ.
        options: intervals and limits.
        known: the last round record that this node received; None if it received none.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        limits: rules.Limits,
        fence: CurrentCoordinator,
        random: random.Random,
        agreement: Agreement,
        options: Options = Options(),  # noqa: B008, it is immutable
        known: RoundRecord | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._limits = limits
        self._options = options
        self._random = random
        self._agreement, self._elected_at = agreement, fence.revision
        self._lost_record: RoundRecord | None = None
        self._known = known
        self._retry = Retry(options, random)
        self._writer = Writer(client, keys, fence, options.request_timeout)
        self._table = Table()
        self._nodes = NodeWatch(client, keys, self._table, agreement, self._notice_nodes)
        self._changed = asyncio.Event()
        self._repaired = asyncio.Event()
        self._lost_at = 0
        self._closed = False
        self._previous = ""
        self._error = ""
        self._last_call = LastCallTimer()
        # The nodes of a job start together: most rounds complete before their progress would be published.
        self._published_at = asyncio.get_running_loop().time()
        self._dirty = True
        self._renewed_at = 0.0

    async def run(self) -> None:
        """Coordinate."""
        while True:
            try:
                await self._nodes.start(self._writer.deadline())
                await self._load()
                await self._coordinate()
            except DeposedError:
                logger.info("this node is not the coordinator any more")
                return
            except OutdatedError:
                logger.info("the coordinator reads the state of the run again: the round record was written meanwhile")
            except EtcdError as exc:
                logger.info("the coordinator reads the state of the run again: %s", exc)
                await asyncio.sleep(_MIN_RETRY_DELAY)
            except Exception as exc:
                # If the task ended here, the node would stay the coordinator and the run would never go on.
                if not isinstance(exc, (RendezvousConnectionError, RendezvousStateError)):
                    logger.exception("the coordinator failed")
                self._repaired.clear()
                await wait(self._repaired, self._retry.fail(exc))
            finally:
                self._nodes.stop()

    def close(self) -> None:
        """Record that the rendezvous is closed."""
        self._closed = True
        self._last_call.end()
        self._changed.set()

    def notice_loss(self, revision: int) -> None:
        """Write the round record again: it was deleted or overwritten at ``revision``, or the run lease ended."""
        if self._writer.record is not None and revision > self._writer.revision:
            self._nodes.lose_track()
        if revision != self._lost_at:
            self._lost_at = revision
            self._repaired.set()  # perhaps a record that cannot be read is gone

    def _notice_nodes(self) -> None:
        self._dirty = True
        self._changed.set()

    # Reading.

    async def _load(self) -> None:
        """Read the state of the run: the round record, the roster and the nodes."""
        deadline = self._writer.deadline()
        ctl, _ = await self._client.range(self._keys.ctl, prefix_end(self._keys.ctl), deadline)
        found = {kv.key: kv for kv in ctl}
        self._closed = self._keys.closed in found
        self._dirty = True
        number = self._table.number
        current = found.get(self._keys.round)
        self._writer.check_history(current)
        self._lost_record = self._writer.record or self._lost_record
        try:
            self._writer.adopt(current)
        except RendezvousStateError as exc:
            if self._lost_record is None:
                raise
            logger.error("%s; it is overwritten", exc)
            current = None
        await self._take_over_lease(current, deadline)
        if current is None:
            self._last_call.end()
            await self._begin(self._keys.bootstrap in found, deadline)
            return
        self._lost_record = None
        record = self._writer.record
        assert record is not None
        if record.complete or record.round != number:
            self._last_call.end()
        if record.complete:
            await self._load_complete(record, current.mod_revision, deadline)
        else:
            self._previous = record.previous
            self._table.open(record.round, await roster.read_last_members(self._client, self._keys, record, deadline))
            await self._nodes.load(deadline)

    async def _begin(self, has_bootstrap: bool, deadline: float) -> None:
        """Begin without a round record: the run is new, or the record is lost, and nodes may be in a round."""
        await self._nodes.load(deadline)
        lost, known, table = self._lost_record, self._lost_record or self._known, self._table
        if self._closed:
            return
        is_running = has_bootstrap and table.is_anyone_older(self._elected_at)
        if lost is not None and lost.complete and lost.round == table.number and table.members:
            await self._restore(lost)
        elif lost is not None and not lost.complete:
            table.open(max(table.number, lost.round), {} if table.is_complete else table.members)
        elif table.nodes and (table.highest >= 0 or is_running or (known is not None and known.complete)):
            await self._recount(-1 if known is None else known.round)
        else:
            table.open(0 if known is None else known.round + known.complete, {})

    async def _restore(self, record: RoundRecord) -> None:
        """Write the record and the roster of the complete round again, under the new run lease.

        If the members were not known, it has no roster: a coordinator that takes over must not believe in one.
        """
        logger.warning("the record of round %d is lost; it is written again", record.round)
        members, lease = self._table.members, self._writer.run_lease
        writes: list[Operation] = []
        if not record.error:
            shards = Roster(list(members)).encode(record.shards)
            writes = roster.put_ops(self._keys, record.round, record.attempt, shards, list(members.values()), lease)
        parts = list(batches(writes, self._options.operations))
        await self._writer.write(*parts)
        await self._put_record(record, after=parts)
        self._table.complete(record.round, members)

    async def _recount(self, number: int) -> None:
        """Let all nodes leave the round that they are in, at most ``number``, because nobody knows its members."""
        nodes = {node.node_id: node.record.name for node in self._table.nodes.values()}
        self._error = f"the etcd key '{printable(self._keys.round)}' was deleted"
        logger.error("%s; the nodes form the next round", self._error)
        record = RoundRecord(
            max(self._table.highest, number) + 1,
            Phase.COMPLETE,
            min_nodes=rules.least(self._limits),
            max_nodes=self._limits.max_nodes,
            attempt=new_id(self._random),
            first=f"{next(iter(nodes)):016x}",
            world_size=len(nodes),
            shards=1,
            waiting=1,
            error=self._error,
        )
        if await self._put_record(record):
            self._table.complete(record.round, nodes)

    async def _load_complete(self, record: RoundRecord, revision: int, deadline: float) -> None:
        """Read the members and the nodes of a complete round.

        If the roster is damaged, every node that may be a member counts as one, until it leaves the round. The nodes
        learn of it from the record: then those that are not members say so, and the next round forms.
        """
        self._error = ""
        try:
            members = await roster.read_members(
                self._client, self._keys, record.round, record.attempt, deadline, record.roster
            )
            self._table.complete(record.round, members)
            await self._nodes.load(deadline)
        except RendezvousStateError as exc:
            logger.error("%s; the nodes form the next round", exc)
            self._error = str(exc)[:_MAX_ERROR]
            await self._nodes.load(deadline)
            nodes = [node for node in self._table.nodes.values() if node.arrival < revision]
            self._table.complete(record.round, {node.node_id: node.record.name for node in nodes})

    async def _take_over_lease(self, current: KeyValue | None, deadline: float) -> None:
        """Renew the run lease; if it does not exist, grant another one."""
        lease = 0 if current is None else current.lease
        renewed = bool(lease) and await self._client.keep_alive(lease, deadline)
        self._writer.run_lease = lease if renewed else await self._client.grant(self._options.run_ttl, deadline)
        self._renewed_at = asyncio.get_running_loop().time()
        if not renewed and self._writer.record is not None:
            await self._put_record(self._writer.record)

    # Deciding.

    async def _coordinate(self) -> None:
        while not self._nodes.stale:
            self._changed.clear()
            try:
                pause = await self._act()
                self._retry.succeed()
            except RendezvousConnectionError as exc:
                # The table stays current, and each write compares what is stored: nothing has to be read again.
                self._dirty = True
                await asyncio.sleep(self._retry.fail(exc, self._table.lost()))
                continue
            await wait(self._changed, pause)

    async def _act(self) -> float:
        """Do what the rules decide; return the seconds after which they must decide again, if nothing changes."""
        clock = asyncio.get_running_loop().time
        counts = self._table.counts(self._closed)
        if not (counts.complete or counts.closed) and self._table.highest >= self._table.number:
            await self._open(self._table.highest + 1, {})  # a node was in a round that this coordinator does not know
            return 0.0
        decision = rules.coordinate(counts, self._limits, self._last_call.measure(self._table.joined))
        if decision.move is not Move.WAIT:
            logger.info("round %d: %s: %s", self._table.number, decision.move.name.lower(), decision.reason)
            await self._move(decision.move)
            return 0.0
        wait = await self._publish(counts)
        interval = self._options.run_keep_alive_interval
        if clock() - self._renewed_at > interval:
            if not await self._client.keep_alive(self._writer.run_lease, self._writer.deadline()):
                raise OutdatedError
            self._renewed_at = clock()
        return min(wait, interval, decision.again + _MIN_WAIT)

    async def _move(self, move: Move) -> None:
        if move is Move.OPEN:
            assert self._writer.record is not None  # the record that completed the round
            self._previous = self._writer.record.attempt
            number = max(self._table.number, self._table.highest) + 1
            await self._open(number, {} if self._error else self._table.members)
        elif move is Move.BEGIN_LAST_CALL:
            self._last_call.begin()
            self._dirty = True
        elif move is Move.END_LAST_CALL:
            self._last_call.end()
            self._dirty = True
        elif move is Move.CONFIRM:
            joined = self._table.joined
            self._last_call.confirm(joined, await self._nodes.confirm(self._writer.deadline()))
        elif move is Move.COMPLETE:
            await self._complete()

    async def _open(self, number: int, before: dict[int, str]) -> None:
        """Open round ``number``. If no record can have that number, close the run: another program wrote the last."""
        if number > MAX_ROUND and not self._closed:
            await self._writer.close(f"names round {number - 1}, the last there can be")
            self.close()
        self._table.open(number, before)
        self._dirty = True

    async def _publish(self, counts: Counts) -> float:
        """Publish the round record if it has changed; return the seconds until it may be published again."""
        if not self._dirty or self._closed:
            return self._options.run_keep_alive_interval
        published = self._writer.record
        told_to_reform = published is not None and published.waiting > 0
        urgent = counts.complete and not told_to_reform and rules.waiting(counts, self._limits) > 0
        # Nodes that have not joined yet may watch already.
        interval = rules.publish_interval(max(len(self._table.nodes), self._limits.min_nodes), urgent)
        if (due := self._published_at + interval - asyncio.get_running_loop().time()) > 0:
            return due
        self._dirty = False
        if (record := self._agreement.sign_round(self._record(counts))) != published:
            await self._put_record(record)
        return interval

    def _record(self, counts: Counts) -> RoundRecord:
        least, most = rules.least(self._limits), self._limits.max_nodes
        if not counts.complete:
            missing = self._table.still_missing(self._table.lost())
            return RoundRecord(
                self._table.number,
                Phase.FORMING if self._last_call.began is None else Phase.LAST_CALL,
                joined=counts.candidates,
                min_nodes=least,
                max_nodes=most,
                previous=self._previous,
                missing=tuple(missing[: self._options.names]),
                missing_count=len(missing),
            )
        assert self._writer.record is not None  # the record that completed the round
        lost = self._table.lost() if counts.lost else []
        return msgspec.structs.replace(
            self._writer.record,
            waiting=max(rules.waiting(counts, self._limits), int(bool(self._error))),
            error=self._error,
            spares=rules.spares(counts, self._limits),
            lost=counts.lost,
            rank_0_gone=self._table.rank_0_gone(),
            missing=tuple(lost[: self._options.names]),
            missing_count=len(lost),
        )

    async def _complete(self) -> None:
        number, attempt, lease = self._table.number, new_id(self._random), self._writer.run_lease
        members = candidates.choose(self._table.nodes.values(), number, self._limits)
        names = {member.node_id: member.record.name for member in members}
        shards = roster.shards_of(list(names), self._options)
        record = RoundRecord(
            number,
            Phase.COMPLETE,
            min_nodes=rules.least(self._limits),
            max_nodes=self._limits.max_nodes,
            attempt=attempt,
            first=f"{members[0].node_id:016x}",
            world_size=len(members),
            shards=len(shards),
            roster=shards[0] if len(shards) == 1 else None,
        )
        writes = roster.put_ops(self._keys, number, attempt, shards, list(names.values()), lease)
        # The record is written last: a node that reads it finds the whole roster.
        *first, last = batches(writes, self._options.operations)
        await self._writer.write(*first)
        # A bootstrap that is still stored belongs to an earlier round. So does a store, if etcd was restored.
        prefixes = [self._keys.of_round(kind, number) for kind in ("store", "once")]
        leftovers = [delete_op(prefix, prefix_end(prefix)) for prefix in prefixes]
        if not await self._put_record(record, [*last, *leftovers, delete_op(self._keys.bootstrap)], first):
            return
        self._last_call.end()
        self._table.complete(number, names)
        self._error = ""
        self._dirty = True  # the nodes without a place do not know yet that they are spares
        if number > 1:
            # If this is applied late, nobody needs these keys either.
            old = [self._keys.before_round(kind, number - 1) for kind in ("roster", "store", "once")]
            await self._writer.write([delete_op(*keys) for keys in old])

    async def _put_record(
        self, record: RoundRecord, with_it: Sequence[Operation] = (), after: Sequence[Sequence[Operation]] = ()
    ) -> bool:
        """Do as :meth:`Writer.put_record`; return False if the rendezvous is closed."""
        try:
            await self._writer.put_record(self._agreement.sign_round(record), with_it, after)
        except ClosedError:
            self.close()
            return False
        self._published_at = asyncio.get_running_loop().time()
        return True
