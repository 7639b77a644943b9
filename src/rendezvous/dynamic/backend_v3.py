"""A backend that stores the state on etcd's v3 API: for the dynamic rendezvous on an etcd without the v2 API.

The key ``<prefix>/<run id>/state`` holds a nonce of sixteen bytes, which is new for every write, and the state. A write
whose response is lost is repeated. If the first attempt was applied, the comparison of the second fails, and the
stored nonce identifies the write as this node's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from rendezvous import config
from rendezvous.api import RendezvousParameters, RendezvousStateError
from rendezvous.coordinated.records import Keys, run_keys
from rendezvous.coordinated.store import EtcdStore, StoreOptions
from rendezvous.dynamic.backend import RendezvousBackend, Token, index_of
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.errors import EtcdError, LeaseNotFoundError
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue, compare, get_op, put_op

__all__ = ["EtcdRendezvousBackend", "create_backend"]

_DEFAULT_TTL = 7200
_DEFAULT_TIMEOUT = 5
_NONCE = 16


class EtcdRendezvousBackend(RendezvousBackend):
    """Stores the state under one key of etcd's v3 API.

    The fencing token is the key's revision. The backend does not interpret the state, so that torch's own
    ``DynamicRendezvousHandler`` can use it too.

    Args:
        client: the etcd cluster, on the background loop.
        keys: the keys of the run.
        ttl: after how many seconds without a write etcd deletes the state, or up to a tenth less; two hours by default.
        timeout: seconds for which a request is repeated while etcd does not answer; 5 s by default. It should be
            shorter than the expiry of heartbeats: a handler must see an outage before it takes other nodes for dead.
    """

    def __init__(
        self, client: EtcdClient, keys: Keys, ttl: int | None = None, timeout: float = _DEFAULT_TIMEOUT
    ) -> None:
        self._client = client
        self._key = keys.root + b"state"
        self._ttl = ttl if ttl and ttl > 0 else _DEFAULT_TTL
        self._timeout = timeout
        self._lease = 0
        self._lease_lock = asyncio.Lock()
        self._renewed_at = 0.0
        self._seen: tuple[Token, int] = (None, 0)

    @property
    def name(self) -> str:
        """See :attr:`RendezvousBackend.name`."""
        return "etcd-v3"

    @property
    def place(self) -> str:
        """See :attr:`RendezvousBackend.place`."""
        return f"the etcd key '{self._key.decode()}'"

    def get_state(self) -> tuple[bytes, Token] | None:
        """See :meth:`RendezvousBackend.get_state`."""
        return background.run(self._get())

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """See :meth:`RendezvousBackend.set_state`."""
        return background.run(self._set(state, token))

    def watch(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        """See :meth:`RendezvousBackend.watch`. Returns the oldest newer state that etcd still has."""
        return background.run(self._watch(token, timeout))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout

    async def _get(self) -> tuple[bytes, int] | None:
        found, revision = await self._client.range(self._key, b"", self._deadline())
        return self._state(found[0], revision) if found else None

    def _state(self, kv: KeyValue, revision: int = 0) -> tuple[bytes, int]:
        """Return the state and its token, as stored at ``revision``."""
        value: bytes = kv.value
        token: int = kv.mod_revision
        if len(value) < _NONCE:
            raise RendezvousStateError(
                f"the etcd key '{self._key.decode()}' holds {value!r}, which is not a state of a rendezvous: "
                f"something else wrote it; choose another run id or prefix"
            )
        self._seen = (token, max(token, revision))
        return value[_NONCE:], token

    async def _set(self, state: bytes, token: Token | None) -> tuple[bytes, int, bool] | None:
        replaced = index_of(token) if token else 0
        if replaced is None:
            return await self._not_written()
        nonce, deadline = os.urandom(_NONCE), self._deadline()
        await self._ensure_lease(deadline)
        while True:
            try:
                answer = await self._client.txn(
                    [compare(self._key, "mod_revision", replaced)],
                    [put_op(self._key, nonce + state, self._lease)],
                    [get_op(self._key)],
                    deadline=deadline,
                )
                break
            except EtcdError as exc:
                if not isinstance(exc, LeaseNotFoundError):
                    raise
                self._lease = 0  # _ensure_lease grants a new one
                await self._ensure_lease(deadline)
        revision: int = answer.header.revision
        if answer.succeeded:
            self._seen = (revision, revision)
            return state, revision, True
        found = answer.responses[0].response_range.kvs
        if not found:
            return None
        return *self._state(found[0], revision), found[0].value.startswith(nonce)

    async def _not_written(self) -> tuple[bytes, int, bool] | None:
        current = await self._get()
        return None if current is None else (*current, False)

    async def _ensure_lease(self, deadline: float) -> None:
        """Grant or renew the lease, unless it was renewed within the last tenth of the TTL."""
        async with self._lease_lock:
            now = asyncio.get_running_loop().time()
            if self._lease and now - self._renewed_at < self._ttl / 10:
                return
            if not self._lease or not await self._client.keep_alive(self._lease, deadline):
                self._lease = await self._client.grant(self._ttl, deadline)
            self._renewed_at = now

    async def _watch(self, token: Token, timeout: float) -> tuple[bytes, int] | None:
        known, deadline = index_of(token), asyncio.get_running_loop().time() + timeout
        if known is None:
            return None
        # A watch from an old revision would make etcd scan all writes since then, of all keys.
        start = self._seen[1] if self._seen[0] == known else known
        while True:
            kv, missed = await self._next_write(start + 1, deadline)
            if kv is not None:
                return self._state(kv)
            if not missed:
                return None
            found, start = await self._client.range(self._key, b"", self._deadline())
            if not found:
                return None
            current = self._state(found[0], start)
            if current[1] != known:
                return current

    async def _next_write(self, start: int, deadline: float) -> tuple[KeyValue | None, bool]:
        """Return the first event from revision ``start`` on, if it is a write; and whether events may be missing."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[tuple[KeyValue | None, bool]] = loop.create_future()

        def end(kv: KeyValue | None, missed: bool) -> None:
            if not over.done():
                over.set_result((kv, missed))

        def receive(events: Sequence[Event]) -> None:
            end(None if events[0].type == DELETE else events[0].kv, False)

        def lost() -> None:
            end(None, True)

        limit = max(deadline, self._deadline())
        # If the watch was interrupted, etcd may have been restored from a snapshot, and the revisions mean nothing.
        watch = await self._client.watch(self._key, b"", receive, lost, limit, start, resumed=lost)
        timer = loop.call_at(deadline, end, None, False)
        try:
            return await over
        finally:
            timer.cancel()
            watch.cancel()


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """Connect to etcd and return the backend and the store of a job.

    The store is one for all rounds: the dynamic rendezvous sets its keys apart by round. They outlive the job.

    ``rendezvous config --backend etcd-v2`` lists the configuration keys.

    Raises:
        RendezvousConnectionError: no endpoint answers, or etcd refused the user.
        ValueError: a value is malformed or out of range.
    """
    config.check(params, config.Backend.DYNAMIC_V3)
    keys = run_keys(params)
    timeout = config.DYNAMIC_V3_READ_TIMEOUT.read(params)
    client = connect(params)
    store = EtcdStore(client, keys, number=0, lease=0, since=0, options=StoreOptions(refuse_restored=False))
    return EtcdRendezvousBackend(client, keys, timeout=timeout), store
