"""The stream that carries the keep-alives of all leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from rendezvous.etcd.v3.endpoints import Endpoints
from rendezvous.etcd.v3.errors import EtcdError, UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.streams import Stream

__all__ = ["KeepAlives"]


class _Renewal(NamedTuple):
    sent_at: float
    answered: Callable[[bool], None]
    failed: Callable[[EtcdError], None]


class KeepAlives(Stream[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]):
    """The keep-alives of all leases of a client.

    Args:
        endpoints: the endpoints of the cluster.
        timeout: after how many seconds without an answer another endpoint is asked.
    """

    METHOD = ("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse)

    def __init__(self, endpoints: Endpoints, timeout: float) -> None:
        super().__init__(endpoints)
        self._timeout = timeout
        self._pending: dict[int, list[_Renewal]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """See :meth:`EtcdClient.renew`."""
        loop = asyncio.get_running_loop()
        pending = self._pending.setdefault(lease, [])
        pending.append(_Renewal(loop.time(), answered, failed))
        if len(pending) > 1:
            return
        self._open()
        self._outbox.put_nowait(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._check_timeout)

    def _check_timeout(self) -> None:
        """Give up a stream on which no answer has come for too long."""
        self._timer = None
        loop = asyncio.get_running_loop()
        oldest = min((pending[0].sent_at for pending in self._pending.values()), default=loop.time())
        if loop.time() - oldest >= self._timeout:
            endpoint = self._endpoints.current
            self._endpoints.fail_over(endpoint)
            if self._task is not None:
                self._task.cancel()
                self._task = None
            self._broken(UnavailableError("no answer to the keep-alive of a lease", endpoint.target))
        elif self._pending:
            self._timer = loop.call_at(oldest + self._timeout, self._check_timeout)

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
        for renewal in self._pending.pop(answer.ID, ()):
            renewal.answered(answer.TTL > 0)

    def _broken(self, error: EtcdError) -> None:
        broken, self._pending = self._pending, {}
        for pending in broken.values():
            for renewal in pending:
                renewal.failed(error)
