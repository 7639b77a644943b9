"""A node's lease: its life in etcd. What hangs on it goes when the node does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError

__all__ = ["Session"]

logger = logging.getLogger(__name__)

# After how many failed keep-alives the log says so.
_SAID_AFTER = 3


class Session:
    """A lease that is kept alive until it is closed or etcd says that it is gone.

    While etcd cannot be reached the session lives on: whether its lease did is for etcd to say.

    Args:
        client: the etcd cluster.
        lease: the id of the lease.
        ttl: seconds without a keep-alive after which etcd ends the lease.
        interval: seconds between keep-alives.
        on_loss: called once, where etcd has ended the lease.
        random: jitters the keep-alives, so that the nodes' do not come in bursts.
    """

    @classmethod
    async def open(
        cls,
        client: EtcdClient,
        ttl: int,
        interval: float,
        on_loss: Callable[[], None],
        random: random.Random,
        deadline: float,
    ) -> Session:
        """Grant a lease and begin to keep it alive. Raises RendezvousConnectionError."""
        return cls(client, await client.grant(ttl, deadline), ttl, interval, on_loss, random)

    def __init__(
        self,
        client: EtcdClient,
        lease: int,
        ttl: int,
        interval: float,
        on_loss: Callable[[], None],
        random: random.Random,
    ) -> None:
        self.lease = lease
        self.alive = True
        self._client = client
        self._ttl = ttl
        self._interval = interval
        self._on_loss = on_loss
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        self._timer = self._loop.call_later(self._pause(), self._renew)

    def _pause(self) -> float:
        return self._interval * self._random.uniform(0.8, 1.0)

    def _renew(self) -> None:
        self._client.renew(self.lease, self._answered, self._failed)

    def _answered(self, there: bool) -> None:
        if not self.alive:
            return
        if not there:
            self.lose()
            return
        self._failures = 0
        self._timer = self._loop.call_later(self._pause(), self._renew)

    def _failed(self, error: EtcdError) -> None:
        if not self.alive:
            return
        self._failures += 1
        if self._failures == _SAID_AFTER or not error.retryable:
            logger.warning("the lease %x could not be kept alive: %s; trying again", self.lease, error)
        pause = self._random.uniform(0.02, min(1.0, 0.05 * 2 ** min(self._failures, 9)))
        self._timer = self._loop.call_later(pause if error.retryable else self._pause(), self._renew)

    def _stop(self) -> None:
        self.alive = False
        self._timer.cancel()

    def lose(self) -> None:
        """Take note that etcd has ended the lease."""
        if self.alive:
            self._stop()
            self._on_loss()

    async def close(self, deadline: float) -> None:
        """Revoke the lease. Where etcd cannot be reached, it ends by itself."""
        self._stop()
        try:
            await self._client.revoke(self.lease, deadline)
        except RendezvousConnectionError as exc:
            logger.info("the lease %x could not be revoked: %s", self.lease, exc)
