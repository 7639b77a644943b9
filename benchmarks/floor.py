"""The floor of etcd-v3: what its nodes send and receive, from a bare grpc.aio client, without any logic.

Each node has a lease with its keep-alives, a watch and a transaction, and reads one shard if the roster is not in the
round record. The processes send the same messages as those of :mod:`benchmarks.nodes`.
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

from benchmarks.nodes import receive
from benchmarks.processes import PROCESSES
from rendezvous.bench.contenders import Job
from rendezvous.coordinated.options import Options
from rendezvous.etcd.v3.messages import rpc_pb2

_IN_FLIGHT = 256
_RECORD, _BOOTSTRAP, _COORDINATOR = b"f/ctl/round", b"f/ctl/bootstrap", b"f/ctl/coordinator"


def run_floor(job: Job, number: int, pipe: Connection) -> None:
    """Run the nodes of one process."""
    gc.disable()  # as in benchmarks/nodes.py
    asyncio.run(_Floor(job, range(number, job.nodes, PROCESSES)).run(pipe))


class _Floor:
    def __init__(self, job: Job, indices: range) -> None:
        self._job, self._indices = job, indices
        self._in_flight = asyncio.Semaphore(_IN_FLIGHT)
        self._received: Counter[bytes] = Counter()
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
        await receive(pipe)
        tasks = [
            asyncio.ensure_future(each())
            for each in (self._read_events, self._create_watches, self._renew, self._read_renewals)
        ]
        await asyncio.gather(*(self._join() for _ in self._indices))
        await self._until(lambda: self._created == len(self._indices))
        pipe.send("joined")
        await receive(pipe)
        await self._complete(first=0 in self._indices)
        pipe.send((time.monotonic(), [(index, self._job.nodes) for index in self._indices]))
        await receive(pipe)
        for task in tasks:
            task.cancel()

    def _unary(self, name: str, request: Any, response: Any) -> Callable[..., Awaitable[Any]]:
        call: Callable[..., Awaitable[Any]] = self._channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return call

    def _stream(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()

    # The streams.

    async def _create_watches(self) -> None:
        create = rpc_pb2.WatchCreateRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        for _ in self._indices:
            await self._watches.write(rpc_pb2.WatchRequest(create_request=create))

    async def _read_events(self) -> None:
        while (answer := await self._watches.read()) is not grpc.aio.EOF:
            self._created += answer.created
            self._received.update(event.kv.key for event in answer.events)
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _renew(self) -> None:
        while True:
            await self._renewals.write(rpc_pb2.LeaseKeepAliveRequest(ID=await self._due.get()))

    async def _read_renewals(self) -> None:
        while (answer := await self._renewals.read()) is not grpc.aio.EOF:
            self._renew_later(answer.ID)

    def _renew_later(self, lease: int) -> None:
        asyncio.get_running_loop().call_later(random.uniform(4.0, 5.0), self._due.put_nowait, lease)

    # The requests.

    async def _join(self) -> None:
        async with self._in_flight:
            lease = (await self._grant(rpc_pb2.LeaseGrantRequest(TTL=15), timeout=30)).ID
        self._renew_later(lease)
        absent = rpc_pb2.Compare(
            key=_COORDINATOR, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
        )
        node = rpc_pb2.PutRequest(key=b"f/nodes/%016x" % lease, value=b"n" * 45, lease=lease)
        coordinator = rpc_pb2.PutRequest(key=_COORDINATOR, value=b"%016x" % lease)
        read = rpc_pb2.RangeRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        elect = rpc_pb2.TxnRequest(compare=[absent], success=[rpc_pb2.RequestOp(request_put=coordinator)])
        operations = [
            rpc_pb2.RequestOp(request_txn=elect),
            rpc_pb2.RequestOp(request_put=node),
            rpc_pb2.RequestOp(request_range=read),
        ]
        async with self._in_flight:
            await self._txn(rpc_pb2.TxnRequest(success=operations), timeout=30)

    async def _put(self, key: bytes, value: bytes) -> None:
        operation = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))
        await self._txn(rpc_pb2.TxnRequest(success=[operation]), timeout=30)

    async def _read_shard(self) -> None:
        async with self._in_flight:
            await self._read(rpc_pb2.RangeRequest(key=b"f/roster", serializable=True), timeout=30)

    async def _complete(self, first: bool) -> None:
        """Complete the round: the ``first`` process writes the records, all nodes receive them."""
        nodes, inline = self._job.nodes, self._job.nodes <= Options().inline_nodes
        if first:
            await self._put(b"f/roster", b"r" * 640)
            await self._put(_RECORD, b"r" * (100 + (4 * nodes if inline else 0)))
        await self._until(lambda: self._received[_RECORD] == len(self._indices))
        if not inline:
            await asyncio.gather(*(self._read_shard() for _ in self._indices))
        if first:
            await self._put(_BOOTSTRAP, b"b" * 50)
        await self._until(lambda: self._received[_BOOTSTRAP] == len(self._indices))
