"""The nodes of a job in one process: they join together, and then run on, polled as torchrun's agents poll.

What a process sends: "ready"; after the next message, when its last node had its place, and the rank and world size of
each node; after the next message (seconds), how often the nodes were polled in that time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.processes import LATE, PROCESSES
from rendezvous.bench.checks import Failed, explain
from rendezvous.bench.contenders import PORT, Job, make_handler
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.utils import parse_rendezvous_endpoint

POLL_INTERVAL = 0.1
"""Seconds between two polls of ``num_nodes_waiting()``, as in torchrun by default."""

_BROKEN = "a node was lost or waits, although nothing has happened"


def run_handlers(job: Job, number: int, pipe: Connection) -> None:
    """Run each node of this process as a blocking handler in a thread."""
    handlers = [make_handler(job, index) for index in range(number, job.nodes, PROCESSES)]
    places: list[tuple[int, int]] = []
    errors: list[str] = []
    done = threading.Semaphore(0)

    def join(handler: Any) -> None:
        try:
            info = handler.next_rendezvous()
            places.append((info.rank, info.world_size))
        except Exception as exc:
            late = type(exc).__name__ == "RendezvousTimeoutError"  # torch's or ours
            errors.append(LATE if late else explain(exc))
        done.release()

    pipe.send("ready")
    pipe.recv()
    for handler in handlers:
        threading.Thread(target=join, args=(handler,), daemon=True).start()
    for _ in handlers:
        done.acquire()
        if errors:
            raise Failed(errors[0])
    pipe.send((time.monotonic(), places))
    until = time.monotonic() + pipe.recv()
    polls = [0] * len(handlers)

    def poll(index: int) -> None:
        time.sleep(random.uniform(0, POLL_INTERVAL))
        while time.monotonic() < until:
            if handlers[index].num_nodes_waiting():
                errors.append(_BROKEN)
            polls[index] += 1
            time.sleep(POLL_INTERVAL)
        done.release()

    for index in range(len(handlers)):
        threading.Thread(target=poll, args=(index,), daemon=True).start()
    for _ in handlers:
        done.acquire()
    if errors:
        raise Failed(errors[0])
    pipe.send(sum(polls))
    pipe.recv()


def run_coroutines(job: Job, number: int, pipe: Connection) -> None:
    """Run each node of this process as a coroutine of etcd-v3, so that thousands of nodes fit into one process."""
    # A collection visits the objects of all nodes in this process; the process of a real job has only one node.
    gc.disable()
    asyncio.run(_run_coroutines(job, range(number, job.nodes, PROCESSES), pipe))


async def receive(pipe: Connection) -> Any:
    """Wait for the next message without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def _run_coroutines(job: Job, indices: range, pipe: Connection) -> None:
    client = GrpcEtcdClient([parse_rendezvous_endpoint(job.endpoint, 2379)])
    settings = Settings(job.run_id, Limits(job.nodes, job.nodes), interval=5.0, ttl=15)
    keys = Keys("/rendezvous", job.run_id)
    members = [
        Member(client, keys, NodeRecord(f"node-{i:05d}", os.getpid(), i), settings, random.Random(i)) for i in indices
    ]
    await client.check(keys.root, asyncio.get_running_loop().time() + 10)
    pipe.send("ready")
    await receive(pipe)
    outcomes = await asyncio.gather(*(member.join(job.timeout, lambda: PORT) for member in members))
    end = time.monotonic()
    if any(bootstrap.port != PORT for _, bootstrap in outcomes):
        raise Failed("the nodes do not agree on the address of rank 0")
    pipe.send((end, [(place.rank, place.world_size) for place, _ in outcomes]))
    until = time.monotonic() + await receive(pipe)
    polls = 0
    while time.monotonic() < until:
        if any(member.num_nodes_waiting() for member in members):
            raise Failed(_BROKEN)
        polls += len(members)
        await asyncio.sleep(POLL_INTERVAL)
    pipe.send(polls)
    await receive(pipe)
