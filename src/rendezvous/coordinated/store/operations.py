"""The operations of the store, as coroutines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence

from rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError
from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store.encoding import (
    AFTER_COUNTERS,
    BEFORE_COUNTERS,
    NEW_COUNTER,
    decode,
    encode,
    encode_number,
)
from rendezvous.coordinated.store.idempotency import IdempotencyKey, IdempotencyKeys, change_was_made
from rendezvous.coordinated.store.options import DEFAULT_OPTIONS, StoreOptions
from rendezvous.coordinated.store.reading import Reader
from rendezvous.coordinated.store.requests import Requests
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import CompactedError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import (
    KeyValue,
    Operation,
    absent,
    compare,
    delete_op,
    get_op,
    prefix_end,
    put_op,
    txn_op,
)
from rendezvous.store import Key, add_up, quoted_key, to_amount, to_bytes, to_number, to_text

__all__ = ["AsyncEtcdStore"]

Change = Callable[[bytes | None, int], bytes | None]
"""From the value of a key (None: no value) and the version that a write will give the key to what is to be stored
(None: nothing)."""


class AsyncEtcdStore:
    """What :class:`EtcdStore` does, for one event loop. Each operation takes its timeout in seconds.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        number: the number of the round.
        lease: the lease of the store's keys; 0 for none.
        since: a revision of etcd at which the store was empty; 0 if it is not known.
        client_id: no other store of the round, on any node, has the same.
        random: jitters the pauses between compare-and-swaps.
        options: the limits of requests.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        number: int,
        lease: int,
        since: int,
        client_id: str | int,
        random: random.Random,
        options: StoreOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.prefix = keys.of_round("store", number)
        self._options = options
        self._lease = lease
        self._random = random
        self._requests = Requests(client, self.prefix, options)
        self._reader = Reader(self._requests, since)
        self._idempotency_keys = IdempotencyKeys(keys.of_round("once", number) + f"{client_id}/".encode())

    # Reading.

    async def wait(self, keys: Sequence[Key], timeout: float) -> None:
        """See :meth:`Store.wait`."""
        await self._reader.wait(keys, timeout, replay=True)

    async def multi_get(self, keys: Sequence[Key], timeout: float) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        found = await self._reader.wait(keys, timeout, replay=False)
        return [_value(found[self._requests.path(key)]) for key in keys]

    async def check(self, keys: Sequence[Key], timeout: float) -> bool:
        """See :meth:`Store.check`."""
        paths = {self._requests.path(key) for key in keys}
        found, _ = await self._reader.read(paths, _deadline(timeout), keys_only=True)
        return paths <= found.keys()

    async def num_keys(self, timeout: float) -> int:
        """See :meth:`Store.num_keys`."""
        request = rpc_pb2.RangeRequest(key=self.prefix, range_end=prefix_end(self.prefix), count_only=True)
        return int((await self._requests.send(Call.RANGE, request, _deadline(timeout))).count)

    async def list_keys(self, timeout: float) -> list[str]:
        """See :meth:`Store.list_keys`."""
        deadline, names, revision, start = _deadline(timeout), list[str](), 0, self.prefix
        while True:
            request = rpc_pb2.RangeRequest(
                key=start,
                range_end=prefix_end(self.prefix),
                limit=self._requests.client.options.page_size,
                revision=revision,
                keys_only=True,
            )
            answer = await self._requests.send(Call.RANGE, request, deadline)
            names += [to_text(self._requests.key(kv.key)) for kv in answer.kvs]
            if not answer.more:
                return names
            revision, start = revision or answer.header.revision, answer.kvs[-1].key + b"\0"

    # Changes. Each must be applied once, and not after its operation has ended.

    async def set(self, key: Key, value: str | bytes, timeout: float) -> None:
        """See :meth:`Store.set`."""
        await self.multi_set([key], [value], timeout)

    async def multi_set(self, keys: Sequence[Key], values: Sequence[str | bytes], timeout: float) -> None:
        """See :meth:`Store.multi_set`. If a key is given twice, the last value counts."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set needs as many values as keys, not {len(values)} for {len(keys)}")
        # A dict, because etcd refuses a transaction that writes a key twice.
        data = {self._requests.path(key): encode(value) for key, value in zip(keys, values, strict=True)}
        deadline = _deadline(timeout)
        with self._idempotency_keys.use() as once:
            for part in self._transactions(data):
                puts = [put_op(path, stored, self._lease) for path, stored in part]
                await self._send_once(once, [], [*puts, once.put(self._lease)], deadline)

    def _transactions(self, data: dict[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
        """Divide what is to be stored into parts that fit into a transaction."""
        part: list[tuple[bytes, bytes]] = []
        size = 0
        for path, stored in data.items():
            length = len(path) + len(stored)
            if part and (len(part) == self._options.max_operations or size + length > self._options.max_bytes):
                yield part
                part, size = [], 0
            part.append((path, stored))
            size += length
        if part:
            yield part

    async def add(self, key: Key, num: int, timeout: float) -> int:
        """See :meth:`EtcdStore.add`."""
        amount = to_amount(key, num)
        path, deadline, kv = self._requests.path(key), _deadline(timeout), None
        with self._idempotency_keys.use() as once:
            if amount == 1:
                number, kv = await self._increment(once, key, path, deadline)
                if number is not None:
                    return number

            def increase(value: bytes | None, version: int) -> bytes:
                return encode_number(add_up(key, to_number(key, value or b""), amount), version)

            value = await self._swap(once, path, kv, increase, deadline)
        return to_number(key, value or b"")

    async def _increment(
        self, once: IdempotencyKey, key: Key, path: bytes, deadline: float
    ) -> tuple[int | None, KeyValue | None]:
        """Add 1 in one request if there is a counter or nothing; else return None and what is stored."""
        is_counter = [
            compare(path, "value", BEFORE_COUNTERS, "GREATER"),
            compare(path, "value", AFTER_COUNTERS, "LESS"),
        ]
        write_again = put_op(path, b"", ignore_value=True, ignore_lease=True, prev_kv=True)
        create = put_op(path, NEW_COUNTER, self._lease)
        made, not_made = once.put(self._lease), once.put(self._lease, made=False)
        create_or_read = txn_op([absent(path)], [create, made], [get_op(path), not_made])
        change = txn_op(is_counter, [write_again, made], [create_or_read])
        answer = await self._send_once(once, [get_op(path)], [change], deadline)
        if answer.succeeded:
            if _change_was_made(answer):
                return to_number(key, await self._value_after(path, answer, deadline)), None
            return None, _first(answer.responses[1])
        increased = answer.responses[0].response_txn
        if increased.succeeded:
            return to_number(key, _value(increased.responses[0].response_put.prev_kv)) + 1, None
        created = increased.responses[0].response_txn
        if created.succeeded:
            return 1, None
        return None, _first(created.responses[0])

    async def compare_set(
        self, key: Key, expected_value: str | bytes, desired_value: str | bytes, timeout: float
    ) -> bytes:
        """See :meth:`Store.compare_set`."""
        path, deadline = self._requests.path(key), _deadline(timeout)
        expected, desired = to_bytes(expected_value), encode(desired_value)

        def replace(value: bytes | None, version: int) -> bytes | None:
            return desired if (value or b"") == expected else None

        # If a value is expected, it is probably there: the first attempt then has the right condition.
        kv = await self._reader.read_one(path, deadline) if expected else None
        with self._idempotency_keys.use() as once:
            value = await self._swap(once, path, kv, replace, deadline)
        return expected if value is None else value

    async def append(self, key: Key, value: str | bytes, timeout: float) -> None:
        """See :meth:`Store.append`."""
        tail = to_bytes(value)

        def extend(value: bytes | None, version: int) -> bytes:
            return encode((value or b"") + tail)

        with self._idempotency_keys.use() as once:
            await self._swap(once, self._requests.path(key), None, extend, _deadline(timeout))

    async def delete_key(self, key: Key, timeout: float) -> bool:
        """See :meth:`Store.delete_key`."""
        path = self._requests.path(key)
        with self._idempotency_keys.use() as once:
            exists = compare(path, "version", 0, "GREATER")
            change = txn_op([exists], [delete_op(path), once.put(self._lease)], [once.put(self._lease, made=False)])
            answer = await self._send_once(once, [], [change], _deadline(timeout))
        return _change_was_made(answer) if answer.succeeded else bool(answer.responses[0].response_txn.succeeded)

    # How such changes are applied.

    async def _send_once(
        self, once: IdempotencyKey, reads: Sequence[Operation], change: Sequence[Operation], deadline: float
    ) -> rpc_pb2.TxnResponse:
        """Carry out a transaction unless it has been carried out before.

        Args:
            once: an idempotency key.
            reads: what to read if it has been carried out before.
            change: what to do otherwise; each of its branches writes ``once``.
            deadline: until when to try.

        Returns:
            etcd's answer. It says ``succeeded`` if the transaction had been carried out before; what is stored under
            ``once`` is its first response then.
        """
        request = rpc_pb2.TxnRequest(compare=[once.carried_out], success=[get_op(once.key), *reads], failure=change)
        try:
            answer: rpc_pb2.TxnResponse = await self._requests.send(Call.TXN, request, deadline)
            if answer.succeeded:
                once.check(answer.responses[0].response_range.kvs[0])
        finally:
            once.number += 1
        return answer

    async def _value_after(self, path: bytes, answer: rpc_pb2.TxnResponse, deadline: float) -> bytes:
        """Return the value right after a change that had been applied before, by the answer of :meth:`_send_once`.

        The answer also has what is stored under the key now.
        """
        marks, kvs = (response.response_range.kvs for response in answer.responses)
        revision = marks[0].mod_revision
        if not kvs or kvs[0].mod_revision != revision:
            request = rpc_pb2.RangeRequest(key=path, revision=revision)
            try:
                kvs = (await self._requests.send(Call.RANGE, request, deadline)).kvs
            except CompactedError as exc:
                raise RendezvousConnectionError(
                    f"the key {self._name(path)} of the etcd store was changed, but the result is lost: the answer did "
                    f"not arrive, and etcd has compacted the revision. The change is not applied again ({exc})"
                ) from None
        return _value(kvs[0])

    async def _swap(
        self, once: IdempotencyKey, path: bytes, kv: KeyValue | None, change: Change, deadline: float
    ) -> bytes | None:
        """Change what is stored under a key by compare-and-swap, until it succeeds or there is nothing to change.

        Args:
            once: the idempotency key of the change.
            path: the etcd key.
            kv: what is assumed to be stored; None for nothing.
            change: what to store.
            deadline: until when to try.

        Returns:
            The value that is stored afterwards, or None.

        Raises:
            RendezvousTimeoutError: other nodes changed the key before each attempt.
        """
        clock, pause, options = asyncio.get_running_loop().time, self._options.min_pause, self._options
        while (stored := _apply(change, kv)) is not None:
            swap = txn_op(
                [compare(path, "mod_revision", kv.mod_revision if kv is not None else 0)],
                [put_op(path, stored, self._lease), once.put(self._lease)],
                [get_op(path), once.put(self._lease, made=False)],
            )
            answer = await self._send_once(once, [get_op(path)], [swap], deadline)
            if answer.succeeded:
                if _change_was_made(answer):
                    return await self._value_after(path, answer, deadline)
                kv = _first(answer.responses[1])
            else:
                result = answer.responses[0].response_txn
                if result.succeeded:
                    return decode(path, stored, _next_version(kv))
                kv = _first(result.responses[0])
            if _apply(change, kv) is None:
                break
            pause = min(options.max_pause, self._random.uniform(options.min_pause, 3 * pause))
            if clock() + pause >= deadline:
                raise RendezvousTimeoutError(
                    f"could not change the key {self._name(path)} of the etcd store in time: other nodes changed it "
                    f"before each attempt"
                )
            await asyncio.sleep(pause)
            kv = await self._reader.read_one(path, deadline)
        return None if kv is None else _value(kv)

    def _name(self, path: bytes) -> str:
        return quoted_key(self._requests.key(path))


def _deadline(timeout: float) -> float:
    return asyncio.get_running_loop().time() + timeout


def _apply(change: Change, kv: KeyValue | None) -> bytes | None:
    return change(None if kv is None else _value(kv), _next_version(kv))


def _next_version(kv: KeyValue | None) -> int:
    return 1 + (0 if kv is None else kv.version)


def _value(kv: KeyValue) -> bytes:
    return decode(kv.key, kv.value, kv.version)


def _change_was_made(answer: rpc_pb2.TxnResponse) -> bool:
    """Return whether a transaction that had been carried out before, by the answer, made its change."""
    return change_was_made(answer.responses[0].response_range.kvs[0].value)


def _first(response: rpc_pb2.ResponseOp) -> KeyValue | None:
    kvs = response.response_range.kvs
    return kvs[0] if kvs else None
