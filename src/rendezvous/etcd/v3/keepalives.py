"""The stream that carries the keep-alives of all leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rendezvous.etcd.v3.endpoints import Endpoints
from rendezvous.etcd.v3.errors import EtcdError, UnavailableError
from rendezvous.etcd.v3.history import History
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.streams import Stream

__all__ = ["KeepAlives"]

logger = logging.getLogger(__name__)


class _Renewal(NamedTuple):
    due: float
    """When the answer must have come."""
    answered: Callable[[bool], None]
    failed: Callable[[EtcdError], None]


class KeepAlives(Stream[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]):
    """The keep-alives of all leases of a client.

    Args:
        endpoints: the endpoints of the cluster.
        history: notices that etcd was restored from a snapshot.
        timeout: after how many seconds without an answer another endpoint is asked, at most. It is a third of the
            lease's time to live if that is shorter, so that the lease survives an endpoint that does not answer.
    """

    METHOD = ("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse)
    PURPOSE = "keep-alives"

    def __init__(self, endpoints: Endpoints, history: History, timeout: float) -> None:
        super().__init__(endpoints, history)
        self._timeout = timeout
        self._pending: dict[int, list[_Renewal]] = {}
        self._ttls: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def granted(self, lease: int, ttl: int) -> None:
        """Note the time to live of a lease."""
        self._ttls[lease] = ttl

    def revoked(self, lease: int) -> None:
        """Forget a lease."""
        self._ttls.pop(lease, None)

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """See :meth:`EtcdClient.renew`."""
        due = asyncio.get_running_loop().time() + min(self._timeout, self._ttls.get(lease, 3 * self._timeout) / 3)
        pending = self._pending.setdefault(lease, [])
        pending.append(_Renewal(due, answered, failed))
        if len(pending) > 1:
            return
        self._open()
        self._outbox.put_nowait(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
        if self._timer is None or due < self._timer.when():
            self._set_timer(due)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._check_timeout)

    def _check_timeout(self) -> None:
        """Give up a stream on which no answer has come for too long."""
        self._timer = None
        if not self._pending:
            return
        first = min(pending[0].due for pending in self._pending.values())
        if asyncio.get_running_loop().time() < first:
            self._set_timer(first)
            return
        endpoint = self._endpoints.current
        self._endpoints.fail_over(endpoint)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._broken(UnavailableError("no answer to the keep-alive of a lease", endpoint.target))

    async def close(self) -> None:
        """See :meth:`Stream.close`."""
        if self._timer is not None:
            self._timer.cancel()
        await super().close()

    def _needed(self) -> bool:
        return bool(self._pending)

    def _first_messages(self) -> list[rpc_pb2.LeaseKeepAliveRequest]:
        return [rpc_pb2.LeaseKeepAliveRequest(ID=lease) for lease in self._pending]

    def _received(self, answer: rpc_pb2.LeaseKeepAliveResponse) -> None:
        if answer.TTL > 0:
            self._ttls[answer.ID] = answer.TTL
        else:
            self.revoked(answer.ID)
        for renewal in self._pending.pop(answer.ID, ()):
            _call(partial(renewal.answered, answer.TTL > 0))

    def _broken(self, error: EtcdError) -> None:
        broken, self._pending = self._pending, {}
        for pending in broken.values():
            for renewal in pending:
                _call(partial(renewal.failed, error))


def _call(callback: Callable[[], None]) -> None:
    """Call it. An error in one callback must not keep the others from being called."""
    try:
        callback()
    except Exception:
        logger.exception("the answer to a keep-alive could not be processed")
