"""Seconds until a world has formed, and the load of etcd.

Each contender runs on a new etcd. Its nodes share two processes. The time starts when all nodes are ready to join, and
ends when the last one has its rank, the world size and the address of rank 0. A run fails if the ranks are not 0..n-1
or the nodes got different world sizes. Requests, bytes and raft writes are read from etcd's metrics. On the v3 API the
nodes of a process share one client, and so one connection; on the v2 API each node has its own.

Not measured: a network between the nodes and etcd, and nodes that do not share two cores with etcd and with other
nodes. The ratios say more than the seconds.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.contenders import CONTENDERS, Kind, endpoint_for
from benchmarks.floor import run_floor
from benchmarks.nodes import run_coroutines, run_handlers
from benchmarks.processes import LATE, Processes, environment
from benchmarks.tables import by, remarks, seconds
from rendezvous.bench import metrics
from rendezvous.bench.checks import Failed, check_places
from rendezvous.bench.contenders import Job
from rendezvous.bench.tables import MISSING, Table
from rendezvous.etcd.server import EtcdServer

WORK = {Kind.HANDLERS: run_handlers, Kind.COROUTINES: run_coroutines, Kind.FLOOR: run_floor}

# The largest and the smallest number of nodes for each kind of contender. A contender that has failed (in the full set:
# twice) is not tried with more nodes.
MOST = {Kind.HANDLERS: 1000, Kind.COROUTINES: 10_000, Kind.FLOOR: 10_000}
LEAST = {Kind.HANDLERS: 0, Kind.COROUTINES: 128, Kind.FLOOR: 128}

# Seconds: a world that takes longer is formed only once.
_LONG = 30.0

# The number of runs of a contender that may fail.
_TRIES = 2

SHORT = (16, 64, 128, 1000)
FULL = (16, 64, 128, 256, 1000, 10_000)
LOAD_AT = (64, 10_000)
"""The numbers of nodes at which the table shows the load."""


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Form worlds of each size, with one contender after another."""
    failed: dict[str, int] = {}
    rows = []
    for nodes in FULL if full else SHORT:
        for name, contender in CONTENDERS.items():
            if not LEAST[contender.kind] <= nodes <= MOST[contender.kind]:
                continue
            row: dict[str, Any] = {"contender": name, "nodes": nodes}
            if contender.obstacle is not None:
                row["obstacle"] = contender.obstacle
            elif name in failed:
                row["failed_at"] = failed[name]
            else:
                row |= best(name, nodes, runs=3 if full else 1)
                if "failed" in row:
                    failed[name] = nodes
            rows.append(row)
            print(row, flush=True)
    return rows


def best(name: str, nodes: int, runs: int) -> dict[str, Any]:
    """Form several worlds and return the fastest.

    A world that is not done in time does not count. If one is wrong, none of them counts.

    Args:
        name: the contender.
        nodes: the number of nodes.
        runs: the number of worlds; fewer are formed if one takes long or two fail.

    Returns:
        The result of the fastest, with the outcome of each run under ``runs``.
    """
    done: list[dict[str, Any]] = []
    outcomes: list[float | str] = []
    for _ in range(runs):
        result = form(name, nodes)
        if "seconds" in result:
            outcomes.append(result["seconds"])
            done.append(result)
        else:
            outcomes.append(result["failed"])
            if result["failed"] != LATE:
                return {**result, "runs": outcomes}
        if result.get("seconds", 0.0) >= _LONG or len(outcomes) - len(done) == _TRIES:
            break
    fastest = min(done, key=lambda result: float(result["seconds"]), default={"failed": LATE})
    return {**fastest, "runs": outcomes}


def form(name: str, nodes: int) -> dict[str, Any]:
    """Form one world on an etcd of its own; return its time and load, or why it failed."""
    contender = CONTENDERS[name]
    with EtcdServer(enable_v2=contender.v2) as server, environment(**contender.environment):
        job = Job(contender, nodes, endpoint_for(contender, server.get_endpoint()))
        try:
            with Processes(WORK[contender.kind], job) as processes:
                seconds, load = join(processes, job, server.get_endpoint())
        except Failed as exc:
            return {"failed": str(exc)}
    row: dict[str, Any] = {"seconds": seconds}
    if contender.backend != "c10d":  # it does not use etcd
        row["per_node"] = load
    return row


def join(processes: Processes, job: Job, etcd: str) -> tuple[float, dict[str, float]]:
    """Let the nodes form their world.

    Returns:
        The seconds, and the load of etcd per node.

    Raises:
        Failed: the world did not form in time, or is wrong.
    """
    processes.gather(time.monotonic() + job.timeout)
    before, start = metrics.load(etcd), time.monotonic()
    deadline = start + job.timeout
    processes.send()
    if CONTENDERS[job.contender.name].floor:
        # The floor has no coordinator: all nodes must have joined before the round is completed.
        processes.gather(deadline)
        processes.send()
    outcomes = processes.gather(deadline)
    load = metrics.difference(metrics.load(etcd), before, job.nodes)
    check_places([place for _, places in outcomes for place in places], job.nodes)
    return max(end for end, _ in outcomes) - start, load


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the tables of the seconds and of the load."""
    found = by(rows, "nodes", "contender")
    sizes = sorted({row["nodes"] for row in rows})
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    times = [[f"{nodes:,}", *(seconds(found.get((nodes, name))) for name in names)] for nodes in sizes]
    loads = []
    for row in rows:
        if "per_node" not in row or row["nodes"] not in LOAD_AT:
            continue
        load = row["per_node"]
        sent = f"{load['bytes'] / 1024:.1f} KiB" if load["bytes"] else MISSING
        asked = f"{load['requests'] + load['watches']:.1f}"
        cost = [asked, sent, f"{load['raft']:.1f}", f"{load['cpu'] * 1000:.1f} ms"]
        loads.append([row["contender"], f"{row['nodes']:,}", *cost])
    return [
        Table(
            "Seconds to form a world; the nodes and etcd run on one machine. The floor only sends and receives the "
            "messages that such a world needs, without any logic.",
            ["nodes", *names],
            times,
            remarks(rows),
        ),
        Table(
            "The load of etcd per node, from etcd's own counters (bytes: of the v3 API only).",
            ["", "nodes", "requests and watches", "received", "raft writes", "etcd's CPU"],
            loads,
        ),
    ]
