"""Seconds from the SIGKILL of a process until the world has formed again.

Each node is a process that does what torchrun's agent does: it joins, polls ten times a second whether it has to join
again, and does so. The cases kill a node that is not the coordinator; the coordinator; a node together with the leader
of an etcd of three members. A round needs all nodes but one, and waits for more during a last call of one second, which
is part of the time. A node counts as dead after ``ttl`` seconds of silence; the default is 15 s, in torch too.

Not measured: workers. With torch's protocol, on torch's backends and on our ``etcd-v2``, an agent does not learn that
another node has died. It forms a new round when its own workers fail: after the timeout of a collective, or never if
the workers do not communicate. These rows therefore show that no world formed. The store of c10d is in one of the
nodes: if that node is killed, the others lose the store.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.contenders import CONTENDERS, endpoint_for
from benchmarks.etcd_cluster import EtcdCluster
from benchmarks.nodes import POLL_INTERVAL
from benchmarks.processes import Processes, receive
from rendezvous.api import RendezvousParameters
from rendezvous.bench.checks import Failed
from rendezvous.bench.contenders import Job, make_handler
from rendezvous.bench.tables import MISSING, Table
from rendezvous.coordinated.records import NodeRecord, run_keys
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect

NODES = 8
LAST_CALL = 1
TIMEOUT = 60.0
"""Seconds after which a world counts as not formed again."""

Case = tuple[str, str, int]
"""Contender, what is killed, seconds until a silent node counts as dead."""

SHORT: tuple[Case, ...] = (
    ("etcd-v3", "node", 3),
    ("etcd-v3", "coordinator", 3),
    ("etcd-v3", "node and etcd leader", 3),
    ("etcd-v2", "node", 3),
    ("torch etcd-v2", "node", 3),
)
FULL: tuple[Case, ...] = (
    *SHORT,
    ("etcd-v3", "node", 15),
    ("etcd-v3", "coordinator", 15),
    ("etcd-v3", "node and etcd leader", 15),
    ("torch c10d", "node", 3),
)


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Run each case; several times in the full set."""
    rows = []
    for contender, victim, ttl in FULL if full else SHORT:
        row: dict[str, Any] = {"contender": contender, "nodes": NODES, "victim": victim, "ttl": ttl}
        obstacle = CONTENDERS[contender].obstacle
        if obstacle is not None:
            row["obstacle"] = obstacle
        else:
            times = []
            for _ in range(3 if full and contender == "etcd-v3" else 1):
                outcome = kill(contender, victim, ttl)
                times.append(outcome)
                if isinstance(outcome, str):
                    break
            done = [outcome for outcome in times if isinstance(outcome, float)]
            row |= {"seconds": max(done), "runs": times} if len(done) == len(times) else {"failed": times[-1]}
        rows.append(row)
        print(row, flush=True)
    return rows


# What a node does.


def run_node(job: Job, ttl: int, number: int, pipe: Connection) -> None:
    """Join, and join again whenever there is a reason; send the time, the rank and the world size each time."""
    options: dict[str, Any] = {"last_call_timeout": LAST_CALL}
    options |= {"keep_alive_interval": ttl // 3, "keep_alive_max_attempt": 3}
    pipe.send("ready")
    pipe.recv()
    handler = make_handler(job, number, min_nodes=job.nodes - 1, **options)
    while True:
        info = handler.next_rendezvous()
        pipe.send((time.monotonic(), info.rank, info.world_size))
        while not handler.num_nodes_waiting():
            time.sleep(POLL_INTERVAL)


# One case.


@contextmanager
def etcd_for(contender: str, victim: str) -> Iterator[tuple[str, EtcdCluster | None]]:
    """Start an etcd for the contender; yield its endpoint, and the cluster if one of its members will be killed."""
    if "etcd" in victim:
        with EtcdCluster() as cluster:
            yield cluster.endpoint, cluster
    else:
        with EtcdServer(enable_v2=CONTENDERS[contender].v2) as server:
            yield server.get_endpoint(), None


def kill(contender: str, victim: str, ttl: int) -> float | str:
    """Form a world, kill the victim, and return the seconds until the next world, or why there is none."""
    with etcd_for(contender, victim) as (etcd, cluster):
        job = Job(CONTENDERS[contender], NODES, endpoint_for(CONTENDERS[contender], etcd))
        with Processes(run_node, job, ttl, count=NODES) as processes:
            try:
                processes.gather(time.monotonic() + job.timeout)
                processes.send()
                first = receive_all(processes.pipes, NODES, job.timeout)
                time.sleep(2.0)  # a node writes to etcd that it has joined after it has got its place
                killed = index_of_victim(job, processes, first, victim)
                start = time.monotonic()
                os.kill(processes.pids[killed], signal.SIGKILL)
                if cluster is not None:
                    cluster.kill(cluster.leader)
                survivors = [pipe for index, pipe in enumerate(processes.pipes) if index != killed]
                return max(when for when, _, _ in receive_all(survivors, NODES - 1, TIMEOUT).values()) - start
            except Failed as exc:
                return str(exc)


def receive_all(pipes: list[Connection], world_size: int, timeout: float) -> dict[int, tuple[float, int, int]]:
    """Wait until all nodes are in one world of ``world_size``.

    Returns:
        The last message of each node, by the position of its pipe.

    Raises:
        Failed: they are not after ``timeout`` seconds, or a node failed.
    """
    last: dict[int, tuple[float, int, int]] = {}
    deadline = time.monotonic() + timeout
    while sorted(rank for _, rank, size in last.values() if size == world_size) != list(range(world_size)):
        ready = wait(pipes, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"no world of {world_size} nodes within {timeout:g} s")
        last |= {index: receive(pipe) for index, pipe in enumerate(pipes) if pipe in ready}
    return last


def index_of_victim(job: Job, processes: Processes, places: dict[int, tuple[float, int, int]], victim: str) -> int:
    """Return the number of the node to kill: the coordinator, or the last rank that is not the coordinator."""
    by_rank = sorted(places, key=lambda index: places[index][1])
    if job.contender.backend != "etcd-v3":
        return by_rank[-1]
    coordinator = processes.pids.index(coordinator_pid(job))
    return coordinator if victim == "coordinator" else next(i for i in reversed(by_rank) if i != coordinator)


def coordinator_pid(job: Job) -> int:
    """Return the process id of the coordinator."""
    params = RendezvousParameters("etcd-v3", job.endpoint, job.run_id, 1, 1)
    client, keys = connect(params), run_keys(params)

    async def ask() -> int:
        deadline = asyncio.get_running_loop().time() + 10
        coordinator, _ = await client.range(keys.coordinator, b"", deadline)
        node, _ = await client.range(keys.node(int(coordinator[0].value, 16)), b"", deadline)
        return NodeRecord.decode(node[0].key, node[0].value).pid

    return background.run(ask())


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of the seconds of each case."""
    lines = [
        [row["contender"], row["victim"], f"{row['ttl']} s", f"{row['seconds']:.1f} s" if "seconds" in row else MISSING]
        for row in rows
    ]
    reasons = {(row["contender"], row.get("failed") or row.get("obstacle")) for row in rows if "seconds" not in row}
    absent = sorted(f"{contender}: {reason}" for contender, reason in reasons)
    runs = max((len(row["runs"]) for row in rows if "runs" in row), default=0)
    slowest = f", the slowest of {runs} runs" if runs > 1 else ""
    return [
        Table(
            f"Seconds from SIGKILL until the other {NODES - 1} of {NODES} nodes have formed the next world{slowest}. A "
            f"last call of {LAST_CALL} s is included. On torch's backends and on `etcd-v2`, the others do not learn "
            "that a node has died.",
            ["", "killed", "counts as dead after", "next world after"],
            lines,
            (f"Not formed: {'; '.join(absent)}.",) if absent else (),
        )
    ]
