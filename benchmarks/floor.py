"""The floor of etcd-v3: what its nodes send and hear, from a bare grpc.aio client, with no logic.

Each node: a lease and its keep-alives, a watch, a transaction, and one read of a shard where the roster is not part of
the round record. Says the same as :mod:`benchmarks.nodes`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio

from benchmarks.contenders import Job
from benchmarks.crew import PROCESSES
from benchmarks.nodes import hear
from rendezvous.coordinated.options import Options
from rendezvous.etcd.v3.messages import rpc_pb2

_IN_FLIGHT = 256
_RECORD, _BOOTSTRAP, _COORDINATOR = b"f/ctl/round", b"f/ctl/bootstrap", b"f/ctl/coordinator"


def run_floor(job: Job, number: int, pipe: Connection) -> None:
    """Run the nodes of one process."""
    gc.disable()  # as the nodes have it
    asyncio.run(_Floor(job, range(number, job.nodes, PROCESSES)).run(pipe))


class _Floor:
    def __init__(self, job: Job, indices: range) -> None:
        self._job, self._indices = job, indices
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT)
        self._heard: Counter[bytes] = Counter()
        self._created = 0
        self._changed = asyncio.Event()
        self._due: asyncio.Queue[int] = asyncio.Queue()

    async def run(self, pipe: Connection) -> None:
        self._channel = grpc.aio.insecure_channel(self._job.endpoint)
        self._grant = self._unary("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse)
        self._txn = self._unary("KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
        self._read = self._unary("KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse)
        self._watches = self._stream("Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)
        self._renewals = self._stream(
            "Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse
        )
        pipe.send("ready")
        await hear(pipe)
        tasks = [asyncio.ensure_future(each()) for each in (self._listen, self._ask, self._renew, self._stay_alive)]
        await asyncio.gather(*(self._enter() for _ in self._indices))
        await self._until(lambda: self._created == len(self._indices))
        pipe.send("joined")
        await hear(pipe)
        await self._meet(first=0 in self._indices)
        pipe.send((time.monotonic(), [(index, self._job.nodes) for index in self._indices]))
        await hear(pipe)
        for task in tasks:
            task.cancel()

    def _unary(self, name: str, request: Any, response: Any) -> Callable[..., Awaitable[Any]]:
        return self._channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def _stream(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()

    # The streams.

    async def _ask(self) -> None:
        create = rpc_pb2.WatchCreateRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        for _ in self._indices:
            await self._watches.write(rpc_pb2.WatchRequest(create_request=create))

    async def _listen(self) -> None:
        while (answer := await self._watches.read()) is not grpc.aio.EOF:
            self._created += answer.created
            self._heard.update(event.kv.key for event in answer.events)
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _renew(self) -> None:
        while True:
            await self._renewals.write(rpc_pb2.LeaseKeepAliveRequest(ID=await self._due.get()))

    async def _stay_alive(self) -> None:
        while (answer := await self._renewals.read()) is not grpc.aio.EOF:
            self._renew_later(answer.ID)

    def _renew_later(self, lease: int) -> None:
        asyncio.get_running_loop().call_later(random.uniform(4.0, 5.0), self._due.put_nowait, lease)

    # The requests.

    async def _enter(self) -> None:
        async with self._in_flight:
            lease = (await self._grant(rpc_pb2.LeaseGrantRequest(TTL=15), timeout=30)).ID
        self._renew_later(lease)
        absent = rpc_pb2.Compare(
            key=_COORDINATOR, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
        )
        node = rpc_pb2.PutRequest(key=b"f/nodes/%016x" % lease, value=b"n" * 45, lease=lease)
        leader = rpc_pb2.PutRequest(key=_COORDINATOR, value=b"%016x" % lease)
        look = rpc_pb2.RangeRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        stand = rpc_pb2.TxnRequest(compare=[absent], success=[rpc_pb2.RequestOp(request_put=leader)])
        operations = [
            rpc_pb2.RequestOp(request_txn=stand),
            rpc_pb2.RequestOp(request_put=node),
            rpc_pb2.RequestOp(request_range=look),
        ]
        async with self._in_flight:
            await self._txn(rpc_pb2.TxnRequest(success=operations), timeout=30)

    async def _put(self, key: bytes, value: bytes) -> None:
        operation = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))
        await self._txn(rpc_pb2.TxnRequest(success=[operation]), timeout=30)

    async def _look_up(self) -> None:
        async with self._in_flight:
            await self._read(rpc_pb2.RangeRequest(key=b"f/roster", serializable=True), timeout=30)

    async def _meet(self, first: bool) -> None:
        """Write and hear what completes a round; ``first`` for the process that writes."""
        nodes, inline = self._job.nodes, self._job.nodes <= Options().inline_nodes
        if first:
            await self._put(b"f/roster", b"r" * 640)
            await self._put(_RECORD, b"r" * (100 + (4 * nodes if inline else 0)))
        await self._until(lambda: self._heard[_RECORD] == len(self._indices))
        if not inline:
            await asyncio.gather(*(self._look_up() for _ in self._indices))
        if first:
            await self._put(_BOOTSTRAP, b"b" * 50)
        await self._until(lambda: self._heard[_BOOTSTRAP] == len(self._indices))
