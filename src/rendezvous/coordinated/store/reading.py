"""Reads keys of a store, and waits for them with a watch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

from rendezvous.coordinated.store.requests import Requests
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import Watch
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue
from rendezvous.store import Key, missing_keys_message

__all__ = ["Reader"]

_DIGITS = re.compile(rb"[0-9]+")


class Reader:
    """Reads keys of a store, and waits for them.

    Args:
        requests: sends the requests.
        since: a revision at which the store was empty; 0 if it is not known.
    """

    def __init__(self, requests: Requests, since: int) -> None:
        self._requests = requests
        self._options = requests.options
        self._since = since
        requests.newest = max(requests.newest, since)

    async def read_one(self, path: bytes, deadline: float) -> KeyValue | None:
        """Return what is stored under one etcd key, or None."""
        found, _ = await self._read_each([path], deadline, keys_only=False)
        return found[0] if found else None

    async def read(
        self, paths: Iterable[bytes], deadline: float, keys_only: bool = False
    ) -> tuple[dict[bytes, KeyValue], int]:
        """Return the ``paths`` that exist, and a revision: each of them may have changed since then."""
        step = self._options.max_operations
        groups = _groups(paths, self._options.max_groups)
        single = [group[0] for group in groups if len(group) == 1]
        parts = await asyncio.gather(
            *(self._read_each(single[i : i + step], deadline, keys_only) for i in range(0, len(single), step)),
            *(self._read_range(group, deadline, keys_only) for group in groups if len(group) > 1),
        )
        found = {kv.key: kv for kvs, _ in parts for kv in kvs}
        return found, min((revision for _, revision in parts), default=self._requests.newest)

    async def _read_each(self, paths: Sequence[bytes], deadline: float, keys_only: bool) -> tuple[list[KeyValue], int]:
        """Read ``paths`` in one request."""
        reads = [rpc_pb2.RangeRequest(key=path, keys_only=keys_only) for path in paths]
        if len(reads) == 1:
            answer = await self._requests.send(Call.RANGE, reads[0], deadline)
            return list(answer.kvs), answer.header.revision
        request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=read) for read in reads])
        answer = await self._requests.send(Call.TXN, request, deadline)
        return [kv for response in answer.responses for kv in response.response_range.kvs], answer.header.revision

    async def _read_range(self, paths: Sequence[bytes], deadline: float, keys_only: bool) -> tuple[list[KeyValue], int]:
        """Read all keys from the first of ``paths`` to the last.

        Many other keys may lie between them. The range read has a limit; the paths behind it are read one by one.
        """
        request = rpc_pb2.RangeRequest(
            key=paths[0], range_end=paths[-1] + b"\0", limit=2 * len(paths) + 64, keys_only=keys_only
        )
        answer = await self._requests.send(Call.RANGE, request, deadline)
        found, revision = list(answer.kvs), answer.header.revision
        rest = [path for path in paths if path > found[-1].key] if answer.more else []
        step = self._options.max_operations
        for i in range(0, len(rest), step):
            found += (await self._read_each(rest[i : i + step], deadline, keys_only))[0]
        return found, revision

    async def wait(self, keys: Sequence[Key], timeout: float, replay: bool) -> dict[bytes, KeyValue]:
        """Wait until all ``keys`` exist, and return what is stored under them, by etcd key.

        Args:
            keys: the keys.
            timeout: seconds.
            replay: watch from the revision at which the store was empty, and do not read first. This takes one request
                instead of two, but the values may be outdated.

        Raises:
            LookupError: a key does not exist after ``timeout``.
            RendezvousConnectionError: etcd could not be reached in time.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        names = {self._requests.path(key): key for key in keys}
        found: dict[bytes, KeyValue] = {}
        short_history = self._requests.newest - self._since < self._options.long_history
        start = self._since if replay and short_history else 0
        while True:
            missing = [path for path in names if path not in found]
            if not start:
                read, revision = await self.read(missing, self._request_deadline(deadline))
                found.update((path, read[path]) for path in missing if path in read)
                missing = [path for path in missing if path not in read]
                start = revision + 1
                if missing and clock() >= deadline:
                    raise LookupError(missing_keys_message([names[path] for path in missing], timeout))
            if not missing:
                return found
            seen = await self._watch(missing, start, deadline)
            if seen is not None:
                return found | seen
            # The time is up, or the watch cannot tell: read. This also detects that etcd does not answer.
            start = 0

    def _request_deadline(self, deadline: float) -> float:
        return max(deadline, asyncio.get_running_loop().time() + self._options.min_request_timeout)

    async def _watch(self, paths: Sequence[bytes], start: int, deadline: float) -> dict[bytes, KeyValue] | None:
        """Watch ``paths`` from a revision until all exist. Return None if they must be read, or the time is up."""
        loop = asyncio.get_running_loop()
        pending = _PendingKeys(paths, self._options.replay_batch)
        watches: list[Watch] = []

        def lost() -> None:
            self._since = 0
            pending.give_up()

        async def watch(group: Sequence[bytes]) -> None:
            end = group[-1] + b"\0" if len(group) > 1 else b""
            limit = self._request_deadline(deadline)
            receive, resumed = pending.receive, pending.give_up
            # If the watch was interrupted, etcd may have been restored from a snapshot, and have the keys already.
            watches.append(
                await self._requests.client.watch(group[0], end, receive, lost, limit, start, resumed=resumed)
            )

        timer = loop.call_at(deadline, pending.give_up)
        try:
            groups = _groups(paths, self._options.max_groups)
            outcomes = await asyncio.gather(*map(watch, groups), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            self._requests.check_not_restored()  # since the last read: from now on, the watches are told
            return await pending.outcome
        finally:
            timer.cancel()
            for each in watches:
                each.cancel()


class _PendingKeys:
    """Follows the events of some keys until all of them exist.

    Args:
        paths: the etcd keys.
        replay_batch: how many events etcd replays at once.

    Attributes:
        outcome: what is stored under the keys; None if that cannot be told from the events.
    """

    def __init__(self, paths: Iterable[bytes], replay_batch: int) -> None:
        self.outcome: asyncio.Future[dict[bytes, KeyValue] | None] = asyncio.get_running_loop().create_future()
        self._paths = set(paths)
        self._replay_batch = replay_batch
        self._found: dict[bytes, KeyValue] = {}
        self._revisions: dict[bytes, int] = {}

    def receive(self, events: Sequence[Event]) -> None:
        """Take in events. The watch may report an event more than once."""
        for event in events:
            kv = event.kv
            if kv.key not in self._paths or kv.mod_revision < self._revisions.get(kv.key, 0):
                continue
            self._revisions[kv.key] = kv.mod_revision
            if event.type == DELETE:
                self._found.pop(kv.key, None)
            else:
                self._found[kv.key] = kv
        if len(self._found) == len(self._paths):
            # After a full batch of a replay more events follow, and one may be a deletion.
            self._end(self._found if len(events) < self._replay_batch else None)

    def give_up(self) -> None:
        """End without a result."""
        self._end(None)

    def _end(self, found: dict[bytes, KeyValue] | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(found)


def _groups(paths: Iterable[bytes], max_groups: int) -> list[list[bytes]]:
    """Divide paths into groups to read or watch as a range each.

    Paths that differ only in their numbers, such as those of all workers, form a group: few other keys lie between.
    """
    groups: dict[bytes, list[bytes]] = {}
    for path in sorted(paths):
        groups.setdefault(_DIGITS.sub(b"0", path), []).append(path)
    if len(groups) > max_groups:
        return [sorted(path for group in groups.values() for path in group)]
    return list(groups.values())
