"""The invariants of the protocol: some are checked after each write, some when a join returns, some at the end.

The message of a violation begins with the name of the invariant:

    agreement         All members that return from round r have the same world size; their ranks are distinct, 0 to n-1.
                      When a round completes, etcd holds its whole roster and no other shard of it.
    exclusivity       Round r+1 completes only after every member of round r has left it, or its lease has ended.
    bounds            min_nodes <= world size <= max_nodes, and a multiple of node_unit. A last call has enough nodes.
    monotony          Round numbers only grow.
    closed is final   After the rendezvous is closed, no round completes.
    fencing           Only the current coordinator writes rosters and round records.
    meeting point     Members receive the bootstrap of rank 0 of their own round. It is not replaced during the round.
    strangers         Only nodes of the run are members, whatever other programs write.
    last call         A round below the maximum of nodes completes before its whole last call could have ended only if
                      more than half of the members of the last round have returned, if only for a while.
    preference        A member of the last round is not replaced by another node.
    reason            Members are asked to form the next round only if a node was lost, has returned, or is new.
    records           While there is a coordinator, or a member in a round, the records of the run are not deleted.
    store             The revision from which a member watches the store of a round is not later than its first use.
    history           No node believes that etcd was restored from a snapshot if it was not.
    liveness          Without faults, a join returns soon if enough nodes run; one that began without faults does not
                      time out. Once the faults have ended, every node is soon in a complete round, or is a spare;
                      then nothing changes any more. No node relies on a lease that has ended.
    patience          A join does not fail before its timeout because etcd cannot be used for a while.
    no error is lost  No task ends with an exception that nobody receives.

If etcd is restored from a snapshot, what is known of it here goes back with it. Only exclusivity has an
exception then: a node may be in a round of the time before until it has noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rendezvous._core import Roster
from rendezvous.api import RendezvousError, RendezvousStateError
from rendezvous.coordinated import rules
from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.records import Bootstrap, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Assignment, Limits
from tests.simulation.etcd import Etcd

if TYPE_CHECKING:
    from tests.simulation.world import Node

__all__ = ["Invariants", "Past", "Violation"]


_FAST_CLOCK = 0.75
"""A clock may run faster than the true one: then a last call is shorter, but at least this fraction of it."""

_JOIN_TIME = 25.0
"""Seconds within which a join must return if no fault happens: a lease may have to end before, and a last call."""


class Past(NamedTuple):
    """What was known of etcd when a snapshot of it was taken."""

    record: RoundRecord | None
    closed_at: int | None
    returned: dict[int, dict[str, Assignment]]
    rosters: dict[int, list[int]]
    attempts: frozenset[str]
    first_use: dict[int, int]
    coordinator: Node | None
    bootstrap: Bootstrap | None


class Violation(AssertionError):
    """An invariant does not hold.

    Args:
        invariant: the name of the invariant.
        text: what happened.
        seed: the seed of the run, if that is known.
    """

    def __init__(self, invariant: str, text: str, seed: int | None = None) -> None:
        super().__init__(f"{invariant}: {text}" if seed is None else f"seed {seed}: {invariant}: {text}")
        self.invariant = invariant
        self.text = text


class Invariants:
    """Checks the invariants of one run.

    Args:
        keys: the keys of the run.
        limits: the configuration of the rules.
        etcd: the cluster.
        nodes: all nodes that have started.
        report: called with the text of the first violation.

    Attributes:
        record: the newest round record.
        closed_at: the revision at which the rendezvous was closed; None if it is not.
        returned: what the members got from each round: by the number of the round and the name of the node.
        faults_until: the time at which the last fault ended or will end.
        join_time: seconds within which a join must return if no fault happens.
        planted: whether another program has written keys of the run.
        run_lease_lost: whether the run lease was ended from outside.
        violation: the first violation; None if there is none.
    """

    def __init__(
        self, keys: Keys, limits: Limits, etcd: Etcd, nodes: list[Node], report: Callable[[str], None]
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._etcd = etcd
        self._nodes = nodes
        self._report = report
        self._rosters: dict[int, list[int]] = {}
        self._last_rounds: dict[str, int] = {}
        self._first_use: dict[int, int] = {}  # the revision of etcd when the first member of a round returned
        self._coordinator: Node | None = None
        self._bootstrap: Bootstrap | None = None
        self._may_reform = False
        self._attempts: set[str] = set()  # of the rounds that have completed
        self._outdated: set[str] = set()  # of the rounds that completed before a restoration
        self._restored_rounds: set[int] = set()  # nodes may have left them before the restoration: keys do not tell
        self._checked: set[str] = set()  # of all rounds that have ever completed
        self._record_deleted = False
        self._coordinator_knew = False
        self._all_left_at: float | None = 0.0  # when the last member left the last complete round; None if not yet
        self._came_back: set[int] = (
            set()
        )  # members of the last complete round that have joined again, if only for a while
        self.record: RoundRecord | None = None
        self.closed_at: int | None = None
        self.returned: dict[int, dict[str, Assignment]] = {}
        self.faults_until = 0.0
        self.join_time = _JOIN_TIME
        self.planted = False
        self.run_lease_lost = False
        self.violation: Violation | None = None

    def fail(self, invariant: str, text: str) -> None:
        """Record a violation. It is raised later: here, it would be raised into the protocol."""
        if self.violation is None:
            self.violation = Violation(invariant, text)
            self._report(f"violation of an invariant: {invariant}: {text}")

    # When etcd is restored.

    def past(self) -> Past:
        """Return what is known of etcd now."""
        return Past(
            self.record,
            self.closed_at,
            {number: dict(members) for number, members in self.returned.items()},
            dict(self._rosters),
            frozenset(self._attempts),
            dict(self._first_use),
            self._coordinator,
            self._bootstrap,
        )

    def go_back(self, past: Past) -> None:
        """Go by what was known when the snapshot was taken: etcd has been restored from it."""
        self._outdated |= {*self._attempts, *past.attempts}
        self.record, self.closed_at = past.record, past.closed_at
        self.returned = {number: dict(members) for number, members in past.returned.items()}
        self._rosters, self._attempts = dict(past.rosters), set(past.attempts)
        self._restored_rounds = set(past.rosters)
        self._first_use = dict(past.first_use)
        self._coordinator, self._bootstrap = past.coordinator, past.bootstrap
        self._may_reform = True

    def members(self, number: int) -> list[int]:
        """Return the node ids of the members of a round in the order of their ranks; empty if it is not complete."""
        return self._rosters.get(number, [])

    @property
    def limits(self) -> Limits:
        """The configuration of the coordinator, by which the run goes."""
        return self._limits if self._coordinator is None else self._coordinator.limits

    # When a join ends.

    def check_timeout(self, node: Node) -> None:
        """Check that a join that timed out had a reason to."""
        if node.joins_since is not None and self.faults_until <= node.joins_since:
            self.fail("liveness", f"the join of {node.name} began without faults and timed out")

    def check_return(self, node: Node, place: Assignment, bootstrap: Bootstrap) -> None:
        """Check what a join returned."""
        if place.round <= self._last_rounds.get(node.name, -1):
            self.fail("monotony", f"{node.name} returned from round {place.round} after {self._last_rounds[node.name]}")
        self._last_rounds[node.name] = place.round
        if place.attempt in self._outdated - self._attempts:
            return  # it has not noticed yet that etcd was restored
        others = self.returned.setdefault(place.round, {})
        for other, theirs in others.items():
            if theirs.world_size != place.world_size or theirs.rank == place.rank:
                self.fail("agreement", f"{node.name} has {place}, {other} has {theirs}")
        if not 0 <= place.rank < place.world_size:
            self.fail("agreement", f"{node.name} has {place}")
        others[node.name] = place
        first_use = self._first_use.setdefault(place.round, self._etcd.revision)
        # It may be unknown if the bootstrap is deleted: the round is over, or the run lease has ended.
        gone = self._bootstrap is None or self._bootstrap.attempt != place.attempt
        if not (0 < place.since <= first_use or (place.since == 0 and gone)):
            self.fail("store", f"{node.name} watches since {place.since}, the store is in use since {first_use}")
        host = bootstrap.addr.removeprefix("node-")
        if (bootstrap.attempt, bootstrap.node) != (place.attempt, place.first) or bootstrap.port != 29500 + int(host):
            self.fail("meeting point", f"{node.name} in round {place.round} received {bootstrap}")

    # When a node concludes that etcd was restored.

    def check_history(self, node: Node, reason: str) -> None:
        """Check that etcd was restored at all, as a node says."""
        if not (self._etcd.restarts or self.run_lease_lost or self.planted):  # keys of the run may be gone otherwise
            self.fail("history", f"{node.name} believes that etcd was restored: {reason}")

    # After each write.

    def check_write(self, writer: Node | None, changed: list[bytes]) -> None:
        """Check a write to etcd. ``writer`` is None if a lease ended, or if another program wrote."""
        keys, current = self._keys, self._etcd.current
        if keys.coordinator in changed:
            self._coordinator = writer if keys.coordinator in current else None
            self._coordinator_knew = writer is not None and writer.member.view.last_record is not None
        fenced = any(key.startswith((keys.round, keys.root + b"roster/")) for key in changed)
        if fenced and writer is not None and writer is not self._coordinator:
            self.fail("fencing", f"{writer.name} wrote {changed[0].decode()} and is not the coordinator")
        for key in (keys.round, keys.closed):
            if key in changed and key not in current and not self._may_lose_records():
                self.fail("records", f"{key.decode()} was deleted while there were nodes that needed it")
        if keys.round in changed and keys.round not in current:
            self._record_deleted = True
            if self._coordinator is not None:
                self._coordinator_knew = self._coordinator.member.view.last_record is not None
        if keys.closed in changed and self.closed_at is None and keys.closed in current:
            self.closed_at = self._etcd.revision
        for key in changed:
            if key.startswith(keys.nodes):
                self._note_departure()
                self._may_reform |= self._is_reason(key)
        if writer is None and any(key in current for key in changed):
            return  # another program wrote this: what it wrote says nothing
        if keys.round in changed and keys.round in current:
            self._check_record(RoundRecord.decode(keys.round, current[keys.round].value))
        if keys.bootstrap in changed and keys.bootstrap in current:
            self._check_bootstrap(Bootstrap.decode(keys.bootstrap, current[keys.bootstrap].value))
        elif keys.bootstrap in changed:
            self._bootstrap = None  # deleted: a late request of an old round may write it, and no member believes that

    def _may_lose_records(self) -> bool:
        needed = self._coordinator is not None or any(node.alive and node.place is not None for node in self._nodes)
        return not needed or self.run_lease_lost or self.planted

    def _is_reason(self, key: bytes) -> bool:
        """Return whether a node's key, as it is now, may be a reason to form the next round."""
        record = self.record
        if record is None or not record.complete:
            return False
        try:
            node_id = self._keys.node_id(key)
        except RendezvousStateError:
            return False  # another program wrote it
        last_round = self._last_round(node_id)
        if node_id not in self.members(record.round):
            return last_round is not None
        if last_round is None:
            return self._limits.reform_on_loss
        return last_round >= record.round

    def _check_bootstrap(self, bootstrap: Bootstrap) -> None:
        before, self._bootstrap = self._bootstrap, bootstrap
        current = self.record.attempt if self.record is not None else ""
        if before is not None and before.attempt == current and bootstrap != before:
            self.fail("meeting point", f"{before} was replaced by {bootstrap}")

    def _check_record(self, record: RoundRecord) -> None:
        before, self.record = self.record, record
        deleted, self._record_deleted = self._record_deleted, False
        if deleted and before is not None and record.round <= before.round:
            # Nodes that know nothing of the lost record begin anew. Those that were in a round never return from an
            # earlier one, and as long as one is in a round, no other completes.
            if not self._coordinator_knew:
                self._outdated |= self._attempts  # docs/limits.md: its node joined after the record was lost
            for past in (self.returned, self._rosters, self._first_use):
                past.clear()
            before = None
        if before is not None and (record.round, record.complete) < (before.round, before.complete):
            self.fail(
                "monotony", f"round {before.round} ({before.phase.value}) became {record.round} ({record.phase.value})"
            )
        if record.phase.value == "last call" and not rules.usable(record.joined, self.limits):
            self.fail("bounds", f"round {record.round} has a last call with {record.joined} nodes")
        if not record.complete:
            return
        if before is None or not before.complete or before.round != record.round:
            self._check_completion(record)
        if record.waiting and not self._may_reform:
            self.fail("reason", f"round {record.round} is to end for {record.waiting} nodes, and there is no reason")

    def _check_completion(self, record: RoundRecord) -> None:
        if record.error:
            self._rosters[record.round], self._may_reform = [], True  # nobody knows the members
            return
        self._attempts.add(record.attempt)
        number, size = record.round, record.world_size
        again = record.attempt in self._checked  # the record was lost, and is written again
        self._checked.add(record.attempt)
        if not again:
            self._check_who_may_complete(record)
        prefix = self._keys.roster(number, record.attempt)
        shards = {key: kv.value for key, kv in self._etcd.current.items() if key.startswith(prefix)}
        shards = {key: value for key, value in shards.items() if not key.startswith(prefix + b"names/")}
        if sorted(shards) != [self._keys.shard(number, record.attempt, shard) for shard in range(record.shards)]:
            self.fail("agreement", f"round {number} has {record.shards} shards, but etcd has {sorted(shards)}")
            return
        try:
            members = Roster.decode([shards[key] for key in sorted(shards)]).nodes()
        except RendezvousError as exc:
            self.fail("agreement", f"round {number} is complete and its roster cannot be read: {exc!r}")
            return
        if len(members) != size:
            self.fail("agreement", f"the roster of round {number} has {len(members)} nodes, not {size}")
        for stranger in [node_id for node_id in members if not self._etcd.granted(node_id)]:
            self.fail("strangers", f"node {stranger:x} is a member of round {number}, and etcd granted no such lease")
        if not again:
            self._check_preference(number, members)
            self._check_last_call(number, size)
        self._rosters[number] = members
        self._all_left_at, self._came_back = None, set()
        self._may_reform = any(self._is_reason(key) for key in [*map(self._keys.node, members), *self._node_keys()])

    def _check_who_may_complete(self, record: RoundRecord) -> None:
        number, size, limits = record.round, record.world_size, self.limits
        if self.closed_at is not None:
            self.fail("closed is final", f"round {number} completed after the rendezvous was closed")
        if not limits.min_nodes <= size <= limits.max_nodes or size % limits.node_unit:
            self.fail("bounds", f"round {number} has {size} nodes")
        self._check_exclusivity(record)

    def _node_keys(self) -> list[bytes]:
        return [key for key in self._etcd.current if key.startswith(self._keys.nodes)]

    def _last_round(self, node_id: int) -> int | None:
        """Return the last round that a node has left, as its key says; None if it has no valid key."""
        kv = self._etcd.current.get(self._keys.node(node_id))
        try:
            return None if kv is None or kv.lease != node_id else NodeRecord.decode(kv.key, kv.value).last_round
        except RendezvousStateError:
            return None

    def _check_exclusivity(self, record: RoundRecord) -> None:
        number = record.round
        for node_id in () if number - 1 in self._restored_rounds else self.members(number - 1):
            last_round = self._last_round(node_id)
            if last_round is not None and last_round < number - 1:
                self.fail("exclusivity", f"round {number} completed while node {node_id:x} is in round {number - 1}")
        for node in self._nodes:  # whatever their keys say
            place = node.place
            if place is None or place.attempt in self._outdated:
                continue
            if node.alive and place.attempt != record.attempt and node.lease in self._etcd.leases:
                self.fail("exclusivity", f"round {number} completed while {node.name} is in round {place.round}")

    def _note_departure(self) -> None:
        """Record the time if the last member has left the complete round, or its lease has ended."""
        if self.record is None:
            return
        number = self.record.round - (not self.record.complete)
        last_rounds = {node_id: self._last_round(node_id) for node_id in self.members(number)}
        self._came_back |= {node_id for node_id, last in last_rounds.items() if last == number}
        if self._all_left_at is None and all(last is None or last >= number for last in last_rounds.values()):
            self._all_left_at = asyncio.get_running_loop().time()

    def _check_last_call(self, number: int, size: int) -> None:
        limits, last = self.limits, self.members(number - 1)
        took = asyncio.get_running_loop().time() - (self._all_left_at or 0.0)
        if size + limits.node_unit > limits.max_nodes or took >= limits.last_call * _FAST_CLOCK:
            return
        if self.run_lease_lost or self.planted or self._etcd.restarts:
            return  # the record of the last round may be lost, and the coordinator may know its members nevertheless
        returned = len(self._came_back)
        if returned * 2 <= len(last):
            self.fail(
                "last call", f"round {number} completed after {took:.3f} s with {returned} of {len(last)} members"
            )

    def _check_preference(self, number: int, members: list[int]) -> None:
        last = [] if number - 1 in self._restored_rounds else self.members(number - 1)
        returned = [node_id for node_id in last if self._last_round(node_id) == number - 1]
        left_out = [node_id for node_id in returned if node_id not in members]
        others = [node_id for node_id in members if self._last_round(node_id) != number - 1]
        others = [node_id for node_id in others if self._last_round(node_id) is not None]
        if left_out and others:
            self.fail("preference", f"round {number} has node {others[0]:x} instead of the member {left_out[0]:x}")

    # As time passes.

    def check_joins(self, now: float) -> None:
        """Check that no join takes long if nothing has gone wrong during it."""
        live = [node for node in self._nodes if node.alive and not node.ended]
        most = max((rules.least(node.limits) for node in live), default=0)
        if self.closed_at is not None or len(live) < max(most, rules.least(self._limits)):
            self.faults_until = max(self.faults_until, now)
        for node in live:
            if node.joins_since is None:
                continue
            if node.member.state is State.STANDING_BY:
                node.joins_since = now
            elif now - max(node.joins_since, self.faults_until) > self.join_time:
                self.fail("liveness", f"{node.name} does not get into a round and is {node.member.state.value}")

    # At the end.

    def check_leases(self) -> None:
        """Check that no node relies on a lease that has ended."""
        for node in self._nodes:
            lease = node.member.node_id
            if node.alive and lease is not None and lease not in self._etcd.leases:
                self.fail("liveness", f"{node.name} does not know that its lease has ended")

    def check_liveness(self) -> None:
        """Check that every node is where it must be when nothing has gone wrong for a while."""
        live = [node for node in self._nodes if node.alive and not node.ended]
        if self.closed_at is not None:
            hanging = [node.name for node in live if node.place is None]
            if hanging:
                self.fail("liveness", f"{hanging} still wait though the rendezvous is closed")
            return
        record, limits = self.record, self.limits
        if record is None or not record.complete:
            self.fail("liveness", f"no round is complete: {record}")
            return
        inside = [node for node in live if node.place is not None and node.place.attempt == record.attempt]
        if not limits.reform_on_loss and any(node.member.node_id is None for node in inside):
            return  # as configured, the members stay in the round though a member has lost its lease
        size = rules.usable(len(live), limits)
        if len(inside) != record.world_size and limits.reform_on_loss:
            self.fail("liveness", f"{len(inside)} of the {record.world_size} members of round {record.round} are left")
        # Without reform_on_loss, more members than whole node units may be left of a round that has lost some.
        fits = len(inside) == size or (len(inside) > size and not limits.reform_on_loss)
        if len(inside) < min(size, record.world_size) or (limits.upscale and not fits):
            self.fail("liveness", f"{len(inside)} of {len(live)} nodes are in round {record.round}, not {size}")
        if record.waiting:
            self.fail("liveness", f"the round record counts {record.waiting} waiting nodes")
        if any(node.member.num_nodes_waiting() for node in inside):
            self.fail("liveness", "members are asked to form the next round")
