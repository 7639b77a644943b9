"""Deliberate faults of the store, each of which the checks must notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated.store.encoding import encode
from rendezvous.coordinated.store.idempotency import IdempotencyKey
from rendezvous.coordinated.store.operations import AsyncEtcdStore
from rendezvous.coordinated.store.requests import Requests
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import compare, put_op
from rendezvous.store import to_bytes


def without_idempotency_keys() -> None:
    """A change is applied as often as etcd gets its request."""
    never = property(lambda self: compare(self.key, "version", 0, "LESS"))
    IdempotencyKey.carried_out = never  # type: ignore[method-assign, assignment]


def sets_without_idempotency_keys() -> None:
    """A write that etcd applies late overwrites newer ones."""

    async def multi_set(self: AsyncEtcdStore, keys: Any, values: Any, timeout: float) -> None:
        puts = [put_op(self.prefix + to_bytes(key), encode(value)) for key, value in zip(keys, values, strict=True)]
        deadline = asyncio.get_running_loop().time() + timeout
        await self._requests.send(Call.TXN, rpc_pb2.TxnRequest(success=puts), deadline)

    AsyncEtcdStore.multi_set = multi_set  # type: ignore[method-assign]


def idempotency_keys_of_changes_only() -> None:
    """A change that was reported as not made is made by a request that etcd applies late."""
    put = IdempotencyKey.put

    def put_elsewhere(self: IdempotencyKey, lease: int, made: bool = True) -> Any:
        return put(self if made else IdempotencyKey(self.key + b"/not-made", self.number), lease, made)

    IdempotencyKey.put = put_elsewhere  # type: ignore[method-assign]


def stale_reads() -> None:
    """Reads do not see what other stores have written since this one got its last answer."""
    send = Requests.send

    async def outdated(self: Requests, call: Call, message: Any, deadline: float) -> Any:
        if call is Call.RANGE:
            message = rpc_pb2.RangeRequest.FromString(message.SerializeToString())
            message.revision = self.newest
        return await send(self, call, message, deadline)

    Requests.send = outdated  # type: ignore[method-assign]


def lost_writes() -> None:
    """A write that did not reach etcd is reported as done."""
    multi_set = AsyncEtcdStore.multi_set

    async def careless(self: AsyncEtcdStore, keys: Any, values: Any, timeout: float) -> None:
        try:
            await multi_set(self, keys, values, min(timeout, 0.3))
        except RendezvousConnectionError:
            pass

    AsyncEtcdStore.multi_set = careless  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__.replace("_", " "): plant
    for plant in (
        without_idempotency_keys,
        sets_without_idempotency_keys,
        idempotency_keys_of_changes_only,
        stale_reads,
        lost_writes,
    )
}
