"""Mutants of the coordinator and of the rules: deliberate faults in what is decided and written for all nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

from rendezvous.coordinated import candidates, coordinator, election, entry, nodes, rules, run_lease, table, writer
from rendezvous.coordinated.records import NodeRecord
from rendezvous.coordinated.rules import Decision, Move
from rendezvous.etcd.v3.operations import compare, prefix_end, put_op
from tests.simulation.mutation import Patch, always, mutant

# The coordinator: writing.


@mutant("fencing")
def _without_the_fence(patch: Patch) -> None:
    """A coordinator that was replaced goes on, and its writes do not compare the fence."""
    original = coordinator.Coordinator.__init__

    def init(self: Any, client: Any, keys: Any, *arguments: Any) -> None:
        original(self, client, keys, *arguments)
        self._writer._fence = [always(keys.root)]

    patch.setattr(coordinator.Coordinator, "__init__", init)
    patch.setattr(writer.Writer, "_check", lambda self, found: None)
    patch.setattr(election.Election, "step_down", _forget_term)


def _forget_term(self: Any) -> None:
    self._term = None


@mutant("fencing", seeds=1000)
def _rosters_without_the_fence(patch: Patch) -> None:
    """A coordinator that was frozen writes the rest of a roster when it runs again, and does not compare the fence."""

    async def write(self: Any, *parts: Any) -> None:
        for operations in parts:
            await self._client.txn([], operations, deadline=self.deadline())

    patch.setattr(writer.Writer, "write", write)


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


@mutant("exclusivity", seeds=1000)
def _newer_node_record_overwritten(patch: Patch) -> None:
    """A node's key that is written late overwrites a newer one of the same node."""
    patch.setattr(entry, "compare", _compare_no_revision)


def _compare_no_revision(key: bytes, field: str, value: Any) -> Any:
    return always(key) if field == "mod_revision" else compare(key, field, value)


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
    patch.setattr(writer, "absent", always)
    patch.setattr(table.Table, "counts", lambda self, closed: counts(self, False))


@mutant("liveness")
def _spares_not_told(patch: Patch) -> None:
    """The nodes that a complete round leaves over are not told that they are spares."""
    original = coordinator.Coordinator._complete

    async def complete(self: Any) -> None:
        await original(self)
        self._dirty = False

    patch.setattr(coordinator.Coordinator, "_complete", complete)


@mutant("records")
def _run_lease_not_renewed(patch: Patch) -> None:
    """The run lease is never renewed, so the records of the run are deleted while nodes use them."""
    _run_lease_not_renewed_by_members(patch)
    original = coordinator.Coordinator.__init__

    def init(self: Any, *arguments: Any) -> None:
        *others, options, known = arguments
        original(self, *others, dataclasses.replace(options, run_keep_alive_interval=1e6), known)

    patch.setattr(coordinator.Coordinator, "__init__", init)


@mutant("records")
def _run_lease_not_renewed_by_members(patch: Patch) -> None:
    """Only the coordinator renews the run lease, so a closed run that has none is open again after some time."""
    patch.setattr(run_lease.RunLease, "start", lambda self: None)


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


@mutant("strangers", seeds=1000)
def _keys_without_their_lease_counted(patch: Patch) -> None:
    """Keys under ``nodes/`` that another program wrote count as nodes."""

    def put(self: Any, node_id: int, kv: Any) -> None:
        self._table.put(candidates.Candidate(node_id, kv.create_revision, NodeRecord.decode(kv.key, kv.value)))

    patch.setattr(nodes.NodeWatch, "_put", put)


@mutant("exclusivity", seeds=1000)
def _known_record_forgotten(patch: Patch) -> None:
    """A coordinator that finds no round record begins anew, although its node has received one."""
    original = coordinator.Coordinator.__init__
    patch.setattr(coordinator.Coordinator, "__init__", lambda self, *arguments: original(self, *arguments[:-1], None))


# The rules.


@mutant("exclusivity")
def _next_round_opens_early(patch: Patch) -> None:
    """The next round opens when the first member has left."""
    original = rules.coordinate

    def coordinate(counts: Any, limits: Any, last_call: Any) -> Decision:
        if counts.complete and counts.returned and not counts.closed:
            return Decision(Move.OPEN, "a member has left")
        return original(counts, limits, last_call)

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

    def coordinate(counts: Any, limits: Any, last_call: Any) -> Decision:
        decision = original(counts, limits, last_call)
        return decision._replace(move=Move.WAIT) if decision.move is Move.END_LAST_CALL else decision

    patch.setattr(rules, "coordinate", coordinate)


@mutant("last call")
def _short_last_call_for_a_minority(patch: Patch) -> None:
    """The last call is short too if most members of the last round are lost, as after an outage."""
    original = rules._answer_last_call

    def answer(counts: Any, limits: Any, last_call: Any) -> Decision:
        return original(counts._replace(returned=counts.candidates, newcomers=0, lost=0), limits, last_call)

    patch.setattr(rules, "_answer_last_call", answer)


@mutant("bounds")
def _node_unit_ignored(patch: Patch) -> None:
    """The world size is not a multiple of the node unit."""

    def usable(nodes: int, limits: Any) -> int:
        most = min(nodes, limits.max_nodes)
        return most if most >= limits.min_nodes else 0

    patch.setattr(rules, "usable", usable)
    patch.setattr(candidates, "usable", usable)


@mutant("preference")
def _spares_before_members(patch: Patch) -> None:
    """Spares are chosen before the members of the last round."""
    original = candidates.choose

    def choose(candidates: Any, number: int, limits: Any) -> Any:
        pool = sorted(candidates, key=lambda c: (c.record.last_round == number - 1, c.arrival))
        return original(pool[: rules.usable(len(pool), limits)], number, limits)

    patch.setattr(candidates, "choose", choose)
