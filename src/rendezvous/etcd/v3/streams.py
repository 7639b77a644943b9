"""What the stream of keep-alives and the stream of watches have in common."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import grpc
import grpc.aio

from rendezvous.etcd.v3.endpoints import Endpoint, Endpoints, Metadata
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.history import History

__all__ = ["Stream"]

logger = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

# Seconds within which the user must be authenticated before a stream is opened.
_AUTHENTICATION_TIMEOUT = 5.0

# After this many failures in a row there is a warning, and then one each minute.
_FAILURES_BEFORE_WARNING = 5
_WARNING_INTERVAL = 60.0


class Stream(ABC, Generic[_Request, _Answer]):
    """A stream that is opened when it is needed. If it breaks, it is opened again, on another endpoint if need be.

    Args:
        endpoints: the endpoints of the cluster.
        history: notices that etcd was restored from a snapshot.
    """

    METHOD: ClassVar[tuple[str, Any, Any]]
    """The service and method, and the classes of both messages."""
    METADATA: ClassVar[Metadata] = ()
    PURPOSE: ClassVar[str]
    """What the stream carries, for messages."""

    def __init__(self, endpoints: Endpoints, history: History) -> None:
        self._endpoints = endpoints
        self._history = history
        self._outbox: asyncio.Queue[_Request] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._endpoint: Endpoint | None = None
        """The endpoint that the stream is on."""
        self._failures = 0
        """How often the stream broke since the last answer."""
        self._warn_at = 0.0
        self._user: Metadata = ()
        """The token that the stream was opened with."""
        endpoints.on_return.append(self._move)
        history.subscribe(self._restored)

    # What a stream is used for.

    @abstractmethod
    def _needed(self) -> bool:
        """Whether anyone needs the stream."""

    @abstractmethod
    def _first_messages(self) -> list[_Request]:
        """Return what to send first on a new stream."""

    @abstractmethod
    def _received(self, answer: _Answer) -> None:
        """Process an answer. Raises EtcdError to give up the stream."""

    @abstractmethod
    def _broken(self, error: EtcdError) -> None:
        """Tell those who wait that the stream broke."""

    # How it is kept open.

    def _open(self) -> None:
        """Make sure that the stream is open, or is being opened."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _move(self) -> None:
        """Leave the endpoint that the stream is on for the one that is used now."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._task = None
            if self._needed():
                self._open()

    def _restored(self, reason: str) -> None:
        """Open the stream again, because etcd was restored: it may lead to a member of the time before."""
        if self._task is not asyncio.current_task():  # if this stream noticed it, it ends by itself
            self._move()

    async def close(self) -> None:
        """Close the stream for good."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._broken(EtcdError("the client is closed"))

    async def _run(self) -> None:
        # If a connection fails just when the task is cancelled, gRPC raises its own error instead of the cancellation.
        # Two tasks would answer for one another's requests.
        task = asyncio.current_task()
        while self._task is task and self._needed():
            endpoint = self._endpoint = self._endpoints.current
            try:
                self._user = await self._endpoints.metadata(_AUTHENTICATION_TIMEOUT)
                call = endpoint.stream(*self.METHOD, (*self.METADATA, *self._user))
                try:
                    await self._exchange(call, endpoint)
                finally:
                    call.cancel()
            except EtcdError as exc:
                error = exc
            except Exception as exc:
                # Whatever it is, those who depend on the stream must not lose it for good.
                logger.exception("the stream of %s to etcd at %s failed; trying again", self.PURPOSE, endpoint.target)
                error = EtcdError(f"{type(exc).__name__}: {exc}", endpoint.target, retryable=True)
            if self._task is task:
                self._fail(error)
            await asyncio.sleep(random.uniform(0.02, min(2.0, 0.05 * 2 ** min(self._failures, 6))))

    def _fail(self, error: EtcdError) -> None:
        self._failures += 1
        now = asyncio.get_running_loop().time()
        if self._failures >= _FAILURES_BEFORE_WARNING and now >= self._warn_at:
            self._warn_at = now + _WARNING_INTERVAL
            where = error.endpoint or self._endpoints.current.target
            logger.warning("etcd at %s does not serve %s: %s; trying again", where, self.PURPOSE, error.reason)
        self._broken(error)

    async def _exchange(self, call: Any, endpoint: Endpoint) -> None:
        """Send and receive until the stream breaks. Raises EtcdError."""
        self._outbox = asyncio.Queue()
        for message in self._first_messages():
            self._outbox.put_nowait(message)
        writer = asyncio.get_running_loop().create_task(self._write(call))
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._failures = 0
                self._endpoints.succeeded()
                known = self._history.known()
                self._history.observe(answer.header, endpoint.target)
                self._history.check(known)
                self._received(answer)
            await call.code()
            raise EtcdError(f"the stream ended: {await call.details()}", endpoint.target, retryable=True)
        except grpc.aio.AioRpcError as exc:
            error = self._endpoints.failure(exc, endpoint, self._user)
            if self._failures == 0:  # etcd accepted this stream, so it may accept the next one
                error.retryable = True
            raise error from None
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._outbox.get())
