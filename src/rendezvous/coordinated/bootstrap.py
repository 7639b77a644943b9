"""The bootstrap of a round.

Rank 0 publishes the address and port where the workers meet. The other members wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rendezvous.api import RendezvousClosedError, RendezvousTimeoutError
from rendezvous.coordinated import rules
from rendezvous.coordinated.records import Bootstrap, Keys
from rendezvous.coordinated.rules import Assignment
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import compare, get_op, put_op

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

    async def publish(
        self, assignment: Assignment, addr: str, serve: Callable[[], int], deadline: float
    ) -> Bootstrap | None:
        """Publish the bootstrap, as rank 0; return None if a later round or another process published already.

        Args:
            assignment: what this node got from the round.
            addr: the address of this node.
            serve: called in a thread; starts what the workers connect to and returns its port.
            deadline: until when to try.

        Raises:
            RendezvousConnectionError: etcd could not be reached in time.
            RendezvousStateError: the stored bootstrap is not valid.
            ValueError: ``serve`` did not return a port.
        """
        port = await asyncio.get_running_loop().run_in_executor(None, serve)
        if not 1 <= port <= 65535:
            raise ValueError(f"The port where the workers meet must be an integer from 1 to 65535, not {port!r}.")
        own = Bootstrap(assignment.round, addr, int(port))
        key, known, revision = self._keys.bootstrap, self._view.bootstrap, self._view.bootstrap_revision
        while known is None or known.round < assignment.round:
            try:
                answer = await self._client.txn(
                    [compare(key, "mod_revision", revision)],
                    [put_op(key, own.encode(), assignment.run_lease), get_op(key)],
                    [get_op(key)],
                    deadline=deadline,
                )
            except EtcdError as exc:
                logger.warning("%s: the run lease has ended, and the run's records with it", exc)
                return None
            found = answer.responses[-1].response_range.kvs
            self._view.update(found)
            if answer.succeeded:
                return own
            # Rank 0 of another round wrote in the meantime, or this write was sent twice and applied the first time.
            known = Bootstrap.decode(key, found[0].value) if found else None
            revision = found[0].mod_revision if found else 0
        return own if known == own else None

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
            if bootstrap is not None and bootstrap.round == assignment.round:
                return bootstrap
            if record is None or record.round != assignment.round or record.rank_0_gone or not alive():
                return None
            if record.lost and self._reform_on_loss:
                return None
            if view.closed is not None:
                raise RendezvousClosedError(rules.closed_message(self._run_id, view.closed))
            if clock() > deadline:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._run_id}' timed out for node {self._name}: rank 0 of round "
                    f"{assignment.round} is alive but has not published the address where the workers meet."
                )
            await view.change(deadline - clock() + 0.001)
