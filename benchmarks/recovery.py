"""Seconds from the SIGKILL of a process until the world has formed again.

Each node is a process of its own, which does what torchrun's agent does: it joins, asks ten times a second whether
there is a reason to join again, and does so. Each case kills something else: a node that does not coordinate; the node
that does; a node together with the leader of an etcd of three members. A round needs all nodes but one, and waits
for more in a last call of one second, which is part of the time. For how long a node must be silent is ``ttl``: torch's
default, and ours, is 15 s.

What this does not show: workers. With torch's protocol, on its own backends and on our ``etcd-v2``, an agent does not
hear that another node has died: it forms a new round when its own workers fail, which takes a collective's time-out, or
never comes where they do not talk. That is why these rows say that nothing formed. And c10d keeps its store in one of
the nodes: where the one that is killed is that one, the others lose the store too.
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

from benchmarks.contenders import CONTENDERS, Job, make_handler, meeting_point
from benchmarks.crew import Crew, Failed, receive
from benchmarks.etcd_cluster import EtcdCluster
from benchmarks.nodes import POLL_INTERVAL
from benchmarks.tables import MISSING, Table
from rendezvous.api import RendezvousParameters
from rendezvous.coordinated.records import NodeRecord, run_keys
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect

NODES = 8
LAST_CALL = 1
PATIENCE = 60.0
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
    """Kill what each case names; several times each in the full set."""
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
    """Join, and join again whenever there is a reason; say each time when that was and where."""
    options = {"last_call_timeout": LAST_CALL, "keep_alive_interval": ttl // 3, "keep_alive_max_attempt": 3}
    pipe.send("ready")
    pipe.recv()
    handler = make_handler(job, number, job.nodes - 1, **options)
    while True:
        info = handler.next_rendezvous()
        pipe.send((time.monotonic(), info.rank, info.world_size))
        while not handler.num_nodes_waiting():
            time.sleep(POLL_INTERVAL)


# What happens to it.


@contextmanager
def etcd_for(contender: str, victim: str) -> Iterator[tuple[str, EtcdCluster | None]]:
    """Start what the contender needs; yield its endpoint, and the cluster where a member will be killed."""
    if "etcd" in victim:
        with EtcdCluster() as cluster:
            yield cluster.endpoint, cluster
    else:
        with EtcdServer(enable_v2=CONTENDERS[contender].v2) as server:
            yield server.get_endpoint(), None


def kill(contender: str, victim: str, ttl: int) -> float | str:
    """Form a world, kill, and return the seconds until the next world, or why there is none."""
    with etcd_for(contender, victim) as (etcd, cluster):
        job = Job(contender, NODES, meeting_point(CONTENDERS[contender], etcd))
        with Crew(run_node, job, ttl, processes=NODES) as crew:
            try:
                crew.gather(time.monotonic() + job.timeout)
                crew.tell()
                first = hear_all(crew.pipes, NODES, job.timeout)
                time.sleep(2.0)  # the last node to know its place is not the last to tell etcd that it does
                doomed = index_of_victim(job, crew, first, victim)
                start = time.monotonic()
                os.kill(crew.processes[doomed].pid or 0, signal.SIGKILL)
                if cluster is not None:
                    cluster.kill(cluster.leader)
                survivors = [pipe for index, pipe in enumerate(crew.pipes) if index != doomed]
                return max(when for when, _, _ in hear_all(survivors, NODES - 1, PATIENCE).values()) - start
            except Failed as exc:
                return str(exc)


def hear_all(pipes: list[Connection], world_size: int, patience: float) -> dict[int, tuple[float, int, int]]:
    """Return what each node said, by its position, once all are in one world of ``world_size``. Raises Failed."""
    said: dict[int, tuple[float, int, int]] = {}
    deadline = time.monotonic() + patience
    while sorted(rank for _, rank, size in said.values() if size == world_size) != list(range(world_size)):
        ready = wait(pipes, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"no world of {world_size} nodes within {patience:g} s")
        for pipe in ready:
            said[pipes.index(pipe)] = receive(pipe)  # type: ignore[arg-type]
    return said


def index_of_victim(job: Job, crew: Crew, places: dict[int, tuple[float, int, int]], victim: str) -> int:
    """Return the position of the node to kill: of the coordinator, or of the last rank that does not coordinate."""
    by_rank = sorted(places, key=lambda index: places[index][1])
    if CONTENDERS[job.contender].backend != "etcd-v3":
        return by_rank[-1]
    pids = [process.pid for process in crew.processes]
    coordinator = pids.index(coordinator_pid(job))
    return coordinator if victim == "coordinator" else next(i for i in reversed(by_rank) if i != coordinator)


def coordinator_pid(job: Job) -> int:
    """Return the process id of the node that coordinates."""
    params = RendezvousParameters("etcd-v3", job.endpoint, job.run_id, 1, 1)
    client, keys = connect(params), run_keys(params)

    async def ask() -> int:
        deadline = asyncio.get_running_loop().time() + 10
        leader, _ = await client.range(keys.coordinator, b"", deadline)
        node, _ = await client.range(keys.node(int(leader[0].value, 16)), b"", deadline)
        return NodeRecord.decode(node[0].key, node[0].value).pid

    return background.run(ask())


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the seconds of each case."""
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
            f"Seconds from SIGKILL until {NODES} nodes less one have formed the next world{slowest}; a last call "
            f"of {LAST_CALL} s is part of it. On torch's backends and on `etcd-v2` nobody hears of a dead node.",
            ["", "killed", "counts as dead after", "formed again after"],
            lines,
            (f"Not formed: {'; '.join(absent)}.",) if absent else (),
        )
    ]
