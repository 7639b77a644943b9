"""The etcd client on gRPC.

All requests go to one endpoint until it fails, then to another one. One stream carries the keep-alives of all
leases, and one stream carries all watches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import grpc.aio

from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import ClientOptions, EtcdClient, Watch, WatchSpec
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.endpoints import Endpoints
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.keepalives import KeepAlives
from rendezvous.etcd.v3.limiter import Limiter
from rendezvous.etcd.v3.operations import Message
from rendezvous.etcd.v3.watches import Watches

__all__ = ["GrpcEtcdClient"]


class GrpcEtcdClient(EtcdClient):
    """A client of an etcd cluster over gRPC. Create it on the event loop that uses it.

    Args:
        endpoints: hosts and ports of the members. The first is preferred; a random other one is used if it fails.
        credentials: TLS and user.
        options: limits and time-outs.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        credentials: Credentials | None = None,
        options: ClientOptions | None = None,
    ) -> None:
        super().__init__(random.Random(), options)
        self._endpoints = Endpoints(endpoints, credentials or Credentials(), self.options)
        self._limiter = Limiter(self.options.max_in_flight)
        self._keep_alives = KeepAlives(self._endpoints, self.history, self.options.keep_alive_timeout)
        self._watches = Watches(self._endpoints, self.history)
        self._closed = False

    @property
    def target(self) -> str:
        """See :attr:`EtcdClient.target`."""
        return self._endpoints.current.target

    async def close(self) -> None:
        """See :meth:`EtcdClient.close`."""
        self._closed = True
        await self._keep_alives.close()
        await self._watches.close()
        await self._endpoints.close()

    async def check(self, key: bytes, deadline: float) -> None:
        """See :meth:`EtcdClient.check`."""
        self._endpoints.probe_key = key
        await super().check(key, deadline)

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        await self._limiter.acquire(deadline)
        try:
            self._check_open()
            endpoint = self._endpoints.current
            metadata = await self._endpoints.metadata(timeout)
            try:
                answer = await endpoint.unary(call)(request, timeout=timeout, metadata=metadata)
            except grpc.aio.AioRpcError as exc:
                raise self._endpoints.failure(exc, endpoint, metadata) from None
            self._endpoints.succeeded()
            if call is Call.GRANT:
                self._keep_alives.granted(answer.ID, answer.TTL)
            elif call is Call.REVOKE:
                self._keep_alives.revoked(request.ID)
            return answer
        finally:
            self._limiter.release()

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """See :meth:`EtcdClient.renew`."""
        if self._closed:
            failed(EtcdError("the client is closed"))
        else:
            self._keep_alives.renew(lease, answered, failed)

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        self._check_open()
        return await self._watches.start(spec, deadline)

    def _check_open(self) -> None:
        if self._closed:
            raise EtcdError("the client is closed")
