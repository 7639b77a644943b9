"""The etcd client on gRPC: channels, failover, tokens, and the two streams.

All requests go to one endpoint until it fails; then to the next. One stream carries the keep-alives of all leases,
one carries all watches: a stream that breaks is opened anew elsewhere, and its watches resume by revision.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import grpc.aio

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.client import Call, EtcdClient, Event, Message, Watch
from rendezvous.etcd.v3.errors import BusyError, CompactedError, EtcdError, LeaseNotFoundError, UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import format_endpoint

__all__ = ["Credentials", "GrpcEtcdClient"]

logger = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # A host that vanished without a word is noticed after 15 s at the latest. etcd allows a ping every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without these two the ping may take a minute, and a watch that is silent for long is not pinged at all.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Requests are tried again here, and etcd is not behind a web proxy.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

# More at once do not finish sooner, they only wait in etcd rather than here.
_MAX_IN_FLIGHT = 256

# After how many seconds without an answer to a keep-alive another endpoint is asked.
_SILENCE = 5.0

_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}
_TLS_TROUBLE = ("handshake failed", "CERTIFICATE", "certificate", "Peer name", "tls:")
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "revision in header is old")
_FUTURE = "future revision"
# Why a watch is refused; etcd 3.5 says no more than the first where the user is missing or its token is too old.
_REFUSED = ("permission denied", "user name is empty", "auth")


@dataclass(frozen=True)
class Credentials:
    """What the client shows to etcd, and what it trusts.

    Attributes:
        tls: whether to speak TLS.
        ca_cert: the authority's certificates, in PEM; the system's unless given.
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


class _Endpoint:
    """One etcd server: its channel, and the methods called on it."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        self.target = target
        if credentials.tls:
            secrets = grpc.ssl_channel_credentials(credentials.ca_cert, credentials.key, credentials.cert)
            self.channel = grpc.aio.secure_channel(target, secrets, _OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(target, _OPTIONS)
        self._methods: dict[Call, Any] = {}
        self.tls_failed = False

    def unary(self, call: Call) -> Any:
        method = self._methods.get(call)
        if method is None:
            name, request, response = call.value
            method = self._methods[call] = self.channel.unary_unary(
                f"/etcdserverpb.{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
        return method

    def stream(self, name: str, request: Any, response: Any, metadata: Any) -> Any:
        return self.channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(metadata=metadata)


class GrpcEtcdClient(EtcdClient):
    """An etcd cluster over gRPC. Make it on the event loop that uses it.

    Args:
        endpoints: hosts and ports of the members; the first that answers serves.
        credentials: TLS and user.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], credentials: Credentials | None = None) -> None:
        super().__init__(random.Random())
        self._credentials = credentials or Credentials()
        self._endpoints = [_Endpoint(format_endpoint(*endpoint), self._credentials) for endpoint in endpoints]
        self._current = 0
        self._turnstile = _Turnstile(_MAX_IN_FLIGHT)
        self._closed = False
        self._token: str | None = None
        self._token_lock = asyncio.Lock()
        self._leases = _KeepAlives(self)
        self._watches = _Watches(self)

    @property
    def endpoint(self) -> _Endpoint:
        """The endpoint that serves now."""
        return self._endpoints[self._current]

    async def close(self) -> None:
        """See :meth:`EtcdClient.close`."""
        self._closed = True
        await self._leases.close()
        await self._watches.close()
        for endpoint in self._endpoints:
            await endpoint.channel.close()

    @property
    def target(self) -> str:
        """See :attr:`EtcdClient.target`."""
        return self.endpoint.target

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        await self._turnstile.enter(deadline)
        try:
            self._check_open()
            endpoint = self.endpoint
            try:
                return await endpoint.unary(call)(request, timeout=timeout, metadata=await self.metadata(timeout))
            except grpc.aio.AioRpcError as exc:
                raise self.translate(exc, endpoint) from exc
        finally:
            self._turnstile.leave()

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """See :meth:`EtcdClient.renew`."""
        if self._closed:
            failed(EtcdError("the client is closed"))
        else:
            self._leases.renew(lease, answered, failed)

    async def watch(
        self,
        key: bytes,
        end: bytes,
        receive: Callable[[Sequence[Event]], None],
        lost: Callable[[], None],
        deadline: float,
        revision: int = 0,
    ) -> Watch:
        """See :meth:`EtcdClient.watch`."""
        self._check_open()
        watch = _GrpcWatch(self._watches, key, end, receive, lost, revision)
        await self._watches.begin(watch, deadline)
        return watch

    def _check_open(self) -> None:
        if self._closed:
            raise EtcdError("the client is closed")

    # Who asks, and what went wrong.

    @property
    def has_user(self) -> bool:
        """Whether requests are made in the name of a user."""
        return self._credentials.username is not None

    async def metadata(self, timeout: float) -> tuple[tuple[str, str], ...] | None:
        """Return what goes with each request: the token of the user, if there is one."""
        user = self._credentials.username
        if user is None:
            return None
        async with self._token_lock:
            if self._token is None:
                request = rpc_pb2.AuthenticateRequest(name=user, password=self._credentials.password or "")
                answer = await self.endpoint.unary(Call.AUTHENTICATE)(request, timeout=timeout)
                self._token = answer.token
            return (("token", self._token),)

    def forget_token(self) -> None:
        """Authenticate anew before the next request."""
        self._token = None

    def translate(self, exc: Any, endpoint: _Endpoint) -> EtcdError:
        """Sort an error of gRPC; move to the next endpoint where this one is at fault."""
        code, details = exc.code(), exc.details() or ""
        where = f"{endpoint.target}: {details or code.name}"
        if "lease not found" in details:
            return LeaseNotFoundError(where)
        if "has been compacted" in details:
            return CompactedError(where)
        if any(text in details for text in _STALE_TOKEN):
            self.forget_token()
            return EtcdError(where, retryable=True)
        if "too many requests" in details:  # RESOURCE_EXHAUSTED by etcd's list of errors, UNKNOWN by etcd 3.5.1
            return BusyError(where)
        if code is grpc.StatusCode.OUT_OF_RANGE and _FUTURE in details:
            return EtcdError(where, retryable=True)
        if code in _TRANSIENT:
            endpoint.tls_failed = any(text in details for text in _TLS_TROUBLE)
            self.fail_over(endpoint)
            hopeless = all(each.tls_failed for each in self._endpoints)
            return UnavailableError(f"{where} ({code.name})", retryable=not hopeless)
        if "user name is empty" in details:
            where += "; etcd asks for a user: set 'username' and its password"
        return EtcdError(f"{where} ({code.name})")

    def fail_over(self, endpoint: _Endpoint) -> None:
        """Let the next endpoint serve, unless that has happened already."""
        if endpoint is self.endpoint:
            self._current = (self._current + 1) % len(self._endpoints)


class _Turnstile:
    """Lets so many through at once; the others wait in turn, each until its deadline."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self, deadline: float) -> None:
        if self._free > 0:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queue.append(turn)
        timer = loop.call_at(deadline, self._late, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn came just when it gave up
            raise
        finally:
            timer.cancel()

    def _late(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(BusyError("other requests of this process took all the time"))

    def leave(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Stream:
    """A stream that is opened when there is something to say, and again elsewhere when it breaks."""

    def __init__(self, client: GrpcEtcdClient) -> None:
        self._client = client
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._tries = 0
        """How many tries failed since the stream last worked."""

    _METHOD: tuple[str, Any, Any]
    _METADATA: tuple[tuple[str, str], ...] = ()

    def _begin(self) -> None:
        """Make sure that the stream is open, or is being opened."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._broken(EtcdError("the client is closed"))

    def _wanted(self) -> bool:
        """Whether anyone needs the stream."""
        raise NotImplementedError

    def _opening(self) -> list[Message]:
        """Return what to say first on a new stream."""
        raise NotImplementedError

    def _heard(self, answer: Message) -> None:
        """Deal with an answer. Raises EtcdError to give up the stream."""
        raise NotImplementedError

    def _broken(self, error: EtcdError) -> None:
        """Tell those who must know that the stream broke."""
        raise NotImplementedError

    async def _run(self) -> None:
        while self._wanted():
            endpoint = self._client.endpoint
            try:
                metadata = (*self._METADATA, *(await self._client.metadata(5.0) or ()))
                call = endpoint.stream(*self._METHOD, metadata)
                try:
                    await self._converse(call, endpoint)
                finally:
                    call.cancel()
            except grpc.aio.AioRpcError as exc:
                self._broken(self._client.translate(exc, endpoint))
            except EtcdError as exc:
                self._broken(exc)
            self._tries += 1
            await asyncio.sleep(random.uniform(0.02, min(2.0, 0.05 * 2 ** min(self._tries, 6))))

    async def _converse(self, call: Any, endpoint: _Endpoint) -> None:
        """Talk until the stream breaks, and raise why."""
        self._outbox = asyncio.Queue()
        for message in self._opening():
            self._outbox.put_nowait(message)
        writer = asyncio.get_running_loop().create_task(self._write(call))
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._tries = 0
                self._heard(answer)
            await call.code()
            raise EtcdError(f"the stream ended: {await call.details()}", retryable=True)
        except grpc.aio.AioRpcError as exc:
            if self._tries == 0:
                raise EtcdError(str(self._client.translate(exc, endpoint)), retryable=True) from exc
            raise
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._outbox.get())


class _Renewal(NamedTuple):
    sent_at: float
    answered: Callable[[bool], None]
    failed: Callable[[EtcdError], None]


class _KeepAlives(_Stream):
    _METHOD = ("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse)

    def __init__(self, client: GrpcEtcdClient) -> None:
        super().__init__(client)
        self._pending: dict[int, list[_Renewal]] = {}
        self._check: asyncio.TimerHandle | None = None

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        loop = asyncio.get_running_loop()
        pending = self._pending.setdefault(lease, [])
        pending.append(_Renewal(loop.time(), answered, failed))
        if len(pending) > 1:
            return
        self._begin()
        self._outbox.put_nowait(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
        if self._check is None:
            self._check = loop.call_later(_SILENCE, self._check_silence)

    def _check_silence(self) -> None:
        """Give up a stream that has not answered for too long."""
        self._check = None
        loop = asyncio.get_running_loop()
        oldest = min((pending[0].sent_at for pending in self._pending.values()), default=loop.time())
        if loop.time() - oldest >= _SILENCE:
            endpoint = self._client.endpoint
            self._client.fail_over(endpoint)
            if self._task is not None:
                self._task.cancel()
                self._task = None
            self._broken(UnavailableError(f"{endpoint.target}: no answer to the keep-alive of a lease"))
        elif self._pending:
            self._check = loop.call_at(oldest + _SILENCE, self._check_silence)

    async def close(self) -> None:
        if self._check is not None:
            self._check.cancel()
        await super().close()

    def _wanted(self) -> bool:
        return bool(self._pending)

    def _opening(self) -> list[Message]:
        return [rpc_pb2.LeaseKeepAliveRequest(ID=lease) for lease in self._pending]

    def _heard(self, answer: Message) -> None:
        for renewal in self._pending.pop(answer.ID, ()):
            renewal.answered(answer.TTL > 0)

    def _broken(self, error: EtcdError) -> None:
        broken, self._pending = self._pending, {}
        for pending in broken.values():
            for renewal in pending:
                renewal.failed(error)


class _GrpcWatch(Watch):
    def __init__(
        self,
        watches: _Watches,
        key: bytes,
        end: bytes,
        receive: Callable[[Sequence[Event]], None],
        lost: Callable[[], None],
        revision: int,
    ) -> None:
        self._watches = watches
        self.key, self.end = key, end
        self.receive, self.lost = receive, lost
        self.revision = revision
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused = False
        """Whether etcd did not permit it when last asked."""
        self.id: int | None = None
        """What etcd calls the watch on the stream that is open now."""

    def request(self) -> Message:
        return rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(key=self.key, range_end=self.end, start_revision=self.revision)
        )

    def cancel(self) -> None:
        self._watches.cancel(self)


class _Watches(_Stream):
    _METHOD = ("Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)
    # A member that loses its leader is to break the stream, rather than be silent.
    _METADATA = (("hasleader", "true"),)

    def __init__(self, client: GrpcEtcdClient) -> None:
        super().__init__(client)
        self._wanted_watches: dict[_GrpcWatch, None] = {}
        # Of the open stream: what was asked for, which etcd answers in turn, and what it has answered.
        self._asked: deque[_GrpcWatch] = deque()
        self._open: dict[int, _GrpcWatch] = {}

    async def begin(self, watch: _GrpcWatch, deadline: float) -> None:
        self._wanted_watches[watch] = None
        self._begin()
        self._asked.append(watch)
        self._outbox.put_nowait(watch.request())
        timer = asyncio.get_running_loop().call_at(deadline, self._late, watch)
        try:
            await watch.begun
        except BaseException:
            self.cancel(watch)
            raise
        finally:
            timer.cancel()

    def _late(self, watch: _GrpcWatch) -> None:
        if not watch.begun.done():
            watch.begun.set_exception(
                RendezvousConnectionError(f"etcd at {self._client.endpoint.target} did not begin a watch in time")
            )

    def cancel(self, watch: _GrpcWatch) -> None:
        self._wanted_watches.pop(watch, None)
        if watch.id is not None and self._open.pop(watch.id, None) is watch:
            self._end(watch.id)

    def _end(self, watch_id: int) -> None:
        request = rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))
        self._outbox.put_nowait(request)

    def _wanted(self) -> bool:
        return bool(self._wanted_watches)

    def _opening(self) -> list[Message]:
        self._asked = deque(self._wanted_watches)
        self._open = {}
        return [watch.request() for watch in self._asked]

    def _heard(self, answer: Message) -> None:
        watch = self._asked.popleft() if answer.created else self._open.get(answer.watch_id)
        if answer.canceled:
            self._canceled(answer, watch)
        elif answer.created:
            self._created(answer, watch)
        elif watch is not None and answer.events:
            watch.revision = answer.events[-1].kv.mod_revision + 1
            try:
                watch.receive(answer.events)
            except Exception:
                # One who cannot deal with what he hears must not make all others deaf.
                logger.exception("a change under %r could not be dealt with", watch.key)

    def _created(self, answer: Message, watch: _GrpcWatch | None) -> None:
        if watch not in self._wanted_watches or watch is None:
            self._end(answer.watch_id)
            return
        watch.refused = False
        watch.id = answer.watch_id
        self._open[watch.id] = watch
        watch.revision = watch.revision or answer.header.revision + 1
        if not watch.begun.done():
            watch.begun.set_result(None)

    def _canceled(self, answer: Message, watch: _GrpcWatch | None) -> None:
        reason = answer.cancel_reason or "etcd cancelled a watch"
        if watch is None or watch not in self._wanted_watches:
            return
        if answer.compact_revision:
            self._open.pop(answer.watch_id, None)
            self._wanted_watches.pop(watch, None)
            watch.lost()
            return
        if any(text in reason for text in _REFUSED):
            if watch.refused or not self._client.has_user:
                self._refuse(watch, reason)
            else:
                # etcd says no more than this where the token is too old.
                watch.refused = True
                self._client.forget_token()
        # On a stream that it refused a watch, etcd 3.5.1 does not serve the first one any more.
        raise EtcdError(f"{self._client.endpoint.target}: {reason}", retryable=True)

    def _refuse(self, watch: _GrpcWatch, reason: str) -> None:
        """Give up one watch; the others go on."""
        self._wanted_watches.pop(watch, None)
        if watch.begun.done():
            watch.lost()  # who watches learns why when it tries anew
            return
        hint = "" if self._client.has_user else "; etcd asks for a user: set 'username' and its password"
        key = watch.key.decode(errors="replace")
        refusal = RendezvousConnectionError(
            f"etcd at {self._client.endpoint.target} refused a watch of '{key}': {reason}{hint}",
            retryable=False,
        )
        watch.begun.set_exception(refusal)

    def _broken(self, error: EtcdError) -> None:
        if error.retryable:
            return
        refusal = RendezvousConnectionError(f"etcd refused a watch: {error}", retryable=False)
        for watch in self._wanted_watches:
            if not watch.begun.done():
                watch.begun.set_exception(refusal)
