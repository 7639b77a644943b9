"""The election of the coordinator: the node that creates ``ctl/coordinator`` coordinates while that key exists.

The key is bound to the node's lease, so it disappears when the node does. Every node watches it. If it disappears, all
nodes start a campaign: each waits for a random time, so that most of them learn of the winner before they send a
request.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated import rules
from rendezvous.coordinated.agreement import Agreement
from rendezvous.coordinated.coordinator import Coordinator
from rendezvous.coordinated.records import CoordinatorRecord, Keys, new_id
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.view import CurrentCoordinator, View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import Operation, compare, get_op, prefix_end, put_op, txn_op

__all__ = ["Election", "campaign_op"]

logger = logging.getLogger(__name__)


def campaign_op(keys: Keys, lease: int, random: random.Random, revision: int = 0) -> Operation:
    """Return the operation that makes a node the coordinator if there is none.

    Args:
        keys: the keys of the run.
        lease: the node's lease.
        random: draws the nonce.
        revision: the revision of a foreign key that is overwritten; 0 if there must be no key.
    """
    key, record = keys.coordinator, CoordinatorRecord(f"{lease:016x}", new_id(random))
    return txn_op([compare(key, "mod_revision", revision)], [put_op(key, record.encode(), lease)])


class _Term(NamedTuple):
    """The time in which this node coordinates."""

    fence: CurrentCoordinator
    coordinator: Coordinator
    task: asyncio.Task[None]


class Election:
    """Runs the coordinator while this node is elected, and a campaign while no node is.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        view: what the node knows of its run.
        settings: the configuration. A request of a campaign must succeed within the time to live of the node's lease.
        session: returns the node's session, or None if it has no lease.
        agreement: what the node is configured with, and how other nodes differ.
        random: jitters the campaigns, and draws nonces and attempt ids.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        view: View,
        settings: Settings,
        session: Callable[[], Session | None],
        agreement: Agreement,
        random: random.Random,
    ) -> None:
        self._client = client
        self._keys = keys
        self._view = view
        self._limits = settings.limits
        self._options = settings.options
        self._session = session
        self._ttl = settings.ttl
        self._agreement = agreement
        self._random = random
        self._term: _Term | None = None
        self._campaign: asyncio.Task[None] | None = None
        self._overwritten = 0

    def update(self) -> None:
        """React to a change of the view: start or stop the coordinator, or start a campaign."""
        view, session = self._view, self._session()
        current, lease = view.coordinator, session.lease if session is not None else None
        if self._term is not None:
            if current != self._term.fence or self._term.fence.node_id != lease:
                # If another program overwrote the key of this coordinator, the node takes it back. No node overwrites
                # the key of another, and a key that is overwritten keeps its create revision.
                overwritten = current is None or current.revision == self._term.fence.revision
                self._overwritten = view.coordinator_revision if overwritten else 0
                self.step_down()
            elif view.closed is not None:
                self._term.coordinator.close()
            elif view.record_lost:
                self._term.coordinator.notice_loss(view.record_lost)
        if session is None or view.closed is not None:
            return
        if self._may_write():
            if not session.key_revision:
                return  # the transaction that writes the node's key is a campaign too; no coordinator is without a key
            idle = self._campaign is None or self._campaign.done()
            if view.synced and idle:
                self._campaign = asyncio.get_running_loop().create_task(self._run_campaign())
        elif current is not None and current.node_id == lease and self._term is None:
            coordinator = Coordinator(
                self._client,
                self._keys,
                self._limits,
                current,
                self._random,
                self._agreement,
                self._options,
                view.last_record,
            )
            task = asyncio.get_running_loop().create_task(coordinator.run())
            self._term = _Term(current, coordinator, task)

    def _may_write(self) -> bool:
        """Return whether there is no coordinator, or only a record that overwrote the key of this coordinator."""
        return self._view.coordinator_revision in (0, self._overwritten)

    def step_down(self) -> None:
        """Stop the coordinator if it runs in this node."""
        term, self._term = self._term, None
        if term is not None:
            term.task.cancel()

    def stop(self) -> None:
        """Stop the coordinator and the campaign."""
        campaign, self._campaign = self._campaign, None
        if campaign is not None:
            campaign.cancel()
        self._overwritten = 0
        self.step_down()

    def _delay(self) -> float:
        """Return the seconds to wait before a campaign."""
        spread = rules.campaign_spread(self._view.record, self._limits.min_nodes)
        return self._random.uniform(0, self._options.campaign_delay + spread)

    async def _run_campaign(self) -> None:
        """Try to become the coordinator until this node or another one is."""
        clock = asyncio.get_running_loop().time
        read = get_op(self._keys.ctl, prefix_end(self._keys.ctl))
        while True:
            await asyncio.sleep(self._delay())
            session = self._session()
            if not self._may_write() or self._view.closed is not None or session is None or not session.key_revision:
                return
            operation = campaign_op(self._keys, session.lease, self._random, self._view.coordinator_revision)
            known = self._view.known()
            try:
                answer = await self._client.txn([], [operation, read], deadline=clock() + self._ttl)
            except EtcdError:
                session.lose()
                return
            except RendezvousConnectionError as exc:
                logger.warning("node %s could not become the coordinator: %s; trying again", self._agreement.name, exc)
                continue
            self._view.read(answer.responses[-1].response_range.kvs, answer.header.revision, known)
