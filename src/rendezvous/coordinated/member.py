"""One node's part: to join, to follow the round, and to take over as coordinator when there is none.

A join grants a lease (once) while a watch on ``ctl/`` begins, and is then one transaction: it writes the node's key,
and the coordinator's where there is none, and reads ``ctl/``. From then on the node is told. It asks once more where
a complete round's roster is too large for the round record.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rendezvous._core import Roster
from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)
from rendezvous.coordinated import rules
from rendezvous.coordinated.coordinator import RUN_TTL, Coordinator
from rendezvous.coordinated.records import Bootstrap, Closed, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Step
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient, Watch
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import Message, absent, compare, get_op, prefix_end, put_op, txn_op

__all__ = ["Member", "Place", "Settings"]

logger = logging.getLogger(__name__)

_FOREVER = 3600.0


@dataclass(frozen=True)
class Settings:
    """How a node takes part.

    Attributes:
        run_id: the name of the job, for messages.
        limits: what the rules go by.
        interval: seconds between keep-alives of the node's lease.
        ttl: seconds without one after which the node counts as lost.
    """

    run_id: str
    limits: rules.Limits
    interval: float
    ttl: int


class Place(NamedTuple):
    """A node's place in a complete round.

    Attributes:
        round: the number of the round.
        rank: the node's rank.
        world_size: how many nodes the round has.
        since: a revision at which the round's store was empty; 0 if it is not known.
        run_lease: what the records of the run hang on.
    """

    round: int
    rank: int
    world_size: int
    since: int
    run_lease: int


class Member:
    """One node of a run.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        node: what the node says of itself.
        settings: how it takes part.
        random: jitters what all nodes would do at once.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, node: NodeRecord, settings: Settings, random: random.Random
    ) -> None:
        self._client = client
        self._keys = keys
        self._node = node
        self._settings = settings
        self._random = random
        self._look = get_op(keys.ctl, prefix_end(keys.ctl))
        self._session: Session | None = None
        self._watch: Watch | None = None
        self._view = View(keys, self._on_change)
        self._coordination: tuple[int, Coordinator, asyncio.Task[None]] | None = None
        self._campaign: asyncio.Task[None] | None = None
        self._resync: asyncio.Task[None] | None = None
        self._watch_lock = asyncio.Lock()
        self._deadline = 0.0
        self._looked_up = -1
        self._place: Place | None = None

    @property
    def view(self) -> View:
        """What the node knows of its run."""
        return self._view

    @property
    def node_id(self) -> int | None:
        """The node's id; None while it has no lease."""
        return self._session.lease if self._session is not None and self._session.alive else None

    # What the launcher asks.

    def num_nodes_waiting(self) -> int:
        """Return how many nodes are a reason to form the next round, as last heard."""
        record, place = self._view.record, self._place
        if record is None or self._view.closed is not None:
            return 0
        if place is not None and (record.round > place.round or self._is_lost()):
            return max(1, record.waiting)  # the others have gone on without this node, or will
        return record.waiting

    def _is_lost(self) -> bool:
        """Whether this node is itself a lost member, which is a reason for all to form the next round."""
        return self._settings.limits.reform_on_loss and self._session is not None and not self._session.alive

    def is_closed(self) -> bool:
        """Return whether the rendezvous is closed, as last heard."""
        return self._view.closed is not None

    # Joining.

    async def join(self, timeout: float, serve: Callable[[], int]) -> tuple[Place, Bootstrap]:
        """Leave the round this node is in, if any, and wait until it is part of a complete one.

        Args:
            timeout: seconds; they do not run while the complete round has no place for the node.
            serve: called in a thread on rank 0 of each round; starts what the workers meet at and returns its port.

        Returns:
            The node's place in the round, and where its workers meet.

        Raises:
            RendezvousClosedError: the rendezvous is closed.
            RendezvousGracefulExitError: it closed while the node stood by.
            RendezvousConnectionError: etcd could not be reached in time, or refused the user.
            RendezvousStateError: what stands in etcd is damaged or foreign.
            RendezvousTimeoutError: no round was complete in time.
        """
        self._deadline = asyncio.get_running_loop().time() + timeout
        try:
            while True:
                place = await self._find_place(timeout)
                bootstrap = await (self._publish(place, serve) if place.rank == 0 else self._hear(place))
                if bootstrap is not None:
                    # No member returns before the bootstrap is published, so nobody can have used the store. The round
                    # record does not tell: it is published again, for example when the number of waiting nodes changes.
                    since = self._view.bootstrap_revision if self._view.bootstrap == bootstrap else 0
                    return place._replace(since=since), bootstrap
                logger.warning("round %d broke before rank 0 said where to meet; joining again", place.round)
        except RendezvousError:
            await self.leave(min(5.0, timeout))
            raise

    async def _find_place(self, timeout: float) -> Place:
        self._place = place = None
        while place is None:
            await self._enter(self._deadline)
            place = await self._follow(timeout)
        self._place = place
        self._node = self._node._replace(last_round=place.round, last_rank=place.rank)
        return place

    async def _enter(self, deadline: float) -> None:
        """Write the node's key, on a lease that lives, with a watch on ``ctl/`` in force."""
        while True:
            await self._prepare(deadline)
            assert self._session is not None
            lease = self._session.lease
            node = put_op(self._keys.node(lease), self._node.encode(), lease)
            try:
                answer = await self._client.txn([], [self._stand(lease), node, self._look], deadline=deadline)
            except EtcdError as exc:
                logger.info("%s: joining again with a new lease", exc)
                self._session.lose()
                continue
            self._view.read(answer.responses[-1].response_range.kvs, answer.header.revision)
            return

    def _stand(self, lease: int) -> Message:
        """Return the operation that makes this node the coordinator where there is none."""
        key = self._keys.coordinator
        return txn_op([absent(key)], [put_op(key, b"%016x" % lease, lease)])

    async def _prepare(self, deadline: float) -> None:
        """Have a lease and a watch, which etcd grants side by side."""
        if self._watch is not None:
            await self._have_session(deadline)
            return
        watching = asyncio.get_running_loop().create_task(self._have_watch(deadline))
        try:
            await self._have_session(deadline)
            await watching
        finally:
            watching.cancel()

    async def _have_session(self, deadline: float) -> None:
        if self._session is None or not self._session.alive:
            settings = self._settings
            self._session = await Session.open(
                self._client, settings.ttl, settings.interval, self._on_loss, self._random, deadline
            )
            # What was looked up was looked up under another id.
            self._looked_up = self._node.last_round

    async def _have_watch(self, deadline: float) -> None:
        async with self._watch_lock:
            if self._watch is None:
                ctl = self._keys.ctl
                self._watch = await self._client.watch(
                    ctl, prefix_end(ctl), self._view.receive, self._lose_track, deadline
                )

    async def _follow(self, timeout: float) -> Place | None:
        """Return the node's place in a round; None where it lost its lease and must enter again."""
        clock = asyncio.get_running_loop().time
        view, stands_by = self._view, False
        while self._session is not None and self._session.alive:
            if view.trouble is not None:
                raise view.trouble
            record = view.record
            step, reason = rules.follow(
                record,
                self._looked_up,
                self._node.last_round,
                stands_by,
                view.closed is not None,
                clock() > self._deadline,
            )
            logger.debug("node %s: %s: %s", self._node.name, step.name, reason)
            if step is Step.LOOK_UP:
                assert record is not None
                place = await self._look_up(record, view.record_revision)
                if place is not None:
                    return place
                continue
            if step is Step.ERROR_CLOSED:
                raise RendezvousClosedError(f"The rendezvous '{self._settings.run_id}' is closed{self._why()}.")
            if step is Step.EXIT_GRACEFULLY:
                raise RendezvousGracefulExitError(
                    f"The rendezvous '{self._settings.run_id}' closed while node {self._node.name} stood by."
                )
            if step is Step.ERROR_TIMEOUT:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._settings.run_id}' timed out for node {self._node.name}: {reason} "
                    f"({timeout:g} s); {rules.blame(record, rules.least(self._settings.limits))}."
                )
            stands_by = step is Step.STAND_BY
            await view.change(self._deadline - clock() + 0.001)
            if stands_by:
                # From what it heard now, whatever that is, the node has the whole time again.
                self._deadline = clock() + timeout
        return None

    def _why(self) -> str:
        closed = self._view.closed
        return f" ({closed.reason}, by {closed.by})" if closed is not None else ""

    async def _look_up(self, record: RoundRecord, revision: int) -> Place | None:
        """Return the node's place in a complete round, or None where it is not a member."""
        session = self._session
        deadline = max(self._deadline, asyncio.get_running_loop().time() + 1.0)
        assert session is not None
        shard = record.roster
        if shard is None:
            key = self._keys.shard(record.round, session.lease % record.shards)
            try:
                found, _ = await self._client.range(key, b"", deadline, revision=revision, serializable=True)
            except EtcdError:
                found, _ = await self._client.range(key, b"", deadline)
            if not found:
                # The round is over already, and tidied away: this node was not in it.
                self._looked_up = record.round
                return None
            shard = found[0].value
        rank, world_size = Roster.find(shard, session.lease)
        self._looked_up = record.round
        if rank is None or not session.alive:
            return None
        return Place(record.round, rank, world_size, 0, self._view.run_lease)

    # Where the workers meet.

    async def _publish(self, place: Place, serve: Callable[[], int]) -> Bootstrap | None:
        """Say, as rank 0, where the workers meet; None where the round is broken already."""
        port = await asyncio.get_running_loop().run_in_executor(None, serve)
        mine = Bootstrap(place.round, self._node.addr, port)
        key, known, revision = self._keys.bootstrap, self._view.bootstrap, self._view.bootstrap_revision
        while known is None or known.round < place.round:
            try:
                answer = await self._client.txn(
                    [compare(key, "mod_revision", revision)],
                    [put_op(key, mine.encode(), place.run_lease), get_op(key)],
                    [get_op(key)],
                    deadline=self._deadline,
                )
            except EtcdError as exc:
                logger.warning("%s: the run's records are gone", exc)
                return None
            found = answer.responses[-1].response_range.kvs
            self._view.update(found)
            if answer.succeeded:
                return mine
            # Another round's rank 0 wrote since this node last heard, or this one's first try did get through.
            known = Bootstrap.decode(key, found[0].value) if found else None
            revision = found[0].mod_revision if found else 0
        return mine if known == mine else None

    async def _hear(self, place: Place) -> Bootstrap | None:
        """Wait for rank 0 to say where the workers meet; None where the round broke before."""
        clock, view = asyncio.get_running_loop().time, self._view
        while True:
            bootstrap, record = view.bootstrap, view.record
            if bootstrap is not None and bootstrap.round == place.round:
                return bootstrap
            if record is None or record.round != place.round or record.headless or self.node_id is None:
                return None
            if record.lost and self._settings.limits.reform_on_loss:
                return None
            if view.closed is not None:
                raise RendezvousClosedError(f"The rendezvous '{self._settings.run_id}' is closed{self._why()}.")
            if clock() > self._deadline:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._settings.run_id}' timed out for node {self._node.name}: rank 0 of round "
                    f"{place.round} is alive but has not said where the workers meet."
                )
            await view.change(self._deadline - clock() + 0.001)

    # Leaving and closing.

    async def close(self, reason: str, deadline: float) -> None:
        """Close the rendezvous for all nodes, for good. Raises RendezvousConnectionError."""
        lease = self._view.run_lease
        while True:
            if not lease:
                found, _ = await self._client.range(self._keys.round, b"", deadline)
                lease = found[0].lease if found else await self._client.grant(RUN_TTL, deadline)
            closed = put_op(self._keys.closed, Closed(reason, self._node.name).encode(), lease)
            try:
                await self._client.txn([absent(self._keys.closed)], [closed], deadline=deadline)
            except EtcdError as exc:
                logger.info("%s: closing on another lease", exc)
                lease = await self._client.grant(RUN_TTL, deadline)
                continue
            self._view.closed = self._view.closed or Closed(reason, self._node.name)
            self._view.wake()
            return

    async def leave(self, timeout: float) -> None:
        """Leave the run: what etcd has of this node goes, and nothing of it runs here any more."""
        for task in (self._campaign, self._resync, self._coordination and self._coordination[2]):
            if task is not None:
                task.cancel()
        self._campaign = self._resync = self._coordination = None
        watch, self._watch = self._watch, None
        session, self._session = self._session, None
        self._view.synced = False
        if watch is not None:
            watch.cancel()
        if session is not None:
            await session.close(asyncio.get_running_loop().time() + timeout)

    # What happens meanwhile.

    def _on_loss(self) -> None:
        logger.warning(
            "node %s lost its lease in the rendezvous '%s': etcd heard nothing of it for %d s",
            self._node.name,
            self._settings.run_id,
            self._settings.ttl,
        )
        self._stop_coordinating()
        self._view.wake()

    def _lose_track(self) -> None:
        """Etcd has forgotten changes that this node has not heard of: read anew."""
        self._watch = None
        self._resync = asyncio.get_running_loop().create_task(self._read_anew())

    async def _read_anew(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self._have_watch(clock() + _FOREVER)
                ctl = self._keys.ctl
                self._view.read(*await self._client.range(ctl, prefix_end(ctl), clock() + _FOREVER))
                return
            except RendezvousConnectionError as exc:
                logger.warning("node %s cannot follow its run: %s", self._node.name, exc)
                await asyncio.sleep(self._settings.interval)

    def _on_change(self) -> None:
        """Coordinate where this node is the coordinator; campaign where nobody is."""
        leader, node_id = self._view.leader, self.node_id
        if self._coordination is not None:
            fence, coordinator, _ = self._coordination
            if leader is None or leader.fence != fence or leader.node_id != node_id:
                self._stop_coordinating()
            elif self._view.closed is not None:
                coordinator.close()
        if node_id is None or self._view.closed is not None:
            return
        if leader is None:
            if self._view.synced and (self._campaign is None or self._campaign.done()):
                self._campaign = asyncio.get_running_loop().create_task(self._run_for_coordinator())
        elif leader.node_id == node_id and self._coordination is None:
            coordinator = Coordinator(self._client, self._keys, self._settings.limits, leader.fence)
            task = asyncio.get_running_loop().create_task(coordinator.run())
            self._coordination = (leader.fence, coordinator, task)

    def _stop_coordinating(self) -> None:
        coordination, self._coordination = self._coordination, None
        if coordination is not None:
            coordination[2].cancel()

    async def _run_for_coordinator(self) -> None:
        """Put this node forward, after a pause in which most nodes hear that another was faster."""
        clock = asyncio.get_running_loop().time
        while True:
            record = self._view.record
            nodes = 0 if record is None else max(record.world_size, record.joined)
            await asyncio.sleep(self._random.uniform(0, min(5.0, 0.1 + rules.publish_interval(nodes, urgent=True))))
            lease = self.node_id
            if self._view.leader is not None or self._view.closed is not None or lease is None:
                return
            try:
                answer = await self._client.txn(
                    [], [self._stand(lease), self._look], deadline=clock() + self._settings.ttl
                )
            except EtcdError:
                if self._session is not None:
                    self._session.lose()
                return
            except RendezvousConnectionError as exc:
                logger.warning("node %s could not run for coordinator: %s; trying again", self._node.name, exc)
                continue
            self._view.read(answer.responses[-1].response_range.kvs, answer.header.revision)
