"""Seconds until a world has formed, and what it costs etcd.

Each contender runs on a fresh etcd of its own. Its nodes share two processes; the clock starts when all of them are
ready to join, and stops when the last one has its rank, the world size and the address where the workers meet. The
ranks must be 0..n-1 and all must name the same world size, or the run counts as failed. Requests, bytes and raft writes
come from etcd's own metrics. The nodes of a process share one client of the v3 API, and so a connection, as all nodes
of a process do; of the v2 API each has its own.

What this does not show: a network between nodes and etcd, and nodes that do not share two cores with etcd and with
one another. The ratios are worth more than the seconds.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import metrics
from benchmarks.contenders import CONTENDERS, Job, Kind, meeting_point
from benchmarks.crew import LATE, Crew, Failed, environment
from benchmarks.floor import run_floor
from benchmarks.nodes import run_coroutines, run_handlers
from benchmarks.tables import MISSING, Table, by, remarks, seconds
from rendezvous.etcd.server import EtcdServer

WORK = {Kind.HANDLERS: run_handlers, Kind.COROUTINES: run_coroutines, Kind.FLOOR: run_floor}

# How many nodes each contender is asked for at most. One that fails, twice in the full set, is not asked for more.
MOST = {Kind.HANDLERS: 1000, Kind.COROUTINES: 10_000, Kind.FLOOR: 10_000}
LEAST = {Kind.HANDLERS: 0, Kind.COROUTINES: 128, Kind.FLOOR: 128}

# Seconds: a world that takes as long is not formed again.
_LONG = 30.0

# How often a contender may fail.
_TRIES = 2

SHORT = (16, 64, 128, 1000)
FULL = (16, 64, 128, 256, 1000, 10_000)
LOAD_AT = (64, 10_000)
"""The sizes at which the load stands in the table."""


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Form worlds of each size with each contender in turn."""
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
    """Form ``runs`` worlds, fewer where one takes long or two fail; return the fastest, and how each went.

    Worlds that come late do not count. Where one is not what it should be, none counts.
    """
    done: list[dict[str, Any]] = []
    went: list[float | str] = []
    for _ in range(runs):
        result = form(name, nodes)
        went.append(result.get("seconds", result.get("failed")))
        if "seconds" in result:
            done.append(result)
        elif result["failed"] != LATE:
            return {**result, "runs": went}
        if result.get("seconds", 0.0) >= _LONG or len(went) - len(done) == _TRIES:
            break
    fastest = min(done, key=lambda result: float(result["seconds"]), default={"failed": LATE})
    return {**fastest, "runs": went}


def form(name: str, nodes: int) -> dict[str, Any]:
    """Form one world on an etcd of its own; return what it took, or why there is none."""
    contender = CONTENDERS[name]
    with EtcdServer(enable_v2=contender.v2) as server, environment(**contender.environment):
        job = Job(name, nodes, meeting_point(contender, server.get_endpoint()))
        try:
            with Crew(WORK[contender.kind], job) as crew:
                seconds, load = join(crew, job, server.get_endpoint())
        except Failed as exc:
            return {"failed": str(exc)}
    row: dict[str, Any] = {"seconds": seconds}
    if contender.backend != "c10d":  # it does not use etcd
        row["per_node"] = load
    return row


def join(crew: Crew, job: Job, etcd: str) -> tuple[float, dict[str, float]]:
    """Have the nodes of ``crew`` form their world; return the seconds and etcd's load per node. Raises Failed."""
    crew.gather(time.monotonic() + job.timeout)
    before, start = metrics.load(etcd), time.monotonic()
    deadline = start + job.timeout
    crew.tell()
    if CONTENDERS[job.contender].kind is Kind.FLOOR:
        crew.gather(deadline)  # nobody coordinates: all have joined before the round is complete
        crew.tell()
    outcomes = crew.gather(deadline)
    load = metrics.difference(metrics.load(etcd), before, job.nodes)
    check([place for _, places in outcomes for place in places], job.nodes)
    return max(end for end, _ in outcomes) - start, load


def check(places: list[tuple[int, int]], nodes: int) -> None:
    """Raise Failed unless ``places``, ranks and world sizes, are those of one world of all nodes."""
    if sorted(rank for rank, _ in places) != list(range(nodes)):
        raise Failed("the ranks are not 0..n-1")
    if {size for _, size in places} != {nodes}:
        raise Failed("the nodes do not agree on the size of the world")


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the seconds, and the load."""
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
            "Seconds to form a world, nodes and etcd together on one machine; of the floor, to send and hear what such "
            "a world must, with no logic.",
            ["nodes", *names],
            times,
            remarks(rows),
        ),
        Table(
            "What each node of it costs etcd, by etcd's own counters (bytes: of the v3 API only).",
            ["", "nodes", "requests and watches", "received", "raft writes", "etcd's CPU"],
            loads,
        ),
    ]
