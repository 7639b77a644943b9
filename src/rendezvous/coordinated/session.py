"""A node's lease. etcd deletes the keys that are bound to it when the node does not renew it any more."""

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

# After this many failed keep-alives in a row there is a warning.
_FAILURES_BEFORE_WARNING = 3


class Session:
    """A lease that is renewed until the session is closed, or etcd answers that the lease does not exist.

    While etcd cannot be reached the session counts as alive, because only etcd knows whether the lease has ended.

    Args:
        client: the etcd cluster.
        lease: the id of the lease.
        ttl: seconds without a keep-alive after which etcd ends the lease.
        interval: seconds between keep-alives.
        on_loss: called once if etcd has ended the lease.
        random: jitters the keep-alives, so that those of many nodes are spread over time.

    Attributes:
        lease: the id of the lease, which is the node's id.
        alive: whether the lease may still exist.
        key_revision: the last known revision of the node's key; 0 if the node has not written it yet.
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
        """Grant a lease and begin to renew it. Raises RendezvousConnectionError."""
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
        self.key_revision = 0
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

    def _answered(self, exists: bool) -> None:
        if not self.alive:
            return
        if not exists:
            self.lose()
            return
        self._failures = 0
        self._timer = self._loop.call_later(self._pause(), self._renew)

    def _failed(self, error: EtcdError) -> None:
        if not self.alive:
            return
        self._failures += 1
        if self._failures == _FAILURES_BEFORE_WARNING or not error.retryable:
            logger.warning("the lease %x could not be renewed: %s; trying again", self.lease, error)
        pause = self._random.uniform(0.02, min(1.0, 0.05 * 2 ** min(self._failures, 9)))
        self._timer = self._loop.call_later(pause if error.retryable else self._pause(), self._renew)

    def _stop(self) -> None:
        self.alive = False
        self._timer.cancel()

    def lose(self) -> None:
        """Record that etcd has ended the lease."""
        if self.alive:
            self._stop()
            self._on_loss()

    def abandon(self) -> None:
        """Do not renew the lease any more: after etcd was restored it may not exist, or be another node's."""
        self._stop()

    async def close(self, deadline: float) -> None:
        """Revoke the lease. If etcd cannot be reached, the lease ends after its time to live."""
        self._stop()
        try:
            await self._client.revoke(self.lease, deadline)
        except RendezvousConnectionError as exc:
            logger.info("the lease %x could not be revoked: %s", self.lease, exc)
