"""The endpoints of a cluster: their channels, and which one is used now."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from rendezvous.etcd.v3.authentication import Authenticator, Metadata
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import ClientOptions
from rendezvous.etcd.v3.credentials import Certificates, Credentials
from rendezvous.etcd.v3.errors import EtcdError, NoUserError, StaleTokenError, TlsError, UnavailableError, translate
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import format_endpoint

__all__ = ["Endpoint", "Endpoints", "Metadata"]

logger = logging.getLogger(__name__)

# Seconds within which the preferred endpoint must answer before it is used again.
_RETURN_TIMEOUT = 5.0

# The longest pause between two attempts to return to the preferred endpoint, in seconds.
_LONGEST_RETURN_PAUSE = 1800.0


# The shortest time between two looks at the certificate files, in seconds.
_RELOAD_INTERVAL = 0.5


class Endpoint:
    """One member of the cluster: its channel, and the methods that are called on it.

    Args:
        target: host and port.
        credentials: the certificates.
        options: time-outs.

    Raises:
        OSError: a file of the credentials cannot be read.
    """

    def __init__(self, target: str, credentials: Credentials, options: ClientOptions) -> None:
        self.target = target
        self.tls_failed = False
        """Whether the last failure was one of TLS."""
        self._credentials = credentials
        self._options = _channel_options(options)
        self._methods: dict[Call, Any] = {}
        self._reload_at = 0.0
        self._readable = True
        self._replaced: list[grpc.aio.Channel] = []
        self._certificates = credentials.read() if credentials.tls else None
        self._channel: grpc.aio.Channel | None = self._new_channel(self._certificates)

    def _new_channel(self, certificates: Certificates | None) -> grpc.aio.Channel:
        if certificates is None:
            return grpc.aio.insecure_channel(self.target, self._options)
        return grpc.aio.secure_channel(self.target, certificates.channel_credentials(), self._options)

    def reload(self) -> None:
        """Connect with the certificates that the files contain now, if they have changed."""
        now = time.monotonic()
        if self._channel is None or not self._credentials.tls or now < self._reload_at:
            return
        self._reload_at = now + _RELOAD_INTERVAL
        try:
            certificates = self._credentials.read()
        except OSError as exc:
            if self._readable:
                logger.warning("'%s' cannot be read: %s; the certificates stay as they are", exc.filename, exc.strerror)
            self._readable = False
            return
        self._readable = True
        if certificates != self._certificates:
            logger.info("the certificate files have changed; connecting to etcd at %s with the new ones", self.target)
            # Requests may be in flight on the old channel. It is closed with the others.
            self._replaced.append(self.channel)
            self._certificates, self._methods = certificates, {}
            self._channel = self._new_channel(certificates)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises EtcdError if it is closed."""
        if self._channel is None:
            raise EtcdError("the client is closed", self.target)
        return self._channel

    async def close(self) -> None:
        """Close all connections."""
        if self._channel is not None:
            channels = [self._channel, *self._replaced]
            # A channel that is closed goes on to connect until the last reference to it is gone.
            self._channel = None
            self._replaced.clear()
            self._methods.clear()
            while channels:
                await channels.pop().close()

    def unary(self, call: Call) -> Any:
        """Return the method, which sends a request and returns its answer."""
        method = self._methods.get(call)
        if method is None:
            method = self._methods[call] = self.channel.unary_unary(
                f"/etcdserverpb.{call.method}",
                request_serializer=call.request.SerializeToString,
                response_deserializer=call.response.FromString,
            )
        return method

    def stream(self, name: str, request: Any, response: Any, metadata: Metadata) -> Any:
        """Open a stream."""
        return self.channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(metadata=metadata)


def _channel_options(options: ClientOptions) -> Sequence[tuple[str, int]]:
    interval, timeout = round(1000 * options.ping_interval), round(1000 * options.ping_timeout)
    return (
        ("grpc.max_receive_message_length", -1),
        # A host that vanished is noticed after 15 s at the latest, with the default options.
        ("grpc.keepalive_time_ms", interval),
        ("grpc.keepalive_timeout_ms", timeout),
        # Without these two a ping may take a minute, and a watch that receives nothing for long is not pinged at all.
        ("grpc.http2.ping_timeout_ms", timeout),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # The client retries requests itself, and etcd is not behind a web proxy.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )


class Endpoints:
    """All endpoints of a cluster, of which one is used at a time.

    If it fails, a random other one is used. Some minutes later the client returns to the first, if that answers: so the
    clients of a cluster, each of which prefers a random endpoint, are spread evenly again after members restarted.

    Args:
        endpoints: hosts and ports. The first is preferred.
        credentials: TLS and user.
        options: limits and time-outs.

    Raises:
        OSError: a file of the credentials cannot be read.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], credentials: Credentials, options: ClientOptions) -> None:
        self._all = [Endpoint(format_endpoint(*each), credentials, options) for each in endpoints]
        self.current = self._preferred = self._all[0]
        """The endpoint that is used now."""
        self.on_return: list[Callable[[], None]] = []
        """Called when the client has returned to the preferred endpoint."""
        self.on_failure: list[Callable[[Endpoint], None]] = []
        """Called with the endpoint that the client has left because it failed."""
        self.probe_key = b"rendezvous"
        """The key that is read to see whether the preferred endpoint answers: one that the user may read."""
        self._failed: set[Endpoint] = set()
        """The endpoints that have failed since a request last succeeded."""
        self._answered = False
        self._return_after = options.return_after
        self._returning: asyncio.Task[None] | None = None
        self.user = Authenticator(credentials)

    async def close(self) -> None:
        """Close all channels."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
        for endpoint in self._all:
            await endpoint.close()

    async def metadata(self, timeout: float) -> Metadata:
        """Return the metadata of a request: the token of the user, if there is one.

        Raises:
            EtcdError: the user could not be authenticated.
        """
        endpoint = self.current
        try:
            return await self.user.metadata(endpoint.unary(Call.AUTHENTICATE), endpoint.target, timeout)
        except grpc.aio.AioRpcError as exc:
            raise self.failure(exc, endpoint) from None

    def succeeded(self) -> None:
        """Note that etcd has answered a request."""
        self._answered = True
        if self._failed:
            self._failed.clear()
        self.user.accepted()

    def failure(self, exc: Any, endpoint: Endpoint, metadata: Metadata = ()) -> EtcdError:
        """Return the error for one of gRPC, after what it calls for: another endpoint, a new token or certificates.

        Args:
            exc: an ``AioRpcError``.
            endpoint: the endpoint that was asked.
            metadata: the metadata of the request.
        """
        error = translate(exc.code(), exc.details() or "", endpoint.target)
        if isinstance(error, NoUserError) and self.user.has_user:
            # Authentication has been enabled since the request was sent.
            error = StaleTokenError(error.reason, error.endpoint)
        if isinstance(error, StaleTokenError):
            self.user.forget(metadata)
        elif isinstance(error, UnavailableError):
            endpoint.tls_failed = isinstance(error, TlsError)
            endpoint.reload()
            self.fail_over(endpoint)
            # Once etcd has answered, its certificates or ours may have been replaced; the files are read again.
            if all(each.tls_failed for each in self._all) and not self._answered:
                return TlsError(error.reason, error.endpoint, retryable=False)
        return error

    def fail_over(self, endpoint: Endpoint) -> None:
        """Use a random other endpoint, if ``endpoint`` is the one that is used now."""
        if endpoint is not self.current or len(self._all) == 1:
            return
        self._failed.add(endpoint)
        others = [each for each in self._all if each not in self._failed]
        if not others:
            self._failed = {endpoint}
            others = [each for each in self._all if each is not endpoint]
        self.current = random.choice(others)
        logger.debug("using etcd at %s instead of %s, which failed", self.current.target, endpoint.target)
        if self._returning is None or self._returning.done():
            self._returning = asyncio.get_running_loop().create_task(self._return())
        for function in self.on_failure:
            function(endpoint)

    async def _return(self) -> None:
        shortest, longest = self._return_after
        while self.current is not self._preferred:
            # Random, or all clients that a restarted member has lost would come back to it at once.
            await asyncio.sleep(random.uniform(shortest, longest))
            if self.current is self._preferred or not await self._preferred_answers():
                shortest, longest = longest, min(2 * longest, max(longest, _LONGEST_RETURN_PAUSE))
                continue
            logger.info("returning to etcd at %s, which answers again", self._preferred.target)
            self.current = self._preferred
            for function in self.on_return:
                function()

    async def _preferred_answers(self) -> bool:
        # Not serializable: the answer shows that the member has a leader.
        request = rpc_pb2.RangeRequest(key=self.probe_key, limit=1, keys_only=True)
        try:
            metadata = await self.metadata(_RETURN_TIMEOUT)
            await self._preferred.unary(Call.RANGE)(request, timeout=_RETURN_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as exc:
            self._preferred.reload()
            return not isinstance(translate(exc.code(), exc.details() or "", ""), UnavailableError)
        except EtcdError:
            return False
        return True
