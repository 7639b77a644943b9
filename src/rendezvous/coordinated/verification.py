"""A node that waits checks that what it relies on is still in etcd.

A node watches ``ctl/`` only. It cannot see that another program has overwritten its own key, so that the coordinator
does not count it; or that ``ctl/coordinator`` names a node that does not exist, so that nothing happens.
"""

from __future__ import annotations

import asyncio
import logging

from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.operations import get_op

__all__ = ["Verifier"]

logger = logging.getLogger(__name__)

_CHECK_TIMEOUT = 5.0  # seconds; meanwhile the node does not react to anything
_CHECKS_PER_SECOND = 500  # of all nodes of a round together
_STEPS = 997  # into which the first checks of all nodes are divided; node ids that follow each other fall into others


class Verifier:
    """Checks what one waiting node relies on: some seconds after it began to wait, then after twice as long each time.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        view: what the node knows of its run.
        settings: the configuration: the more nodes a round needs, the later the first check is due.
        longest: the longest time between two checks, in seconds.
        node_id: the node; spreads the checks of all nodes over time.

    Attributes:
        due: when the next check is due.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, view: View, settings: Settings, longest: float, node_id: int
    ) -> None:
        self._client = client
        self._keys = keys
        self._view = view
        self._options = settings.options
        self._longest = longest
        self._clock = asyncio.get_running_loop().time
        delay = settings.options.check_delay + settings.limits.min_nodes / _CHECKS_PER_SECOND
        self._pause = delay * (0.5 + node_id % _STEPS / (2 * _STEPS))
        self.due = self._clock() + self._pause

    async def wait_for_repair(self, name: str) -> None:
        """Wait for a moment, if a record cannot be used: the coordinator may overwrite it.

        Args:
            name: the node's name, for the message.

        Raises:
            RendezvousStateError: no valid record has replaced it.
        """
        ends = self._clock() + self._options.retry_delay
        while (error := self._view.error) is not None:
            if self._clock() >= ends:
                raise RendezvousStateError(f"Node {name} cannot join: {error}.")
            await self._view.change(ends - self._clock())

    async def check(self, session: Session | None, node: NodeRecord, deadline: float) -> bool:
        """Return whether the node's key is what the node has written, under its own lease, as far as is known.

        It takes one read. If etcd does not answer soon, nothing is known.

        Args:
            session: the node's lease; None if it has none.
            node: what the node publishes about itself.
            deadline: until when to try at most.

        Raises:
            RendezvousStateError: ``ctl/coordinator`` names a node that has no key.
        """
        self._pause = min(2 * self._pause, self._longest)
        if session is None:
            return False
        key, coordinator = self._keys.node(session.lease), self._view.coordinator
        reads = [get_op(key), get_op(self._keys.coordinator)]
        if coordinator is not None:
            reads.append(get_op(self._keys.node(coordinator.node_id)))
        try:
            answer = await self._client.txn([], reads, deadline=min(deadline, self._clock() + _CHECK_TIMEOUT))
        except RendezvousConnectionError as exc:
            logger.debug("node %s cannot check what it relies on: %s", node.name, exc)
            return True
        finally:
            self.due = self._clock() + self._pause
        own, current, *rest = (response.response_range.kvs for response in answer.responses)
        # A coordinator writes both keys in one transaction, under one lease, or has written its node's key before.
        if coordinator is not None and current and current[0].lease == coordinator.node_id and not rest[0]:
            raise RendezvousStateError(
                f"the etcd key '{printable(self._keys.coordinator)}' names node {coordinator.node_id:016x}, which has "
                f"no key under '{printable(self._keys.nodes)}': another program wrote it; delete it"
            )
        if own and (own[0].value, own[0].lease) == (node.encode(), session.lease):
            return True
        if session.alive:
            logger.warning(
                "the etcd key '%s' of node %s was overwritten or deleted by another program; it is written again",
                printable(key),
                node.name,
            )
        return False
