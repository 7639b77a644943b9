"""The endpoints of a cluster: their channels, which one is used now, and the token of the user."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from rendezvous.etcd.v3.client import Call, ClientOptions
from rendezvous.etcd.v3.errors import EtcdError, RefusedError, StaleTokenError, TlsError, UnavailableError, translate
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import format_endpoint

__all__ = ["Credentials", "Endpoint", "Endpoints", "Metadata"]

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Credentials:
    """How the client identifies itself to etcd, and which certificates it trusts.

    Attributes:
        tls: whether to use TLS.
        ca_cert: the certificates of the authority, in PEM; by default those of the system.
        cert: the client's certificate chain, in PEM.
        key: its private key, in PEM.
        username: etcd's user.
        password: its password.
    """

    tls: bool = False
    ca_cert: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"Credentials(tls={self.tls}, username={self.username!r})"


class Endpoint:
    """One member of the cluster: its channel, and the methods that are called on it."""

    def __init__(self, target: str, credentials: Credentials, options: ClientOptions) -> None:
        self.target = target
        self.tls_failed = False
        """Whether the last failure was one of TLS."""
        if credentials.tls:
            secrets = grpc.ssl_channel_credentials(credentials.ca_cert, credentials.key, credentials.cert)
            self.channel = grpc.aio.secure_channel(target, secrets, _channel_options(options))
        else:
            self.channel = grpc.aio.insecure_channel(target, _channel_options(options))
        self._methods: dict[Call, Any] = {}

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

    Args:
        endpoints: hosts and ports; the first is used until it fails.
        credentials: TLS and user.
        options: limits and time-outs.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], credentials: Credentials, options: ClientOptions) -> None:
        self._credentials = credentials
        self._all = [Endpoint(format_endpoint(*each), credentials, options) for each in endpoints]
        self._index = 0
        self._token: str | None = None
        self._token_lock = asyncio.Lock()

    @property
    def current(self) -> Endpoint:
        """The endpoint that is used now."""
        return self._all[self._index]

    async def close(self) -> None:
        """Close all channels."""
        for endpoint in self._all:
            await endpoint.channel.close()

    @property
    def has_user(self) -> bool:
        """Whether requests are made in the name of a user."""
        return self._credentials.username is not None

    async def metadata(self, timeout: float) -> Metadata:
        """Return the metadata of a request: the token of the user, if there is one.

        Raises:
            EtcdError: the user could not be authenticated.
        """
        user = self._credentials.username
        if user is None:
            return ()
        async with self._token_lock:
            if self._token is None:
                request = rpc_pb2.AuthenticateRequest(name=user, password=self._credentials.password or "")
                endpoint = self.current
                try:
                    answer = await endpoint.unary(Call.AUTHENTICATE)(request, timeout=timeout)
                except grpc.aio.AioRpcError as exc:
                    error = self.failure(exc, endpoint)
                    if isinstance(error, RefusedError):
                        raise RefusedError(f"user '{user}': {error.reason}", error.endpoint) from None
                    raise error from None
                self._token = answer.token
            return (("token", self._token),)

    def forget_token(self) -> None:
        """Authenticate again before the next request."""
        self._token = None

    def failure(self, exc: Any, endpoint: Endpoint) -> EtcdError:
        """Return the error for one of gRPC, after what it calls for: another endpoint, or a new token.

        Args:
            exc: an ``AioRpcError``.
            endpoint: the endpoint that was asked.
        """
        error = translate(exc.code(), exc.details() or "", endpoint.target)
        if isinstance(error, StaleTokenError):
            self.forget_token()
        elif isinstance(error, UnavailableError):
            endpoint.tls_failed = isinstance(error, TlsError)
            self.fail_over(endpoint)
            if all(each.tls_failed for each in self._all):
                return TlsError(error.reason, error.endpoint, retryable=False)
        return error

    def fail_over(self, endpoint: Endpoint) -> None:
        """Use the next endpoint, if ``endpoint`` is the one that is used now."""
        if endpoint is self.current:
            self._index = (self._index + 1) % len(self._all)
