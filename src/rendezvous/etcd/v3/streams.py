"""What the stream of keep-alives and the stream of watches have in common."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import grpc
import grpc.aio

from rendezvous.etcd.v3.endpoints import Endpoint, Endpoints, Metadata
from rendezvous.etcd.v3.errors import EtcdError

__all__ = ["Stream"]

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

# Seconds within which the user must be authenticated before a stream is opened.
_AUTHENTICATION_TIMEOUT = 5.0


class Stream(ABC, Generic[_Request, _Answer]):
    """A stream that is opened when it is needed. If it breaks, it is opened again, on another endpoint if need be.

    Args:
        endpoints: the endpoints of the cluster.
    """

    METHOD: ClassVar[tuple[str, Any, Any]]
    """The service and method, and the classes of both messages."""
    METADATA: ClassVar[Metadata] = ()

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._outbox: asyncio.Queue[_Request] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        """How often the stream broke since the last answer."""

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

    async def close(self) -> None:
        """Close the stream for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._broken(EtcdError("the client is closed"))

    async def _run(self) -> None:
        while self._needed():
            endpoint = self._endpoints.current
            try:
                metadata = (*self.METADATA, *await self._endpoints.metadata(_AUTHENTICATION_TIMEOUT))
                call = endpoint.stream(*self.METHOD, metadata)
                try:
                    await self._exchange(call, endpoint)
                finally:
                    call.cancel()
            except EtcdError as exc:
                self._broken(exc)
            self._failures += 1
            await asyncio.sleep(random.uniform(0.02, min(2.0, 0.05 * 2 ** min(self._failures, 6))))

    async def _exchange(self, call: Any, endpoint: Endpoint) -> None:
        """Send and receive until the stream breaks. Raises EtcdError."""
        self._outbox = asyncio.Queue()
        for message in self._first_messages():
            self._outbox.put_nowait(message)
        writer = asyncio.get_running_loop().create_task(self._write(call))
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._failures = 0
                self._received(answer)
            await call.code()
            raise EtcdError(f"the stream ended: {await call.details()}", endpoint.target, retryable=True)
        except grpc.aio.AioRpcError as exc:
            error = self._endpoints.failure(exc, endpoint)
            if self._failures == 0:  # etcd accepted this stream, so it may accept the next one
                error.retryable = True
            raise error from None
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._outbox.get())
