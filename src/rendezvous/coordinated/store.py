"""The key-value store of one round, on etcd's v3 API.

    <prefix>/<run id>/store/<round>/<key>                 a value: a tag of one byte, and what the tag says
    <prefix>/<run id>/adders/<round>/<client id>/<slot>   the number of the last change that was made once only

The tag ``=`` stands before a value as it is. The tag ``+`` stands before the decimal base of a counter, whose value is
the base and etcd's ``version`` of the key together: etcd counts the writes of a key, so that whoever adds 1 writes the
key once more, and nobody has to be the first.

A request whose answer is lost is sent again, and what is not harmless to repeat (to add, to append, to swap, to delete)
must not be done twice. Such a change writes a mark of its own in the same transaction, with a number that grows, and is
made only where the mark is still below that number. A request that etcd applies late finds a higher one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rendezvous.api import RendezvousConnectionError, RendezvousStateError, RendezvousTimeoutError
from rendezvous.coordinated.records import Keys
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import Call, EtcdClient, Watch
from rendezvous.etcd.v3.errors import EtcdError, LeaseNotFoundError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import (
    DELETE,
    Event,
    KeyValue,
    Message,
    absent,
    compare,
    delete_op,
    get_op,
    prefix_end,
    put_op,
    txn_op,
)
from rendezvous.store import Store

__all__ = ["AsyncEtcdStore", "EtcdStore"]

Key = str | bytes

_OPS = 100  # etcd takes 128 operations a transaction, unless told otherwise
_MOST_BYTES = 1 << 20  # and 1.5 MiB a request
_MOST_NEEDS = 16

# What etcd replays at once. Of a longer replay only the end is sure to be current.
_REPLAY = 1000

# For a watch from long ago etcd goes through all that was written since, by whomever: reading first is cheaper then.
_LONG_HISTORY = 10_000

# What a request may take at the least, however short the wait that it is for, in seconds.
_GRACE = 1.0

_LEAST_PAUSE, _MOST_PAUSE = 0.01, 2.0


@dataclass
class _Mark:
    """A key that says which change was the last; one for each change that is under way at the same time."""

    key: bytes
    number: int = 1

    @property
    def passed(self) -> Message:
        """The condition that the change has been made."""
        return compare(self.key, "value", b"%016x" % (self.number - 1), "GREATER")

    def put(self, lease: int) -> Message:
        """Return the operation that says so."""
        return put_op(self.key, b"%016x" % self.number, lease)


class AsyncEtcdStore:
    """What :class:`EtcdStore` does, for one event loop. Each operation takes its time-out, in seconds.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        number: the number of the round.
        lease: what the keys of the store hang on; 0 for nothing.
        since: a revision of etcd at which the store was still empty; 0 where that is not known.
        client_id: no other store of the round, on any node, has the same.
        random: jitters the pauses between swaps.
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
    ) -> None:
        self.prefix = keys.of_round("store", number)
        self._client = client
        self._lease = lease
        self._since = since
        self._revision = since
        self._random = random
        self._free_marks: list[_Mark] = []
        mark = keys.of_round("adders", number) + f"{client_id}/".encode()
        self._new_marks = (_Mark(mark + b"%d" % slot) for slot in itertools.count())

    # Requests.

    async def _request(self, call: Call, message: Message, deadline: float) -> Message:
        try:
            answer = await self._client.request(call, message, deadline)
        except EtcdError as exc:
            if not isinstance(exc, LeaseNotFoundError):
                raise
            refusal = RendezvousConnectionError(
                f"the lease of the etcd store '{self.prefix.decode()}' is gone, and the store's keys with it: nobody "
                f"has coordinated the run for too long ({exc})",
                retryable=False,
            )
            raise refusal from exc
        self._revision = max(self._revision, answer.header.revision)
        return answer

    def _key(self, key: Key) -> bytes:
        return self.prefix + _as_bytes(key)

    # Reading.

    async def _read(
        self, paths: Iterable[bytes], deadline: float, keys_only: bool = False
    ) -> tuple[dict[bytes, KeyValue], int]:
        """Return what there is under ``paths``, and a revision since when any of it may have changed."""
        needs = _needs(paths)
        single = [need[0] for need in needs if len(need) == 1]
        parts = await asyncio.gather(
            *(self._read_each(single[i : i + _OPS], deadline, keys_only) for i in range(0, len(single), _OPS)),
            *(self._read_between(need, deadline, keys_only) for need in needs if len(need) > 1),
        )
        found = {kv.key: kv for kvs, _ in parts for kv in kvs}
        return found, min((revision for _, revision in parts), default=self._revision)

    async def _read_each(self, paths: Sequence[bytes], deadline: float, keys_only: bool) -> tuple[list[KeyValue], int]:
        reads = [rpc_pb2.RangeRequest(key=path, keys_only=keys_only) for path in paths]
        if len(reads) == 1:
            answer = await self._request(Call.RANGE, reads[0], deadline)
            return list(answer.kvs), answer.header.revision
        request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=read) for read in reads])
        answer = await self._request(Call.TXN, request, deadline)
        return [kv for response in answer.responses for kv in response.response_range.kvs], answer.header.revision

    async def _read_between(
        self, paths: Sequence[bytes], deadline: float, keys_only: bool
    ) -> tuple[list[KeyValue], int]:
        """Read what lies from the first path to the last, and one by one what such a read did not reach."""
        request = rpc_pb2.RangeRequest(
            key=paths[0], range_end=paths[-1] + b"\0", limit=2 * len(paths) + 64, keys_only=keys_only
        )
        answer = await self._request(Call.RANGE, request, deadline)
        found, revision = list(answer.kvs), answer.header.revision
        rest = [path for path in paths if path > found[-1].key] if answer.more else []
        for i in range(0, len(rest), _OPS):
            found += (await self._read_each(rest[i : i + _OPS], deadline, keys_only))[0]
        return found, revision

    # Waiting.

    async def _await(self, keys: Sequence[Key], timeout: float, replay: bool) -> dict[bytes, KeyValue]:
        """Return what is under ``keys`` once all are there.

        Args:
            keys: the keys.
            timeout: seconds.
            replay: have etcd tell what has become of the keys since the store was empty, rather than ask what is
                there. That is one request, not two; but values may be old.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        names = {self._key(key): key for key in keys}
        found: dict[bytes, KeyValue] = {}
        start = self._since if replay and self._revision - self._since < _LONG_HISTORY else 0
        while True:
            missing = [path for path in names if path not in found]
            if not start:
                there, revision = await self._read(missing, max(deadline, clock() + _GRACE))
                found.update((path, there[path]) for path in missing if path in there)
                missing = [path for path in missing if path not in there]
                start = revision + 1
                if missing and clock() >= deadline:
                    raise LookupError(_complaint([names[path] for path in missing], timeout))
            if not missing:
                return found
            heard = await self._hear(missing, start, deadline)
            if heard is not None:
                return found | heard
            # The time is up, or etcd has forgotten what was asked for. Asking tells, and finds an etcd that is away.
            start = 0

    async def _hear(self, paths: Sequence[bytes], start: int, deadline: float) -> dict[bytes, KeyValue] | None:
        """Watch ``paths`` until all are there; None where reading must tell what is there."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[bool] = loop.create_future()
        wanted, heard, newest = set(paths), dict[bytes, KeyValue](), dict[bytes, int]()
        watches: list[Watch] = []

        def end(known: bool) -> None:
            if not over.done():
                over.set_result(known)

        def receive(events: Sequence[Event]) -> None:
            for event in events:
                kv = event.kv
                if kv.key not in wanted or kv.mod_revision < newest.get(kv.key, 0):
                    continue
                newest[kv.key] = kv.mod_revision
                if event.type == DELETE:
                    heard.pop(kv.key, None)
                else:
                    heard[kv.key] = kv
            if len(heard) == len(wanted):
                end(len(events) < _REPLAY)

        def lost() -> None:
            self._since = 0
            end(False)

        async def watch(need: Sequence[bytes]) -> None:
            until = need[-1] + b"\0" if len(need) > 1 else b""
            limit = max(deadline, loop.time() + _GRACE)
            watches.append(await self._client.watch(need[0], until, receive, lost, limit, start))

        timer = loop.call_at(deadline, end, False)
        try:
            outcomes = await asyncio.gather(*map(watch, _needs(paths)), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            return heard if await over else None
        finally:
            timer.cancel()
            for each in watches:
                each.cancel()

    # Changing what must not be changed twice.

    @contextmanager
    def _mark(self) -> Iterator[_Mark]:
        mark = self._free_marks.pop() if self._free_marks else next(self._new_marks)
        try:
            yield mark
        finally:
            mark.number += 1
            self._free_marks.append(mark)

    async def _once(self, mark: _Mark, path: bytes, change: Message, deadline: float) -> Message:
        """Carry out ``change``, a transaction that puts ``mark``, unless it has been; succeeds where it has been."""
        request = rpc_pb2.TxnRequest(compare=[mark.passed], success=[get_op(mark.key), get_op(path)], failure=[change])
        return await self._request(Call.TXN, request, deadline)

    async def _came_of_it(self, path: bytes, answer: Message, deadline: float) -> KeyValue:
        """Return what was under ``path`` right after the change that ``answer``, of :meth:`_once`, says was made."""
        marks, kvs = (response.response_range.kvs for response in answer.responses)
        revision = marks[0].mod_revision
        if not kvs or kvs[0].mod_revision != revision:
            request = rpc_pb2.RangeRequest(key=path, revision=revision)
            try:
                kvs = (await self._request(Call.RANGE, request, deadline)).kvs
            except EtcdError as exc:
                raise RendezvousConnectionError(
                    f"the etcd store changed {self._name(path)} but lost the answer, and etcd has forgotten what came "
                    f"of it: it is not changed twice ({exc})"
                ) from exc
        kv: KeyValue = kvs[0]
        return kv

    async def _swap(
        self,
        mark: _Mark,
        path: bytes,
        kv: KeyValue | None,
        change: Callable[[KeyValue | None], bytes | None],
        deadline: float,
    ) -> KeyValue | None:
        """Write ``change(kv)``, unless it is None, once ``kv`` is what is there; return what is there then."""
        clock, pause = asyncio.get_running_loop().time, _LEAST_PAUSE
        while (value := change(kv)) is not None:
            answer = await self._once(
                mark,
                path,
                txn_op(
                    [compare(path, "mod_revision", kv.mod_revision if kv is not None else 0)],
                    [put_op(path, value, self._lease), mark.put(self._lease)],
                    [get_op(path)],
                ),
                deadline,
            )
            if answer.succeeded:
                return await self._came_of_it(path, answer, deadline)
            result = answer.responses[0].response_txn
            if result.succeeded:
                return rpc_pb2.KeyValue(key=path, value=value, version=1 + (kv.version if kv is not None else 0))
            kv = _first(result.responses[0])
            if change(kv) is None:
                break
            pause = min(_MOST_PAUSE, self._random.uniform(_LEAST_PAUSE, 3 * pause))
            if clock() + pause >= deadline:
                raise RendezvousTimeoutError(
                    f"the etcd store could not change {self._name(path)} in time: others changed it each time"
                )
            await asyncio.sleep(pause)
            kv = await self._read_one(path, deadline)
        return kv

    async def _read_one(self, path: bytes, deadline: float) -> KeyValue | None:
        kvs, _ = await self._read_each([path], deadline, keys_only=False)
        return kvs[0] if kvs else None

    def _name(self, path: bytes) -> str:
        return repr(_as_text(path[len(self.prefix) :]))

    def _number(self, kv: KeyValue) -> int:
        value = _value(kv)
        try:
            return int(value or b"0")
        except ValueError:
            raise ValueError(
                f"the value of {self._name(kv.key)} in the etcd store is not a number: {value!r}"
            ) from None

    # The operations.

    async def set(self, key: Key, value: str | bytes, timeout: float) -> None:
        """See :meth:`Store.set`."""
        await self.multi_set([key], [value], timeout)

    async def wait(self, keys: Sequence[Key], timeout: float) -> None:
        """See :meth:`Store.wait`."""
        await self._await(keys, timeout, replay=True)

    async def multi_get(self, keys: Sequence[Key], timeout: float) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        found = await self._await(keys, timeout, replay=False)
        return [_value(found[self._key(key)]) for key in keys]

    async def check(self, keys: Sequence[Key], timeout: float) -> bool:
        """See :meth:`Store.check`."""
        paths = {self._key(key) for key in keys}
        found, _ = await self._read(paths, _deadline(timeout), keys_only=True)
        return paths <= found.keys()

    async def add(self, key: Key, num: int, timeout: float) -> int:
        """See :meth:`EtcdStore.add`."""
        path, deadline, kv = self._key(key), _deadline(timeout), None
        with self._mark() as mark:
            if num == 1:
                answer = await self._once(mark, path, self._count(path, mark), deadline)
                if answer.succeeded:
                    return self._number(await self._came_of_it(path, answer, deadline))
                result = answer.responses[0].response_txn
                if result.succeeded:
                    return self._number(result.responses[0].response_put.prev_kv) + 1
                result = result.responses[0].response_txn
                if result.succeeded:
                    return 1
                kv = _first(result.responses[0])

            def increase(kv: KeyValue | None) -> bytes:
                number, version = (self._number(kv), kv.version) if kv is not None else (0, 0)
                return b"+%d" % (number + num - (version + 1))

            after = await self._swap(mark, path, kv, increase, deadline)
            assert after is not None  # increase() always writes
            return self._number(after)

    def _count(self, path: bytes, mark: _Mark) -> Message:
        """Return the transaction that adds 1 to a counter, or makes one of 1, or reads what is no counter."""
        is_counter = [compare(path, "value", b"+", "GREATER"), compare(path, "value", b",", "LESS")]
        again = put_op(path, b"", ignore_value=True, ignore_lease=True, prev_kv=True)
        first = put_op(path, b"+0", self._lease)
        noted = mark.put(self._lease)
        return txn_op(is_counter, [again, noted], [txn_op([absent(path)], [first, noted], [get_op(path)])])

    async def compare_set(
        self, key: Key, expected_value: str | bytes, desired_value: str | bytes, timeout: float
    ) -> bytes:
        """See :meth:`Store.compare_set`."""
        path, deadline = self._key(key), _deadline(timeout)
        expected, desired = _as_bytes(expected_value), _plain(desired_value)

        def replace(kv: KeyValue | None) -> bytes | None:
            return desired if (_value(kv) if kv is not None else b"") == expected else None

        kv = await self._read_one(path, deadline) if expected else None
        with self._mark() as mark:
            kv = await self._swap(mark, path, kv, replace, deadline)
        return _value(kv) if kv is not None else expected

    async def append(self, key: Key, value: str | bytes, timeout: float) -> None:
        """See :meth:`Store.append`."""
        tail = _as_bytes(value)
        with self._mark() as mark:
            await self._swap(
                mark,
                self._key(key),
                None,
                lambda kv: _plain((_value(kv) if kv is not None else b"") + tail),
                _deadline(timeout),
            )

    async def delete_key(self, key: Key, timeout: float) -> bool:
        """See :meth:`Store.delete_key`."""
        path = self._key(key)
        with self._mark() as mark:
            there = compare(path, "version", 0, "GREATER")
            change = txn_op([there], [delete_op(path), mark.put(self._lease)])
            answer = await self._once(mark, path, change, _deadline(timeout))
        return bool(answer.succeeded or answer.responses[0].response_txn.succeeded)

    async def num_keys(self, timeout: float) -> int:
        """See :meth:`Store.num_keys`."""
        request = rpc_pb2.RangeRequest(key=self.prefix, range_end=prefix_end(self.prefix), count_only=True)
        return int((await self._request(Call.RANGE, request, _deadline(timeout))).count)

    async def list_keys(self, timeout: float) -> list[str]:
        """See :meth:`EtcdStore.list_keys`."""
        deadline, names, revision, start = _deadline(timeout), list[str](), 0, self.prefix
        while True:
            request = rpc_pb2.RangeRequest(
                key=start,
                range_end=prefix_end(self.prefix),
                limit=self._client.options.page_size,
                revision=revision,
                keys_only=True,
            )
            answer = await self._request(Call.RANGE, request, deadline)
            names += [_as_text(kv.key[len(self.prefix) :]) for kv in answer.kvs]
            if not answer.more:
                return names
            revision, start = revision or answer.header.revision, answer.kvs[-1].key + b"\0"

    async def multi_set(self, keys: Sequence[Key], values: Sequence[str | bytes], timeout: float) -> None:
        """See :meth:`Store.multi_set`."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set needs as many values as keys, not {len(values)} for {len(keys)}")
        # etcd refuses a transaction that writes a key twice. The last value counts.
        data = {self._key(key): _plain(value) for key, value in zip(keys, values, strict=True)}
        deadline = _deadline(timeout)
        puts: list[Message] = []
        size = 0
        for path, value in data.items():
            if puts and (len(puts) == _OPS or size + len(path) + len(value) > _MOST_BYTES):
                await self._request(Call.TXN, rpc_pb2.TxnRequest(success=puts), deadline)
                puts, size = [], 0
            puts.append(put_op(path, value, self._lease))
            size += len(path) + len(value)
        if puts:
            await self._request(Call.TXN, rpc_pb2.TxnRequest(success=puts), deadline)


def _deadline(timeout: float) -> float:
    return asyncio.get_running_loop().time() + timeout


def _needs(paths: Iterable[bytes]) -> list[list[bytes]]:
    """Divide paths into what is asked for at once: those that differ in their numbers only lie side by side."""
    alike: dict[bytes, list[bytes]] = {}
    for path in sorted(paths):
        alike.setdefault(re.sub(rb"[0-9]+", b"0", path), []).append(path)
    if len(alike) > _MOST_NEEDS:
        return [sorted(path for need in alike.values() for path in need)]
    return list(alike.values())


def _complaint(keys: Sequence[Key], seconds: float) -> str:
    names = [repr(_as_text(key)) for key in keys]
    subject = f"the key {names[0]}" if len(names) == 1 else f"the keys {', '.join(names[:5])}"
    if len(names) > 5:
        subject += f" and {len(names) - 5} more"
    return f"{subject} did not appear in the etcd store within {seconds:g} s"


def _first(response: Message) -> KeyValue | None:
    kvs = response.response_range.kvs
    return kvs[0] if kvs else None


def _as_bytes(value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a key or value of the etcd store must be str or bytes, not {type(value).__name__}")


def _as_text(key: Key) -> str:
    return key.decode(errors="surrogateescape") if isinstance(key, bytes) else key


def _plain(value: str | bytes) -> bytes:
    return b"=" + _as_bytes(value)


def _value(kv: KeyValue) -> bytes:
    """Return the value that stands under a key. Raises RendezvousStateError where it is none of the store's."""
    data: bytes = kv.value
    if data.startswith(b"="):
        return data[1:]
    try:
        if data.startswith(b"+"):
            return b"%d" % (int(data[1:]) + kv.version)
    except ValueError:
        pass
    raise RendezvousStateError(
        f"the etcd key '{kv.key.decode(errors='replace')}' holds {data[:60]!r}, which is not a value of this store: "
        f"something else wrote it"
    )


class EtcdStore(Store):
    """The key-value store of one round of a run, on etcd's v3 API.

    Any key is a key. An operation reads, writes and watches the keys it is given and nothing else. One that fails to
    reach etcd is tried again until its time-out and then raises RendezvousConnectionError; what is tried again is
    still done once.

    Args:
        client: the etcd cluster, on the background loop.
        keys: the keys of the run.
        number: the number of the round.
        lease: what the keys of the store hang on; 0 for nothing.
        since: a revision of etcd at which the store was still empty; 0 where that is not known.
        timeout: how long operations wait; 300 s unless given, as torch's stores.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        number: int,
        lease: int,
        since: int,
        timeout: timedelta | None = None,
    ) -> None:
        # Its marks are its own: two stores with one id would take each other's changes for theirs.
        client_id = uuid.uuid4().hex
        self._store = AsyncEtcdStore(client, keys, number, lease, since, client_id, random.Random())
        if timeout is not None:
            self.set_timeout(timeout)

    def _seconds(self, timeout: timedelta | None = None) -> float:
        return (self.timeout if timeout is None else timeout).total_seconds()

    def set(self, key: Key, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        background.run(self._store.set(key, value, self._seconds()))

    def get(self, key: Key, timeout: timedelta | None = None) -> bytes:
        """See :meth:`Store.get`."""
        return self.multi_get([key], timeout)[0]

    def wait(self, keys: Sequence[Key], timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`."""
        background.run(self._store.wait(keys, self._seconds(timeout)))

    def check(self, keys: Sequence[Key]) -> bool:
        """See :meth:`Store.check`."""
        return background.run(self._store.check(keys, self._seconds()))

    def add(self, key: Key, num: int) -> int:
        """See :meth:`Store.add`. To add 1 takes one request, however many nodes do it at once.

        Raises:
            RendezvousConnectionError: etcd could not be reached in time; the addition may have been made, once.
            RendezvousTimeoutError: others changed the number each time, until the time was up.
            ValueError: the value under ``key`` is not a decimal number.
        """
        return background.run(self._store.add(key, num, self._seconds()))

    def compare_set(self, key: Key, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        return background.run(self._store.compare_set(key, expected_value, desired_value, self._seconds()))

    def append(self, key: Key, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        background.run(self._store.append(key, value, self._seconds()))

    def delete_key(self, key: Key) -> bool:
        """See :meth:`Store.delete_key`."""
        return background.run(self._store.delete_key(key, self._seconds()))

    def num_keys(self) -> int:
        """Return the number of keys in the store of this round."""
        return background.run(self._store.num_keys(self._seconds()))

    def list_keys(self) -> list[str]:
        """Return the keys of the store of this round, in the order of their bytes."""
        return background.run(self._store.list_keys(self._seconds()))

    def multi_get(self, keys: Sequence[Key], timeout: timedelta | None = None) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        return background.run(self._store.multi_get(keys, self._seconds(timeout)))

    def multi_set(self, keys: Sequence[Key], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        background.run(self._store.multi_set(keys, values, self._seconds()))
