"""Mutants: deliberate faults in the protocol. The simulation must notice each, or its invariants show little.

A mutant replaces a function or an attribute of the package while a seed runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec

from rendezvous.coordinated import (
    bootstrap,
    coordinator,
    election,
    entry,
    member,
    nodes,
    rules,
    session,
    table,
    tracking,
    view,
    writer,
)
from rendezvous.coordinated.rules import Decision, Move
from rendezvous.etcd.v3 import client, history
from rendezvous.etcd.v3.operations import absent, compare, prefix_end, put_op
from tests.simulation.mutation import MUTANTS, Mutant, Patch, mutant, seeds_until_noticed
from tests.simulation.run import process_pool

__all__ = ["MUTANTS", "run_all"]


def run_all(jobs: int | None = None) -> Iterator[tuple[Mutant, int | None]]:
    """Run all mutants side by side in processes; yield each with the number of seeds that it took."""
    with process_pool(jobs) as pool:
        yield from zip(MUTANTS, pool.map(_run_one, range(len(MUTANTS))), strict=True)


def _run_one(index: int) -> int | None:
    return seeds_until_noticed(MUTANTS[index])


# The coordinator: writing.


@mutant("fencing")
def _without_the_fence(patch: Patch) -> None:
    """A coordinator that was replaced goes on, and its writes do not compare the fence."""
    original = coordinator.Coordinator.__init__

    def init(self: Any, client: Any, keys: Any, *arguments: Any) -> None:
        original(self, client, keys, *arguments)
        self._writer._fence = [_always(keys.root)]

    patch.setattr(coordinator.Coordinator, "__init__", init)
    patch.setattr(writer.Writer, "_check", lambda self, found: None)
    patch.setattr(election.Election, "step_down", _forget_term)


def _forget_term(self: Any) -> None:
    self._term = None


def _always(key: bytes, *target: Any) -> Any:
    """Return a condition that always holds."""
    return absent(key + b"/nothing")


@mutant("fencing")
def _progress_without_the_fence(patch: Patch) -> None:
    """A coordinator that was replaced still publishes the progress of the round."""
    original = writer.Writer.put_record

    async def put_record(self: Any, record: Any, *arguments: Any) -> None:
        if record.complete:
            await original(self, record, *arguments)
            return
        put = put_op(self._keys.round, record.encode(), self.run_lease)
        answer = await self._client.txn([], [put], deadline=self.deadline())
        self.revision, self.record = answer.header.revision, record

    patch.setattr(writer.Writer, "put_record", put_record)
    patch.setattr(election.Election, "step_down", _forget_term)


@mutant("monotony")
def _newer_round_record_overwritten(patch: Patch) -> None:
    """A round record that is applied late overwrites a newer one of the same coordinator."""
    patch.setattr(writer, "compare", _compare_no_revision)


@mutant("exclusivity")
def _newer_node_record_overwritten(patch: Patch) -> None:
    """A node's key that is written late overwrites a newer one of the same node."""
    patch.setattr(entry, "compare", _compare_no_revision)


def _compare_no_revision(key: bytes, field: str, value: Any) -> Any:
    return _always(key) if field == "mod_revision" else compare(key, field, value)


@mutant("agreement")
def _record_before_the_shards(patch: Patch) -> None:
    """The round record is written before the shards of the roster."""
    original = writer.Writer.put_record

    async def put_record(self: Any, record: Any, with_it: Any = (), after: Any = ()) -> None:
        await original(self, record)
        if with_it:
            await self.write(with_it)

    patch.setattr(writer.Writer, "put_record", put_record)


@mutant("agreement", seeds=1000)
def _attempt_id_used_twice(patch: Patch) -> None:
    """All attempts to complete a round have the same id: the shards of one that failed mix with those of the next."""
    patch.setattr(coordinator, "new_id", lambda random: "0" * 16)


@mutant("closed is final")
def _completes_though_closed(patch: Patch) -> None:
    """The coordinator completes a round without regard to the key that closes the rendezvous."""
    counts = table.Table.counts
    patch.setattr(writer, "absent", _always)
    patch.setattr(table.Table, "counts", lambda self, closed: counts(self, False))


@mutant("liveness")
def _spares_not_told(patch: Patch) -> None:
    """The nodes that a complete round leaves over are not told that they are spares."""
    original = coordinator.Coordinator._complete

    async def complete(self: Any) -> None:
        await original(self)
        self._dirty = False

    patch.setattr(coordinator.Coordinator, "_complete", complete)


@mutant("liveness")
def _last_call_after_closing(patch: Patch) -> None:
    """The end of the last call stays set when the rendezvous is closed, so the coordinator never sleeps again."""

    def close(self: Any) -> None:
        self._closed = True
        self._changed.set()

    patch.setattr(coordinator.Coordinator, "close", close)


@mutant("records")
def _run_lease_not_renewed(patch: Patch) -> None:
    """The run lease is never renewed, so the records of the run are deleted while nodes use them."""
    original = coordinator.Coordinator.__init__

    def init(self: Any, *arguments: Any) -> None:
        *others, options = arguments
        original(self, *others, dataclasses.replace(options, run_keep_alive_interval=1e6))

    patch.setattr(coordinator.Coordinator, "__init__", init)


# The coordinator: reading.


@mutant("liveness", seeds=1000)
def _read_before_watch(patch: Patch) -> None:
    """The coordinator reads the nodes before it watches them, and misses what happens between."""
    load = nodes.NodeWatch.load

    async def only_clear(self: Any, deadline: float) -> None:
        self._table.clear()
        self._revisions.clear()
        self._read_at = 0
        self.stale = False

    async def load_and_watch(self: Any, deadline: float) -> None:
        await load(self, deadline)
        keys = self._keys.nodes
        self._watch = await self._client.watch(keys, prefix_end(keys), self._receive, self.lose_track, deadline)

    patch.setattr(nodes.NodeWatch, "start", only_clear)
    patch.setattr(nodes.NodeWatch, "load", load_and_watch)


@mutant("liveness", seeds=1000)
def _coordinator_ignores_compaction(patch: Patch) -> None:
    """The coordinator does not read the nodes again when its watch has ended because of a compaction."""
    patch.setattr(nodes.NodeWatch, "lose_track", lambda self: None)


# The rules.


@mutant("exclusivity")
def _next_round_opens_early(patch: Patch) -> None:
    """The next round opens when the first member has left."""
    original = rules.coordinate

    def coordinate(counts: Any, limits: Any, left: float | None) -> Decision:
        if counts.complete and counts.returned and not counts.closed:
            return Decision(Move.OPEN, "a member has left")
        return original(counts, limits, left)

    patch.setattr(rules, "coordinate", coordinate)


@mutant("liveness")
def _lost_members_not_counted(patch: Patch) -> None:
    """Lost members are no reason to form the next round."""
    original = table.Table.counts
    patch.setattr(table.Table, "counts", lambda self, closed: original(self, closed)._replace(lost=0))


@mutant("reason", seeds=1000)
def _lost_members_counted_as_returned(patch: Patch) -> None:
    """A lost member is counted as one that has joined again, also if the configuration says that losses are ignored."""
    original = table.Table.counts

    def counts(self: Any, closed: bool) -> Any:
        found = original(self, closed)
        return found._replace(lost=0, returned=found.returned + found.lost)

    patch.setattr(table.Table, "counts", counts)


@mutant("liveness")
def _spares_counted_as_waiting(patch: Patch) -> None:
    """A node for which the round has no room is a reason to form the next round."""
    patch.setattr(rules, "_room_for_newcomers", lambda counts, limits: True)


@mutant("bounds", seeds=1000)
def _last_call_not_cancelled(patch: Patch) -> None:
    """The last call goes on when there are not enough nodes any more."""
    original = rules.coordinate

    def coordinate(counts: Any, limits: Any, left: float | None) -> Decision:
        decision = original(counts, limits, left)
        return decision._replace(move=Move.WAIT) if decision.move is Move.END_LAST_CALL else decision

    patch.setattr(rules, "coordinate", coordinate)


@mutant("bounds")
def _node_unit_ignored(patch: Patch) -> None:
    """The world size is not a multiple of the node unit."""

    def usable(nodes: int, limits: Any) -> int:
        most = min(nodes, limits.max_nodes)
        return most if most >= limits.min_nodes else 0

    patch.setattr(rules, "usable", usable)


@mutant("preference")
def _spares_before_members(patch: Patch) -> None:
    """Spares are chosen before the members of the last round."""
    original = rules.choose

    def choose(candidates: Any, number: int, limits: Any) -> Any:
        pool = sorted(candidates, key=lambda c: (c.record.last_round == number - 1, c.arrival))
        return original(pool[: rules.usable(len(pool), limits)], number, limits)

    patch.setattr(rules, "choose", choose)


# The members.


@mutant("exclusivity")
def _leaving_is_claimed_in_the_round(patch: Patch) -> None:
    """A node's key says that it has left the round while it is still in it."""
    original = member.Member._meet

    async def meet(self: Any, assignment: Any, serve: Any) -> Any:
        met = await original(self, assignment, serve)
        if self.node_id is not None:
            key = self._keys.node(self.node_id)
            node = put_op(key, self._node.encode(), self.node_id)
            await self._client.txn([compare(key, "version", 1)], [node], deadline=self._deadline)
        return met

    patch.setattr(member.Member, "_meet", meet)


@mutant("liveness")
def _joins_without_its_lease(patch: Patch) -> None:
    """A node's key is not bound to its lease, so it stays when the node is lost."""

    def unbound(key: bytes, value: bytes, lease: int = 0) -> Any:
        return put_op(key, value, 0 if b"/nodes/" in key else lease)

    patch.setattr(entry, "put_op", unbound)


@mutant("liveness")
def _lost_lease_not_noticed(patch: Patch) -> None:
    """A node does not react when etcd answers that its lease does not exist any more."""
    original = session.Session._answered
    patch.setattr(session.Session, "_answered", lambda self, exists: original(self, True))


@mutant("liveness")
def _new_coordinator_not_elected(patch: Patch) -> None:
    """No node starts a campaign when the coordinator is lost."""

    async def run_campaign(self: Any) -> None:
        await self._client.range(self._keys.coordinator, b"", 1e9)

    patch.setattr(election.Election, "_run_campaign", run_campaign)


@mutant("liveness")
def _new_coordinator_not_followed(patch: Patch) -> None:
    """A node that has seen a coordinator does not accept records that were written in the time of another one."""
    original = view.View.receive

    def receive(self: Any, events: Any) -> None:
        first = self.__dict__.setdefault("first", self.coordinator)
        original(self, events if first is None or self.coordinator in (None, first) else [])

    patch.setattr(view.View, "receive", receive)


@mutant("liveness")
def _member_ignores_compaction(patch: Patch) -> None:
    """A node does not watch again when its watch has ended because of a compaction."""
    patch.setattr(tracking.Tracker, "_lose_track", lambda self: None)


@mutant("liveness", seeds=1000)
def _member_does_not_read_again(patch: Patch) -> None:
    """A node watches again after a compaction, but does not read what it has missed."""

    async def read_again(self: Any) -> None:
        await self._begin(1e9)

    patch.setattr(tracking.Tracker, "_read_again", read_again)


@mutant("store")
def _store_watched_from_a_later_revision(patch: Patch) -> None:
    """A member watches the store from the newest round record, which may be later than the first use of the store."""
    original = member.Member.join

    async def join(self: Any, *arguments: Any) -> Any:
        assignment, met = await original(self, *arguments)
        return assignment._replace(since=self._view.record_revision), met

    patch.setattr(member.Member, "join", join)


# The bootstrap.


@mutant("meeting point", seeds=1000)
def _bootstrap_without_its_compare(patch: Patch) -> None:
    """Rank 0 of an old round replaces the bootstrap of a later round."""
    patch.setattr(bootstrap, "compare", _always)


@mutant("meeting point", seeds=1000)
def _bootstrap_of_another_round(patch: Patch) -> None:
    """A member accepts the bootstrap of any round."""
    patch.setattr(bootstrap, "_belongs", lambda found, assignment: True)


@mutant("liveness", seeds=1000)
def _rank_0_lost_before_the_bootstrap(patch: Patch) -> None:
    """Nobody is told that rank 0 was lost, so members wait for its bootstrap until their join times out."""
    original = coordinator.Coordinator._record

    def record(self: Any, counts: Any) -> Any:
        found = original(self, counts)
        return msgspec.structs.replace(found, rank_0_gone=False, lost=0) if found.complete else found

    patch.setattr(coordinator.Coordinator, "_record", record)


# A restored etcd.


@mutant("liveness", seeds=1000)
def _restoration_not_noticed(patch: Patch) -> None:
    """Nobody notices that etcd was restored from a snapshot."""
    patch.setattr(history.History, "restored", lambda self, reason: None)


@mutant("liveness", seeds=1000)
def _interrupted_watches_not_read_again(patch: Patch) -> None:
    """A restoration is noticed by the headers only, and not if the revision has been pushed beyond the old one."""
    original = client.EtcdClient.watch

    async def watch(self: Any, *arguments: Any, resumed: Any = None) -> Any:
        return await original(self, *arguments)

    patch.setattr(client.EtcdClient, "watch", watch)


@mutant("monotony", seeds=1000)
def _round_numbers_begin_again(patch: Patch) -> None:
    """A node forgets in which rounds it has been when etcd is restored from a snapshot."""
    original = member.Member._on_restored

    def on_restored(self: Any, reason: str) -> None:
        original(self, reason)
        self._node = msgspec.structs.replace(self._node, last_round=-1, last_rank=-1)

    patch.setattr(member.Member, "_on_restored", on_restored)


@mutant("agreement", seeds=3000)
def _shards_of_the_time_before(patch: Patch) -> None:
    """A round completes although a part of its roster is lost: etcd was restored while the roster was written."""
    original = writer.Writer.put_record

    async def put_record(self: Any, record: Any, with_it: Any = (), after: Any = ()) -> None:
        await original(self, record, with_it)

    patch.setattr(writer.Writer, "put_record", put_record)


@mutant("history")
def _answers_must_come_in_order(patch: Patch) -> None:
    """An answer is compared with what is known when it comes, not with what was known before the request."""
    original = history.History.observe

    def observe(self: Any, header: Any, endpoint: str, known: Any = None) -> None:
        original(self, header, endpoint, None if known is None else self.known())

    patch.setattr(history.History, "observe", observe)
