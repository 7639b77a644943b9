"""What the protocol asks of etcd's v3 API, and what happens to a request that fails.

The protocol knows only :class:`EtcdClient`. ``connection.py`` implements it on gRPC; the tests implement it on a
simulated etcd, so that what is tested there, the treatment of failed requests too, is what runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, TypeVar

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.errors import BusyError, CompactedError, EtcdError, LeaseNotFoundError, UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2

__all__ = [
    "Call",
    "EtcdClient",
    "Watch",
    "absent",
    "compare",
    "delete_op",
    "get_op",
    "prefix_end",
    "put_op",
    "txn_op",
]

_T = TypeVar("_T")

KeyValue = rpc_pb2.KeyValue
Event = rpc_pb2.Event
Message = Any

logger = logging.getLogger(__name__)

PAGE = 1000
"""How many keys a page of a long range holds."""

# After how many failures of one request the log says so.
_PATIENT_TRIES = 5


class Call(Enum):
    """The requests that have one answer: the service and method, and the messages of both."""

    RANGE = ("KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse)
    PUT = ("KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse)
    DELETE = ("KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse)
    TXN = ("KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
    GRANT = ("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse)
    REVOKE = ("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse)
    STATUS = ("Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse)
    AUTHENTICATE = ("Auth/Authenticate", rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse)


# Conditions and operations of transactions.


def compare(key: bytes, field: str, value: Any, relation: str = "EQUAL") -> Message:
    """Return a condition: ``field`` of ``key`` (``value``, ``version``, ``create_revision``, ...) against ``value``."""
    target = {"create_revision": "CREATE", "mod_revision": "MOD", "version": "VERSION", "value": "VALUE"}[field]
    return rpc_pb2.Compare(key=key, target=target, result=relation, **{field: value})


def absent(key: bytes) -> Message:
    """Return the condition that there is no ``key``."""
    return compare(key, "create_revision", 0)


def get_op(key: bytes, end: bytes = b"") -> Message:
    """Return the operation that reads ``key``, or all keys from ``key`` to before ``end``."""
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=end))


def put_op(key: bytes, value: bytes, lease: int = 0, **options: Any) -> Message:
    """Return the operation that writes ``key``."""
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease, **options))


def delete_op(key: bytes, end: bytes = b"") -> Message:
    """Return the operation that deletes ``key``, or all keys from ``key`` to before ``end``."""
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end))


def txn_op(conditions: Sequence[Message], then: Sequence[Message], otherwise: Sequence[Message] = ()) -> Message:
    """Return the operation that is a transaction within the transaction."""
    return rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(compare=conditions, success=then, failure=otherwise))


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with ``prefix``."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


class Watch(ABC):
    """A watch that is in force until it is cancelled, over broken connections too."""

    @abstractmethod
    def cancel(self) -> None:
        """End the watch: its callbacks are not called any more."""


class EtcdClient(ABC):
    """An etcd cluster. Use it from one event loop.

    Each request is tried until its deadline, in seconds of the loop's clock: what may pass (no leader, broken
    connection, too many requests) is tried again, with backoff; what will not (permission, bad argument, TLS)
    raises at once. A request that failed may have been applied; and one that was tried twice may have been applied
    twice: what is asked for must bear that.

    Args:
        random: jitters the backoff.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random

    @property
    @abstractmethod
    def target(self) -> str:
        """The endpoint that serves now."""

    @abstractmethod
    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        """Send a request once.

        Args:
            call: what is asked.
            request: the message.
            timeout: seconds within which etcd must answer.
            deadline: until when the request may wait for its turn.

        Raises:
            EtcdError: it failed.
        """

    @abstractmethod
    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """Send a keep-alive of a lease; where one is under way already, its answer serves both.

        Args:
            lease: the id of the lease.
            answered: called with whether etcd still had the lease, which it then renewed.
            failed: called instead where no answer came.
        """

    @abstractmethod
    async def watch(
        self,
        key: bytes,
        end: bytes,
        receive: Callable[[Sequence[Event]], None],
        lost: Callable[[], None],
        deadline: float,
        revision: int = 0,
    ) -> Watch:
        """Watch the keys from ``key`` to before ``end``; return once no change from now on can be missed.

        Args:
            key: the first key.
            end: the end of the range; empty for ``key`` alone.
            receive: called with the changes, in their order. It may hear of a change twice.
            lost: called once instead, where the watch is over: etcd has forgotten changes that were not heard of, or
                refuses the watch now.
            deadline: until when to try.
            revision: the first revision to hear of; what changes from now on unless given.

        Raises:
            RendezvousConnectionError: as for requests.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    async def request(self, call: Call, message: Message, deadline: float) -> Message:
        """Send a request until it succeeds.

        Raises:
            EtcdError: etcd answered that the lease is gone, or the revision is.
            RendezvousConnectionError: the deadline passed, or etcd refused for good.
        """
        return await self._try_until(
            deadline,
            call.value[0],
            lambda timeout: self._attempt(call, message, timeout, deadline),
            call is not Call.REVOKE,
        )

    async def keep_alive(self, lease: int, deadline: float) -> bool:
        """Renew a lease; False where it is gone. Raises as :meth:`request` does."""

        async def attempt(timeout: float) -> bool:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[bool] = loop.create_future()

            def succeed(there: bool) -> None:
                if not answer.done():
                    answer.set_result(there)

            def fail(error: EtcdError) -> None:
                if not answer.done():
                    answer.set_exception(error)

            self.renew(lease, succeed, fail)
            silence = UnavailableError(f"{self.target}: no answer to a keep-alive")
            timer = loop.call_later(timeout, fail, silence)
            try:
                return await answer
            finally:
                timer.cancel()

        return await self._try_until(deadline, "Lease/LeaseKeepAlive", attempt)

    async def _try_until(
        self, deadline: float, name: str, attempt: Callable[[float], Awaitable[_T]], complains: bool = True
    ) -> _T:
        """Call ``attempt`` with the seconds that it may take, until it succeeds or fails for good."""
        clock = asyncio.get_running_loop().time
        pause, tries = 0.02, 0
        while True:
            try:
                # The first tries are short, so that an endpoint that swallows requests is left soon.
                return await attempt(max(0.05, min(deadline - clock(), 5.0 * 2 ** min(tries, 4))))
            except EtcdError as exc:
                if isinstance(exc, (LeaseNotFoundError, CompactedError)):
                    raise
                if not exc.retryable:
                    refusal = RendezvousConnectionError(f"etcd refused {name}: {exc}", retryable=False)
                    raise refusal from exc
                tries += 1
                if tries == _PATIENT_TRIES and complains:
                    logger.warning("%s fails: %s; trying again", name, exc)
                least = 0.2 if isinstance(exc, BusyError) else 0.02
                pause = min(2.0, self._random.uniform(least, max(least, 3 * pause)))
                if clock() + pause >= deadline:
                    raise RendezvousConnectionError(
                        f"etcd did not answer {name} in time ({tries} tries): {exc}"
                    ) from exc
            await asyncio.sleep(pause)

    async def check(self, deadline: float) -> None:
        """Make sure that etcd answers, and lets this user in. Raises RendezvousConnectionError."""
        await self.request(Call.STATUS, rpc_pb2.StatusRequest(), deadline)

    async def range(
        self, key: bytes, end: bytes, deadline: float, revision: int = 0, serializable: bool = False
    ) -> tuple[list[KeyValue], int]:
        """Return all keys from ``key`` to before ``end`` (empty: ``key`` alone) at one revision, and that revision.

        Args:
            key: the first key.
            end: the end of the range.
            deadline: until when to try.
            revision: the revision to read at; the newest unless given.
            serializable: let any member answer from what it has, which is cheaper. Only with ``revision`` is the
                answer sure to be current: a member that does not have it yet is asked again.
        """
        found: list[KeyValue] = []
        while True:
            request = rpc_pb2.RangeRequest(
                key=key, range_end=end, limit=PAGE, revision=revision, serializable=serializable
            )
            answer = await self.request(Call.RANGE, request, deadline)
            revision = revision or answer.header.revision
            found.extend(answer.kvs)
            if not answer.more:
                return found, revision
            key = found[-1].key + b"\0"

    async def txn(
        self,
        conditions: Sequence[Message],
        then: Sequence[Message],
        otherwise: Sequence[Message] = (),
        *,
        deadline: float,
    ) -> Message:
        """Carry out ``then`` where all ``conditions`` hold, else ``otherwise``; return etcd's answer."""
        request = rpc_pb2.TxnRequest(compare=conditions, success=then, failure=otherwise)
        return await self.request(Call.TXN, request, deadline)

    async def delete(self, key: bytes, end: bytes, deadline: float) -> int:
        """Delete the keys from ``key`` to before ``end`` (empty: ``key`` alone); return how many there were."""
        answer = await self.request(Call.DELETE, rpc_pb2.DeleteRangeRequest(key=key, range_end=end), deadline)
        return int(answer.deleted)

    async def grant(self, ttl: int, deadline: float) -> int:
        """Grant a lease of ``ttl`` seconds; return its id."""
        return int((await self.request(Call.GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl), deadline)).ID)

    async def revoke(self, lease: int, deadline: float) -> None:
        """Revoke a lease, and so delete the keys that hang on it. No error where it is gone already."""
        try:
            await self.request(Call.REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease), deadline)
        except EtcdError as exc:
            if not isinstance(exc, LeaseNotFoundError):
                raise


PUT = rpc_pb2.Event.PUT
DELETE = rpc_pb2.Event.DELETE
