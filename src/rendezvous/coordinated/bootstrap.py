"""The bootstrap of a round.

Rank 0 publishes the address and port where the workers meet. The other members wait for it. A bootstrap counts only
if it names the attempt id and the rank 0 of the complete round; anything else under the key is stale or foreign.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rendezvous.api import RendezvousClosedError, RendezvousTimeoutError
from rendezvous.coordinated import rules
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Bootstrap, Keys
from rendezvous.coordinated.rules import Assignment
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import compare, get_op, prefix_end, put_op

__all__ = ["BootstrapExchange"]

logger = logging.getLogger(__name__)


class BootstrapExchange:
    """Publishes the bootstrap of a round, or waits for it.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        view: what the node knows of its run.
        run_id: the name of the job, for messages.
        name: the node's name, for messages.
        reform_on_loss: whether a lost member is a reason to form the next round.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, view: View, run_id: str, name: str, reform_on_loss: bool
    ) -> None:
        self._client = client
        self._keys = keys
        self._view = view
        self._run_id = run_id
        self._name = name
        self._reform_on_loss = reform_on_loss
        self._ignored = 0  # the revision of the last bootstrap that was warned about

    async def publish(
        self, assignment: Assignment, addr: str, serve: Callable[[], int], deadline: float
    ) -> Bootstrap | None:
        """Publish the bootstrap, as rank 0; return None if the round has ended.

        Args:
            assignment: what this node got from the round.
            addr: the address of this node.
            serve: called in a thread; starts what the workers connect to and returns its port.
            deadline: until when to try.

        Raises:
            RendezvousConnectionError: etcd could not be reached in time.
            RendezvousTimeoutError: ``serve`` did not return in time.
            ValueError: ``serve`` did not return a port.
        """
        port = await self._start(serve, assignment, addr, deadline)
        if not 1 <= port <= 65535:
            raise ValueError(f"The port where the workers meet must be an integer from 1 to 65535, not {port!r}.")
        own = Bootstrap(assignment.round, assignment.attempt, assignment.first, addr, int(port))
        key, view, read = self._keys.bootstrap, self._view, get_op(self._keys.ctl, prefix_end(self._keys.ctl))
        while view.record is not None and view.record.attempt == assignment.attempt:
            if view.bootstrap == own:
                return own  # an earlier attempt of the request was applied
            self._warn_if_foreign(assignment)
            known = view.known()
            try:
                # The round may have ended: then the bootstrap was deleted, and comparing it alone would not show that.
                answer = await self._client.txn(
                    [
                        compare(key, "mod_revision", view.bootstrap_revision),
                        compare(self._keys.round, "mod_revision", view.record_revision),
                    ],
                    [put_op(key, own.encode(), assignment.run_lease), read],
                    [read],
                    deadline=deadline,
                )
            except EtcdError as exc:
                logger.warning("%s: the run lease has ended, and the run's records with it", exc)
                return None
            view.read(answer.responses[-1].response_range.kvs, answer.header.revision, known)
            if answer.succeeded:
                return own
        return None

    async def _start(self, serve: Callable[[], int], assignment: Assignment, addr: str, deadline: float) -> int:
        """Call ``serve`` in a thread, and return the port. Raises RendezvousTimeoutError."""
        loop = asyncio.get_running_loop()
        port = loop.run_in_executor(None, serve)
        # If the thread does not end in time, nobody waits for its outcome.
        port.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([port], timeout=max(0.0, deadline - loop.time()))
        if not port.done():
            raise RendezvousTimeoutError(
                f"The rendezvous '{self._run_id}' timed out for node {self._name}: it is rank 0 of round "
                f"{assignment.round}, and what the workers connect to at '{addr}' did not start in time. Check that "
                f"'{addr}' is this host's address; torchrun sets it with --local-addr."
            )
        return port.result()

    async def wait(self, assignment: Assignment, alive: Callable[[], bool], deadline: float) -> Bootstrap | None:
        """Wait for the bootstrap; return None if the round ends or breaks before rank 0 has published it.

        Args:
            assignment: what this node got from the round.
            alive: returns whether this node still has its lease.
            deadline: until when to wait.

        Raises:
            RendezvousClosedError: the rendezvous is closed.
            RendezvousTimeoutError: rank 0 did not publish in time.
        """
        clock, view = asyncio.get_running_loop().time, self._view
        while True:
            bootstrap, record = view.bootstrap, view.record
            if bootstrap is not None and _belongs(bootstrap, assignment):
                return bootstrap
            self._warn_if_foreign(assignment)
            if record is None or record.attempt != assignment.attempt or record.rank_0_gone or not alive():
                return None
            if record.error or (record.lost and self._reform_on_loss):
                return None
            if view.closed is not None:
                raise RendezvousClosedError(rules.closed_message(self._run_id, view.closed))
            if clock() > deadline:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._run_id}' timed out for node {self._name}: rank 0 of round "
                    f"{assignment.round} is alive but has not published the address where the workers meet."
                )
            await view.change(deadline - clock() + 0.001)

    def _warn_if_foreign(self, assignment: Assignment) -> None:
        """Warn, once for each, about a bootstrap that does not belong to the round."""
        bootstrap, revision = self._view.bootstrap, self._view.bootstrap_revision
        if bootstrap is None or _belongs(bootstrap, assignment) or revision == self._ignored:
            return
        self._ignored = revision
        logger.warning(
            "node %s of the rendezvous '%s' ignores the etcd key '%s': it is the address of node %s for round %d, and "
            "rank 0 of round %d is node %s",
            self._name,
            self._run_id,
            printable(self._keys.bootstrap),
            bootstrap.node,
            bootstrap.round,
            assignment.round,
            assignment.first,
        )


def _belongs(bootstrap: Bootstrap, assignment: Assignment) -> bool:
    """Return whether a bootstrap is the one that rank 0 published in this round."""
    return (bootstrap.attempt, bootstrap.node) == (assignment.attempt, assignment.first)
