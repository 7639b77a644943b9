"""The interface to etcd's v3 API that the protocols use, and the retries of requests that fail.

``connection.py`` implements it on gRPC, and the tests on a simulated etcd. The retries are part of the interface, so
that the simulation tests the code that runs in production.
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.errors import (
    CompactedError,
    EtcdError,
    LeaseNotFoundError,
    NoSpaceError,
    RefusedError,
    UnavailableError,
)
from rendezvous.etcd.v3.history import History
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import Condition, Event, KeyValue, Message, Operation
from rendezvous.utils import escaped

__all__ = ["ClientOptions", "EtcdClient", "Watch", "WatchSpec"]

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

# A request that has failed this often is logged.
_ATTEMPTS_BEFORE_WARNING = 5

# Seconds between two log messages about a full database.
_NO_SPACE_WARNING_INTERVAL = 60.0


@dataclass(frozen=True)
class ClientOptions:
    """How a client treats etcd.

    Attributes:
        max_in_flight: how many requests are sent at the same time. More do not finish sooner: they wait in etcd.
        attempt_timeout: how long the first attempt of a request may take, in seconds; later ones may take longer. It
            is short so that an endpoint that does not answer is left soon.
        keep_alive_timeout: after how many seconds without an answer to a keep-alive another endpoint is asked; a third
            of the lease's time to live if that is shorter.
        page_size: how many keys one request of a long range reads.
        ping_interval: seconds between two pings on a connection. etcd allows one every 5 s.
        ping_timeout: seconds within which etcd must answer a ping.
        return_after: the least and the most seconds between leaving the preferred endpoint and returning to it.
    """

    max_in_flight: int = 256
    attempt_timeout: float = 5.0
    keep_alive_timeout: float = 5.0
    page_size: int = 1000
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    return_after: tuple[float, float] = (60.0, 300.0)


@dataclass(frozen=True)
class WatchSpec:
    """What a watch reports, and to whom.

    Attributes:
        key: the first key.
        end: the end of the range; empty for ``key`` alone.
        receive: called with the changes, in their order. The same change may come twice.
        lost: called once, instead of ``receive``, when the watch has ended: etcd has compacted changes that were not
            received yet, or does not permit the watch any more, or was restored from a snapshot.
        resumed: called each time the watch has been interrupted and continues. If etcd was restored meanwhile, and has
            gone beyond the old revision, changes may be missing: whoever depends on them must read again.
        revision: the first revision to report; 0 for the changes from now on.
    """

    key: bytes
    end: bytes
    receive: Callable[[Sequence[Event]], None]
    lost: Callable[[], None]
    resumed: Callable[[], None] = lambda: None
    revision: int = 0

    @property
    def name(self) -> str:
        """The first key, for messages."""
        return escaped(self.key.decode(errors="replace"))


class Watch(ABC):
    """A watch. It stays in force until it is cancelled, also when connections break."""

    @abstractmethod
    def cancel(self) -> None:
        """End the watch: its callbacks are not called any more."""


class EtcdClient(ABC):
    """A client of an etcd cluster. Use it on one event loop.

    All deadlines are in seconds of the loop's clock. A request is attempted until its deadline: a failure that may
    pass (no leader, broken connection, too many requests) is retried with backoff; a failure that will not pass
    (permission, bad argument, TLS) raises at once. A request that failed may have been applied, and a request that
    was retried may have been applied twice: callers must allow for both.

    Args:
        random: jitters the backoff.
        options: limits and time-outs.

    Attributes:
        history: notices that etcd was restored from a snapshot.
    """

    def __init__(self, random: random.Random, options: ClientOptions | None = None) -> None:
        self.history = History()
        self._random = random
        self.options = options or ClientOptions()
        self._no_space_logged_at = float("-inf")

    # What an implementation provides.

    @property
    @abstractmethod
    def target(self) -> str:
        """The endpoint that requests go to now."""

    @abstractmethod
    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        """Send a request once.

        Args:
            call: the method.
            request: the message.
            timeout: seconds within which etcd must answer.
            deadline: until when the request may wait before it is sent.

        Raises:
            EtcdError: it failed.
        """

    @abstractmethod
    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """Send a keep-alive of a lease. If one is in flight already, its answer serves both.

        Args:
            lease: the id of the lease.
            answered: called with True if etcd has renewed the lease, and with False if the lease has ended.
            failed: called instead if no answer came.
        """

    @abstractmethod
    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        """Start a watch; see :meth:`watch`."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    # Requests.

    async def check(self, key: bytes, deadline: float) -> None:
        """Make sure that etcd answers, and permits the user to read ``key``, which need not exist.

        Raises:
            EtcdError: the last attempt failed.
        """
        # Each member may answer from its own data: an etcd that has no leader for a moment can be used too.
        request = rpc_pb2.RangeRequest(key=key, limit=1, keys_only=True, serializable=True)
        await self._retry(
            lambda timeout: self._attempt(Call.RANGE, request, timeout, deadline), Call.RANGE.task, deadline
        )

    async def request(self, call: Call, message: Message, deadline: float) -> Message:
        """Send a request until it succeeds.

        Raises:
            CompactedError: etcd has compacted the revision, or has been restored from an older one.
            LeaseNotFoundError: etcd does not have the lease.
            RendezvousConnectionError: the deadline passed, or etcd refused the request for good.
        """
        first, reads, history = self.history.known(), call is Call.RANGE, self.history

        async def attempt(timeout: float) -> Message:
            if reads and message.revision:
                history.check_revision(first)
            known = history.known()
            answer = await self._attempt(call, message, timeout, deadline)
            history.check(known)
            history.observe(answer.header, self.target, None if reads and message.serializable else known)
            return answer

        return await self._try_until(attempt, call.task, deadline, call is Call.REVOKE)

    async def keep_alive(self, lease: int, deadline: float) -> bool:
        """Renew a lease. Returns False if it has ended. Raises as :meth:`request` does."""

        async def attempt(timeout: float) -> bool:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[bool] = loop.create_future()

            def succeed(renewed: bool) -> None:
                if not answer.done():
                    answer.set_result(renewed)

            def fail(error: EtcdError) -> None:
                if not answer.done():
                    answer.set_exception(error)

            self.renew(lease, succeed, fail)
            timer = loop.call_later(timeout, fail, UnavailableError("no answer to a keep-alive", self.target))
            try:
                return await answer
            finally:
                timer.cancel()

        return await self._try_until(attempt, "renew a lease", deadline)

    async def watch(
        self,
        key: bytes,
        end: bytes,
        receive: Callable[[Sequence[Event]], None],
        lost: Callable[[], None],
        deadline: float,
        revision: int = 0,
        resumed: Callable[[], None] = lambda: None,
    ) -> Watch:
        """Watch the keys from ``key`` to before ``end``. Returns as soon as no change from now on can be missed.

        Args:
            key: see :class:`WatchSpec`.
            end: see :class:`WatchSpec`.
            receive: see :class:`WatchSpec`.
            lost: see :class:`WatchSpec`.
            deadline: until when to try.
            revision: see :class:`WatchSpec`.
            resumed: see :class:`WatchSpec`.

        Raises:
            RendezvousConnectionError: the deadline passed, or etcd does not permit the watch.
        """
        return await self._watch(WatchSpec(key, end, receive, lost, resumed, revision), deadline)

    async def _try_until(
        self, attempt: Callable[[float], Awaitable[_T]], task: str, deadline: float, quiet: bool = False
    ) -> _T:
        """Retry until the deadline. Only the errors that callers treat on their own are raised as they are."""
        began = asyncio.get_running_loop().time()
        try:
            return await self._retry(attempt, task, deadline, quiet)
        except (LeaseNotFoundError, CompactedError):
            raise
        except EtcdError as exc:
            where = f"etcd at {exc.endpoint or self.target}"
            did = f"refused to {task}" if isinstance(exc, RefusedError) else f"did not {task}"
            within = f" within {max(0.0, deadline - began):.3g} s" if exc.retryable else ""
            message = f"{where} {did}{within}: {exc.reason}"
            raise RendezvousConnectionError(message, retryable=exc.retryable) from None

    async def _retry(
        self, attempt: Callable[[float], Awaitable[_T]], task: str, deadline: float, quiet: bool = False
    ) -> _T:
        """Call ``attempt`` with the seconds that it may take, until it succeeds.

        Args:
            attempt: makes one attempt.
            task: what it does, in words that follow "etcd did not".
            deadline: until when to retry.
            quiet: whether failures are not logged.

        Raises:
            EtcdError: an attempt failed, and retries do not help or the deadline is near.
        """
        clock = asyncio.get_running_loop().time
        pause, attempts = 0.02, 0
        while True:
            try:
                return await attempt(
                    max(0.05, min(deadline - clock(), self.options.attempt_timeout * 2 ** min(attempts, 4)))
                )
            except EtcdError as exc:
                if not exc.retryable:
                    raise
                attempts += 1
                if not quiet:
                    self._log_failure(exc, task, attempts)
                shortest, longest = exc.PAUSE
                pause = min(longest, self._random.uniform(shortest, max(shortest, 3 * pause)))
                if clock() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    def _log_failure(self, error: EtcdError, task: str, attempts: int) -> None:
        where = error.endpoint or self.target
        if isinstance(error, NoSpaceError):
            now = asyncio.get_running_loop().time()
            if now >= self._no_space_logged_at + _NO_SPACE_WARNING_INTERVAL:
                self._no_space_logged_at = now
                logger.error("etcd at %s accepts no writes: %s; trying again", where, error.reason)
        elif attempts == _ATTEMPTS_BEFORE_WARNING:
            logger.warning(
                "etcd at %s did not %s in %d attempts: %s; trying again", where, task, attempts, error.reason
            )

    async def range(
        self,
        key: bytes,
        end: bytes,
        deadline: float,
        revision: int = 0,
        serializable: bool = False,
        changed_since: int = 0,
    ) -> tuple[list[KeyValue], int]:
        """Return all keys from ``key`` to before ``end`` (empty: ``key`` alone) at one revision, and that revision.

        Args:
            key: the first key.
            end: the end of the range.
            deadline: until when to try.
            revision: the revision to read at; 0 for the newest.
            serializable: let any member answer from its own data, which is cheaper. The answer is sure to be current
                only if ``revision`` is given: a member that does not have that revision yet is asked again.
            changed_since: leave out keys that were last written before this revision.
        """
        found: list[KeyValue] = []
        while True:
            request = rpc_pb2.RangeRequest(
                key=key,
                range_end=end,
                limit=self.options.page_size,
                revision=revision,
                serializable=serializable,
                min_mod_revision=changed_since,
            )
            answer: rpc_pb2.RangeResponse = await self.request(Call.RANGE, request, deadline)
            revision = revision or answer.header.revision
            found.extend(answer.kvs)
            if not answer.more:
                return found, revision
            key = found[-1].key + b"\0"

    async def txn(
        self,
        conditions: Sequence[Condition],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        deadline: float,
    ) -> rpc_pb2.TxnResponse:
        """Carry out ``then`` if all ``conditions`` hold, else ``otherwise``; return etcd's answer."""
        request = rpc_pb2.TxnRequest(compare=conditions, success=then, failure=otherwise)
        answer: rpc_pb2.TxnResponse = await self.request(Call.TXN, request, deadline)
        return answer

    async def delete(self, key: bytes, end: bytes, deadline: float) -> int:
        """Delete the keys from ``key`` to before ``end`` (empty: ``key`` alone); return how many were deleted."""
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=end)
        answer: rpc_pb2.DeleteRangeResponse = await self.request(Call.DELETE, request, deadline)
        return answer.deleted

    async def grant(self, ttl: int, deadline: float) -> int:
        """Grant a lease of ``ttl`` seconds; return its id."""
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl)
        answer: rpc_pb2.LeaseGrantResponse = await self.request(Call.GRANT, request, deadline)
        return answer.ID

    async def revoke(self, lease: int, deadline: float) -> None:
        """Revoke a lease, which deletes the keys that are bound to it. No error if it has ended already."""
        try:
            await self.request(Call.REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease), deadline)
        except LeaseNotFoundError:
            pass
