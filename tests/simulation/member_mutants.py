"""Mutants of the members: deliberate faults in what a node does for itself, in its session, and in the bootstrap."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from rendezvous.coordinated import bootstrap, coordinator, election, entry, member, session, tracking, view
from rendezvous.etcd.v3 import client, errors
from rendezvous.etcd.v3.operations import compare, put_op
from tests.simulation.mutation import Patch, always, mutant

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
def _keep_alive_interval_from_the_wall_clock(patch: Patch) -> None:
    """The next keep-alive is due by the wall clock, which somebody may set back."""

    def pause(self: Any) -> float:
        clock = asyncio.get_running_loop().wall_time()  # type: ignore[attr-defined]
        due = self.__dict__.get("due", clock) + self._interval
        self.due = due
        return max(0.0, due - clock)

    patch.setattr(session.Session, "_pause", pause)


@mutant("liveness")
def _keep_alive_not_repeated(patch: Patch) -> None:
    """A keep-alive that is not answered is the last one."""
    patch.setattr(session.Session, "_failed", lambda self, error: None)


@mutant("patience", seeds=1000)
def _full_disk_is_final(patch: Patch) -> None:
    """A join fails at once if etcd has no space."""
    patch.setattr(errors.NoSpaceError, "RETRYABLE", False)


@mutant("no error is lost")
def _shard_read_from_any_member(patch: Patch) -> None:
    """A node reads its shard of the roster from any member of etcd, which may not have it yet."""
    read = client.EtcdClient.range

    async def read_any(self: Any, key: bytes, end: bytes, deadline: float, revision: int = 0, **options: Any) -> Any:
        return await read(self, key, end, deadline, 0 if options else revision, **options)

    patch.setattr(client.EtcdClient, "range", read_any)


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
    patch.setattr(bootstrap, "compare", always)


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
