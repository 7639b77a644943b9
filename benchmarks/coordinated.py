"""Seconds, requests and bytes until a world has formed on etcd-v3, beside the floor: the bare requests and no logic.

Nodes are coroutines of two processes, each of which has one connection; the clock starts when all processes are
ready, and stops when the last node knows its rank, the world size and where the workers meet. The floor sends, over a
bare grpc.aio client, what the nodes of a world send and hears what they hear: a lease and its keep-alives, a watch, a
transaction, and one read of a shard where the roster is not part of the round record. Requests, bytes and raft writes
come from etcd's own metrics. After the round the nodes run on for a while, asked ten times a second as torchrun's
agents ask: what etcd then sees is the load of a running job.

What this does not show: a network, and nodes that do not share two cores with etcd and with one another.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import grpc.aio
from pyetcd.etcdrpc import rpc_pb2

from rendezvous.etcd_server import EtcdServer
from rendezvous.utils import parse_rendezvous_endpoint
from rendezvous.v3.connection import GrpcEtcdClient
from rendezvous.v3.coordinator import _INLINE_NODES
from rendezvous.v3.member import Member, Settings
from rendezvous.v3.records import Keys, NodeRecord
from rendezvous.v3.rules import Limits

CONTENDERS = ("etcd-v3", "floor")
PROCESSES = 2
STEADY = 12.0
"""Seconds that the world runs on: more than two keep-alives of each node."""
POLLS_PER_SECOND = 10
IN_FLIGHT = 256


@dataclass(frozen=True)
class Job:
    """One world to form."""

    contender: str
    nodes: int
    endpoint: str = ""
    timeout: int = 120


# What a process does.


def run_process(job: Job, number: int, pipe: Connection) -> None:
    # The garbage collector goes through what thousands of nodes keep, again and again; a real process is one node.
    gc.disable()
    run = run_nodes if job.contender == "etcd-v3" else run_floor
    try:
        asyncio.run(run(job, range(number, job.nodes, PROCESSES), pipe))
    except Exception as exc:
        pipe.send(f"{type(exc).__name__}: {exc}")
    pipe.recv()
    os._exit(0)


async def hear(pipe: Connection) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def run_nodes(job: Job, indices: range, pipe: Connection) -> None:
    client = GrpcEtcdClient([parse_rendezvous_endpoint(job.endpoint, 2379)])
    settings = Settings("benchmark", Limits(job.nodes, job.nodes), interval=5.0, ttl=15)
    keys = Keys("/rendezvous", "benchmark")
    members = [
        Member(client, keys, NodeRecord(f"node-{i:05d}", os.getpid(), i), settings, random.Random(i)) for i in indices
    ]
    await client.check(asyncio.get_running_loop().time() + 10)
    pipe.send("ready")
    await hear(pipe)
    outcomes = await asyncio.gather(*(member.join(job.timeout, lambda: 29500) for member in members))
    end = time.monotonic()
    pipe.send((end, [(place.rank, place.world_size, bootstrap.port) for place, bootstrap in outcomes]))
    await hear(pipe)
    polls = 0
    until = time.monotonic() + STEADY
    while time.monotonic() < until:
        if any(member.num_nodes_waiting() or member.is_closed() for member in members):
            raise RuntimeError("the world broke")
        polls += 2 * len(members)
        await asyncio.sleep(1 / POLLS_PER_SECOND)
    pipe.send(polls)


async def run_floor(job: Job, indices: range, pipe: Connection) -> None:
    channel = grpc.aio.insecure_channel(job.endpoint)

    def unary(name: str, request: Any, response: Any) -> Callable[..., Awaitable[Any]]:
        return channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    grant = unary("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse)
    txn = unary("KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
    read = unary("KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse)
    stream = channel.stream_stream(
        "/etcdserverpb.Watch/Watch",
        request_serializer=rpc_pb2.WatchRequest.SerializeToString,
        response_deserializer=rpc_pb2.WatchResponse.FromString,
    )()
    in_flight = asyncio.Semaphore(IN_FLIGHT)
    created, record, bootstrap = 0, asyncio.Event(), asyncio.Event()
    heard = {b"f/ctl/round": 0, b"f/ctl/bootstrap": 0, b"f/ctl/coordinator": 0}
    all_created = asyncio.Event()

    async def listen() -> None:
        nonlocal created
        while not bootstrap.is_set():
            answer = await stream.read()
            if answer.created:
                created += 1
                if created == len(indices):
                    all_created.set()
            for event in answer.events:
                heard[event.kv.key] += 1
            if heard[b"f/ctl/round"] == len(indices):
                record.set()
            if heard[b"f/ctl/bootstrap"] == len(indices):
                bootstrap.set()

    async def ask() -> None:
        create = rpc_pb2.WatchCreateRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        for _ in indices:
            await stream.write(rpc_pb2.WatchRequest(create_request=create))

    renewals = channel.stream_stream(
        "/etcdserverpb.Lease/LeaseKeepAlive",
        request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
        response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
    )()
    due: asyncio.Queue[int] = asyncio.Queue()

    async def keep_alive() -> None:
        while True:
            await renewals.write(rpc_pb2.LeaseKeepAliveRequest(ID=await due.get()))

    async def stay_alive() -> None:
        while (answer := await renewals.read()) is not grpc.aio.EOF:
            asyncio.get_running_loop().call_later(random.uniform(4.0, 5.0), due.put_nowait, answer.ID)

    async def put(key: bytes, value: bytes) -> None:
        operation = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))
        await txn(rpc_pb2.TxnRequest(success=[operation]), timeout=30)

    async def enter(index: int) -> None:
        async with in_flight:
            lease = (await grant(rpc_pb2.LeaseGrantRequest(TTL=15), timeout=30)).ID
        asyncio.get_running_loop().call_later(random.uniform(4.0, 5.0), due.put_nowait, lease)
        absent = rpc_pb2.Compare(
            key=b"f/ctl/coordinator", target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
        )
        node = rpc_pb2.PutRequest(key=b"f/nodes/%016x" % lease, value=b"n" * 45, lease=lease)
        leader = rpc_pb2.PutRequest(key=b"f/ctl/coordinator", value=b"%016x" % lease)
        look = rpc_pb2.RangeRequest(key=b"f/ctl/", range_end=b"f/ctl0")
        stand = rpc_pb2.TxnRequest(compare=[absent], success=[rpc_pb2.RequestOp(request_put=leader)])
        operations = [
            rpc_pb2.RequestOp(request_txn=stand),
            rpc_pb2.RequestOp(request_put=node),
            rpc_pb2.RequestOp(request_range=look),
        ]
        async with in_flight:
            await txn(rpc_pb2.TxnRequest(success=operations), timeout=30)

    async def look_up(index: int) -> None:
        async with in_flight:
            await read(rpc_pb2.RangeRequest(key=b"f/roster", serializable=True), timeout=30)

    pipe.send("ready")
    await hear(pipe)
    tasks = [asyncio.ensure_future(each()) for each in (listen, ask, keep_alive, stay_alive)]
    await asyncio.gather(*(enter(index) for index in indices))
    await all_created.wait()
    pipe.send("joined")
    await hear(pipe)
    inline = job.nodes <= _INLINE_NODES
    if 0 in indices:
        await put(b"f/roster", b"r" * 640)
        await put(b"f/ctl/round", b"r" * (100 + (4 * job.nodes if inline else 0)))
    await record.wait()
    if not inline:
        await asyncio.gather(*(look_up(index) for index in indices))
    if 0 in indices:
        await put(b"f/ctl/bootstrap", b"b" * 50)
    await bootstrap.wait()
    pipe.send((time.monotonic(), [(index, job.nodes, 29500) for index in indices]))
    await hear(pipe)
    for task in tasks:
        task.cancel()
    pipe.send(0)


# What is measured.


def metrics(endpoint: str) -> dict[str, float]:
    """Return etcd's counters: unary requests, stream messages, bytes sent and raft proposals."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=30) as answer:
        text = answer.read().decode()

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))

    def received(method: str) -> float:
        return total(rf'grpc_server_msg_received_total\{{grpc_method="{method}"[^}}]*\}}')

    return {
        "unary": total(r'grpc_server_started_total\{[^}]*grpc_type="unary"\}'),
        "watches": received("Watch"),
        "keep_alives": received("LeaseKeepAlive"),
        "bytes": total("etcd_network_client_grpc_sent_bytes_total"),
        "raft": total("etcd_server_proposals_applied_total"),
    }


def gather(pipes: list[Connection], deadline: float) -> list[Any]:
    answers = []
    for pipe in pipes:
        if not wait([pipe], max(0.0, deadline - time.monotonic())):
            raise TimeoutError("not done in time")
        answer = pipe.recv()
        if isinstance(answer, str) and answer not in ("ready", "joined"):
            raise RuntimeError(answer)
        answers.append(answer)
    return answers


def tell(pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.send("go on")


def form(job: Job) -> dict[str, Any]:
    """Form one world; return what it took, or why there is none."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for number in range(PROCESSES):
            ours, theirs = context.Pipe()
            child = context.Process(target=run_process, args=(job, number, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            processes.append(child)
        deadline = time.monotonic() + job.timeout
        gather(pipes, deadline)
        before, start = metrics(job.endpoint), time.monotonic()
        tell(pipes)
        if job.contender == "floor":
            gather(pipes, deadline)
            tell(pipes)
        outcomes = gather(pipes, deadline)
        seconds = max(end for end, _ in outcomes) - start
        after = metrics(job.endpoint)
        check([each for _, part in outcomes for each in part], job.nodes)
        row: dict[str, Any] = {"seconds": seconds}
        row["per_node"] = {name: round((after[name] - before[name]) / job.nodes, 3) for name in after}
        if job.contender == "etcd-v3":
            row["steady"] = steady(job, pipes)
        return row
    except (RuntimeError, TimeoutError) as exc:
        return {"failed": str(exc)}
    finally:
        for child in processes:
            child.kill()
            child.join()


def steady(job: Job, pipes: list[Connection]) -> dict[str, Any]:
    """Let the world run; return what etcd saw meanwhile."""
    before = metrics(job.endpoint)
    tell(pipes)
    polls = sum(gather(pipes, time.monotonic() + STEADY + job.timeout))
    after = metrics(job.endpoint)
    return {"seconds": STEADY, "polls": polls, **{name: after[name] - before[name] for name in after}}


def check(outcomes: list[tuple[int, int, int]], nodes: int) -> None:
    if sorted(rank for rank, _, _ in outcomes) != list(range(nodes)):
        raise RuntimeError("the ranks are not 0..n-1")
    if {(size, port) for _, size, port in outcomes} != {(nodes, 29500)}:
        raise RuntimeError("the nodes do not agree on the world size or the address")


def measure(nodes: list[int], repeats: int = 2) -> list[dict[str, Any]]:
    """Form worlds of each size with each contender in turn; keep the fastest of ``repeats`` of each."""
    rows = []
    for size in nodes:
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(repeats):
            for contender in CONTENDERS:
                with EtcdServer(enable_v2=False) as server:
                    row = form(Job(contender, size, server.get_endpoint()))
                    runs[contender].append({"contender": contender, "nodes": size, **row})
                    print(runs[contender][-1], flush=True)
        for contender in CONTENDERS:
            done = [row for row in runs[contender] if "seconds" in row]
            best = min(done, key=lambda row: float(row["seconds"])) if done else runs[contender][-1]
            rows.append({**best, "runs": len(runs[contender]), "done": len(done)})
    return rows
