"""One node's part: it joins, follows the round record, and leaves.

A join gets a lease and starts a watch on ``ctl/`` at the same time. Then one transaction writes the node's key, makes
the node the coordinator if there is none, and reads ``ctl/``. From then on the watch delivers everything. The node
sends one more request only if the roster of the complete round is too large for the round record.

:mod:`rendezvous.coordinated.lifecycle` has the states of a member and the transitions between them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)
from rendezvous.coordinated import rules
from rendezvous.coordinated.agreement import Agreement, published
from rendezvous.coordinated.bootstrap import BootstrapExchange
from rendezvous.coordinated.election import Election
from rendezvous.coordinated.entry import close, enter, withdraw
from rendezvous.coordinated.lifecycle import Lifecycle, State
from rendezvous.coordinated.records import Bootstrap, Closed, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.roster import find_rank
from rendezvous.coordinated.rules import Assignment, Step
from rendezvous.coordinated.run_lease import RunLease
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.tracking import Tracker
from rendezvous.coordinated.verification import Verifier
from rendezvous.coordinated.versions import VersionError
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError

__all__ = ["Member"]

logger = logging.getLogger(__name__)


class Member:
    """One node of a run.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        node: what the node publishes about itself.
        settings: the configuration.
        random: jitters what all nodes would otherwise do at the same time.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, node: NodeRecord, settings: Settings, random: random.Random
    ) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._agreement = Agreement(settings.run_id, node.name, published(settings.limits))
        self._node = self._agreement.sign_node(node)
        self._random = random
        self._lifecycle = Lifecycle()
        self._session: Session | None = None
        self._settling: asyncio.Task[None] | None = None
        self._restored = False
        self._restorations = client.history.restorations
        self._deadline = 0.0
        self._looked_up = ""
        self._assignment: Assignment | None = None
        self._last_attempt = ""
        self._member_id: int | None = None  # the node's id in the last round
        self._is_outsider = False
        self._view = View(keys, self._on_change, client.history.restored)
        self._tracker = Tracker(client, keys, self._view, self._live_session, node.name, settings.interval)
        self._run_lease = RunLease(client, self._view, settings.options.run_keep_alive_interval, random)
        self._election = Election(client, keys, self._view, settings, self._live_session, self._agreement, random)
        self._bootstrap = BootstrapExchange(
            client, keys, self._view, settings.run_id, node.name, settings.limits.reform_on_loss
        )

    @property
    def view(self) -> View:
        """What the node knows of its run."""
        return self._view

    @property
    def state(self) -> State:
        """The state of the node."""
        return self._lifecycle.state

    @property
    def node_id(self) -> int | None:
        """The node's id; None while it has no lease."""
        session = self._live_session()
        return None if session is None else session.lease

    def _live_session(self) -> Session | None:
        return self._session if self._session is not None and self._session.alive else None

    # What a launcher asks. The answers come from the view, without a request.

    def num_nodes_waiting(self) -> int:
        """Return how many nodes are a reason to form the next round."""
        record, assignment = self._view.record, self._assignment
        if self._view.closed is not None:
            return 0
        if isinstance(self._view.error, VersionError) and assignment is not None:
            return 1  # this node would not learn of anything: its next join raises the error
        waiting = 0 if record is None else record.waiting
        replaced = assignment is not None and record is not None and record.attempt != assignment.attempt
        if replaced or self._is_lost():
            return max(1, waiting)  # the others form another round without this node, or soon will
        return waiting

    def _is_lost(self) -> bool:
        """Return whether this node is lost itself, which is a reason for all members to form the next round.

        If etcd was restored from a snapshot, all members are lost, and they form the next round in any case.
        """
        return self.state is State.LOST and (self._restored or self._settings.limits.reform_on_loss)

    @property
    def may_close(self) -> bool:
        """Whether the end of this node ends the run: not if it joined and has no place in the latest round.

        A node whose join timed out may close, because the other nodes wait for it in vain.
        """
        return not self._is_outsider or rules.has_place(self._view.record, self._last_attempt)

    def is_closed(self) -> bool:
        """Return whether the rendezvous is known to be closed."""
        return self._view.closed is not None

    # Joining.

    async def join(self, timeout: float, serve: Callable[[], int]) -> tuple[Assignment, Bootstrap]:
        """Leave the round that this node is in, if any, and wait until it is a member of a complete one.

        Args:
            timeout: the join timeout in seconds; it does not run while the node is a spare.
            serve: called in a thread on rank 0 of each round; starts what the workers connect to and returns its port.

        Returns:
            What the node got from the round, and the address where its workers meet.

        Raises:
            IllegalTransitionError: another join is under way.
            RendezvousClosedError: the rendezvous is closed.
            RendezvousGracefulExitError: it was closed while the node was a spare.
            RendezvousConnectionError: etcd could not be reached in time or refused the user, or the node left.
            RendezvousStateError: a record in etcd is damaged or foreign.
            RendezvousTimeoutError: no round with this node was complete in time.
        """
        self._lifecycle.begin_join()
        self._follow_history()
        self._run_lease.start()
        self._is_outsider = True
        self._deadline = asyncio.get_running_loop().time() + timeout
        try:
            while True:
                assignment = await self._find_assignment(timeout)
                bootstrap = await self._meet(assignment, serve)
                self._check_not_left()
                if bootstrap is not None:
                    self._lifecycle.become(State.LOST if self.node_id is None else State.IN_ROUND)
                    # The key is created after the round completed, and no member returns before, so nobody had used the
                    # store then. Newer writes cannot tell: the round record and the bootstrap may be written again.
                    since = self._view.bootstrap_created if self._view.bootstrap == bootstrap else 0
                    return assignment._replace(since=since), bootstrap
                logger.warning(
                    "round %d broke before rank 0 published the address where the workers meet; joining again",
                    assignment.round,
                )
                self._lifecycle.become(State.ENTERING)
        except asyncio.CancelledError:
            self._lifecycle.become(State.IDLE)
            raise
        except Exception as exc:
            self._is_outsider = not isinstance(exc, RendezvousTimeoutError)
            await self.leave(min(self._settings.options.leave_timeout, timeout))
            raise

    async def _find_assignment(self, timeout: float) -> Assignment:
        self._assignment, self._restored = None, False
        while True:
            await self._enter(self._deadline)
            self._check_not_left()
            self._lifecycle.become(State.WAITING)
            assignment = await self._follow(timeout)
            self._check_not_left()
            if assignment is not None:
                break
            self._lifecycle.become(State.ENTERING)
        self._lifecycle.become(State.MEETING)
        self._assignment = assignment
        self._last_attempt, self._member_id = assignment.attempt, self.node_id
        self._node = msgspec.structs.replace(self._node, last_round=assignment.round, last_rank=assignment.rank)
        return assignment

    async def _meet(self, assignment: Assignment, serve: Callable[[], int]) -> Bootstrap | None:
        if assignment.rank == 0:
            return await self._bootstrap.publish(assignment, self._node.addr, serve, self._deadline)
        return await self._bootstrap.wait(assignment, lambda: self.node_id is not None, self._deadline)

    def _check_not_left(self) -> None:
        """Raise RendezvousConnectionError if :meth:`leave` was called while the join was under way."""
        if self.state is State.IDLE:
            raise RendezvousConnectionError(
                f"Node {self._node.name} left the rendezvous '{self._settings.run_id}' while it was joining."
            )

    async def _enter(self, deadline: float) -> None:
        """Write the node's key, bound to a live lease, while a watch on ``ctl/`` is active."""
        while True:
            await self._prepare(deadline)
            self._check_not_left()
            session = self._live_session()
            if session is None:
                continue  # etcd was restored meanwhile
            try:
                await enter(self._client, self._keys, session, self._node, self._view, self._random, deadline)
                self._election.update()  # it may have waited for the node's key
                return
            except EtcdError as exc:
                logger.info("%s: joining again with a new lease", exc)
                session.lose()

    async def _prepare(self, deadline: float) -> None:
        """Get a lease and start a watch, at the same time."""
        if self._tracker.watching:
            await self._have_session(deadline)
            return
        watching = asyncio.get_running_loop().create_task(self._tracker.start(deadline))
        try:
            await self._have_session(deadline)
            await watching
        finally:
            watching.cancel()

    async def _have_session(self, deadline: float) -> None:
        if self._session is None or not self._session.alive:
            settings = self._settings
            if self._settling is not None:  # the key that the node has had before must not count as another node
                await asyncio.wait({self._settling}, timeout=settings.ttl)
            self._session = await Session.open(
                self._client, settings.ttl, settings.interval, self._on_loss, self._random, deadline
            )
            self._looked_up = ""  # the rosters were searched for another node id

    async def _follow(self, timeout: float) -> Assignment | None:
        """Return what the node gets from a round; None if it must enter again: its lease ended, or it skips a round."""
        clock, view = asyncio.get_running_loop().time, self._view
        verifier = Verifier(self._client, self._keys, view, self._settings, timeout / 2, self.node_id or 0)
        while self.node_id is not None:
            if view.error is not None:
                await verifier.wait_for_repair(self._node.name)
                continue
            record = view.record
            stands_by, closed, late = self.state is State.STANDING_BY, view.closed is not None, clock() > self._deadline
            last_round, returned = self._node.last_round, self.node_id == self._member_id
            step, reason = rules.follow(record, self._looked_up, last_round, stands_by, closed, late, returned)
            logger.debug("node %s: %s: %s", self._node.name, step.name, reason)
            if step is Step.LOOK_UP:
                assert record is not None
                assignment = await self._look_up(record, view.record_revision)
                if assignment is not None:
                    return assignment
                continue
            if step is Step.SKIP:
                assert record is not None
                logger.warning("node %s waits for the next round: %s", self._node.name, reason)
                self._node = msgspec.structs.replace(self._node, last_round=record.round, last_rank=-1)
                return None
            self._raise_final(step, reason, timeout)
            if (step is Step.STAND_BY) != stands_by:
                self._lifecycle.become(State.WAITING if stands_by else State.STANDING_BY)
            await view.change(min(self._deadline, verifier.due) - clock() + 0.001)
            holds = clock() < verifier.due or await verifier.check(self._session, self._node, self._deadline)
            if step is Step.STAND_BY:
                # Each update that a spare receives, whatever it says, restarts its join timeout.
                self._deadline = clock() + timeout
            if not holds:
                return None
        return None

    def _raise_final(self, step: Step, reason: str, timeout: float) -> None:
        """Raise the error with which the join ends, if ``step`` ends it."""
        run_id, view = self._settings.run_id, self._view
        if step is Step.ERROR_CLOSED:
            raise RendezvousClosedError(rules.closed_message(run_id, view.closed))
        if step is Step.EXIT_GRACEFULLY:
            raise RendezvousGracefulExitError(
                f"The rendezvous '{run_id}' was closed while node {self._node.name} was a spare."
            )
        if step is Step.ERROR_TIMEOUT:
            progress = rules.progress(view.record, rules.least(self._settings.limits))
            raise RendezvousTimeoutError(
                f"The rendezvous '{run_id}' timed out for node {self._node.name}: {reason} ({timeout:g} s); {progress}."
            )

    async def _look_up(self, record: RoundRecord, revision: int) -> Assignment | None:
        """Return what the node gets from a complete round; None if it is not a member."""
        session = self._session
        deadline = max(self._deadline, asyncio.get_running_loop().time() + 1.0)
        assert session is not None
        place = await find_rank(self._client, self._keys, record, revision, session.lease, deadline)
        self._looked_up = record.attempt
        if place is None or not session.alive:
            return None
        return Assignment(record.round, *place, 0, self._view.run_lease, record.attempt, record.first)

    # Closing and leaving.

    async def close(self, reason: str, deadline: float) -> None:
        """Close the rendezvous for all nodes, for good. Raises RendezvousConnectionError."""
        closed, lease, ttl = Closed.of(reason, self._node), self._view.run_lease, self._settings.options.run_ttl
        await close(self._client, self._keys, closed, lease, ttl, deadline)
        self._view.closed = self._view.closed or closed
        self._view.wake()

    async def leave(self, timeout: float) -> None:
        """Leave the run: stop all of the node's tasks, and delete its keys within ``timeout`` seconds."""
        self._lifecycle.become(State.IDLE)
        self._client.history.unsubscribe(self._on_restored)
        self._election.stop()
        self._run_lease.stop()
        self._tracker.stop()
        settling, self._settling = self._settling, None
        session, self._session = self._session, None
        self._view.synced = False
        self._view.wake()  # a join that is under way ends
        if session is not None:
            await session.close(asyncio.get_running_loop().time() + timeout)
        if settling is not None:
            await asyncio.wait({settling}, timeout=timeout)
            settling.cancel()

    # Events.

    def _on_change(self) -> None:
        self._agreement.check_coordinator(self._view.record)
        self._election.update()

    def _on_loss(self) -> None:
        logger.warning(
            "node %s lost its lease in the rendezvous '%s': no keep-alive for %d s, or its key was deleted",
            self._node.name,
            self._settings.run_id,
            self._settings.ttl,
        )
        if self.state is State.IN_ROUND:
            self._lifecycle.become(State.LOST)
        self._election.step_down()
        self._view.wake()

    def _follow_history(self) -> None:
        """Be told if etcd is restored from a snapshot from now on; or see that it was while the node took no part."""
        self._client.history.subscribe(self._on_restored)
        if self._restorations != self._client.history.restorations:
            self._restorations = self._client.history.restorations
            self._view.forget()

    def _on_restored(self, reason: str) -> None:
        """Begin anew: etcd was restored, so the node's lease, its view and the round mean nothing any more."""
        logger.warning(
            "node %s of the rendezvous '%s' gives up its lease and joins the next round, because etcd was restored: %s",
            self._node.name,
            self._settings.run_id,
            reason,
        )
        self._restorations = self._client.history.restorations
        self._restored = True
        if self.state is State.IN_ROUND:
            self._lifecycle.become(State.LOST)
        self._election.stop()
        self._view.forget()
        session, self._session = self._session, None
        if session is not None:
            session.abandon()
        self._settling = asyncio.get_running_loop().create_task(self._settle(session))
        self._view.wake()

    async def _settle(self, session: Session | None) -> None:
        """Make etcd say after a restoration what it must: that the lease is given up, and that the run is closed."""
        deadline, closed = asyncio.get_running_loop().time() + self._settings.ttl, self._view.closed
        try:
            if session is not None:
                await withdraw(self._client, self._keys, session, self._node, deadline)
            if closed is not None:
                await close(self._client, self._keys, closed, 0, self._settings.options.run_ttl, deadline)
        except RendezvousConnectionError as exc:
            logger.warning("node %s could not settle what it had written before: %s", self._node.name, exc)
