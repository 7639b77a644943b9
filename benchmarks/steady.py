"""The load of a running job on etcd: requests, raft writes, bytes and CPU while nothing happens.

A world forms. Then its nodes are polled ten times a second, as torchrun's agents poll, and etcd's counters are read
before and after.

Not measured: workers that use the round's store.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.formation import WORK, join
from benchmarks.processes import Processes, environment
from benchmarks.tables import remarks, seconds
from rendezvous.bench import metrics
from rendezvous.bench.checks import Failed
from rendezvous.bench.contenders import Job
from rendezvous.bench.tables import MISSING, Table
from rendezvous.etcd.server import EtcdServer

FULL_SECONDS, SHORT_SECONDS = 60.0, 15.0
SHORT = (("etcd-v3", 64), ("etcd-v2", 64), ("torch etcd-v2", 64), ("etcd-v3, coroutines", 1000))
FULL = (*SHORT, ("torch etcd", 64), ("etcd", 64), ("etcd-v3, coroutines", 10_000))


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Run a job of each contender."""
    rows = []
    for name, nodes in FULL if full else SHORT:
        row = {"contender": name, "nodes": nodes, **run(name, nodes, FULL_SECONDS if full else SHORT_SECONDS)}
        rows.append(row)
        print(row, flush=True)
    return rows


def run(name: str, nodes: int, duration: float) -> dict[str, Any]:
    """Run one job for ``duration`` seconds; return the load of etcd per second, or why the job failed."""
    contender = CONTENDERS[name]
    if contender.obstacle is not None:
        return {"obstacle": contender.obstacle}
    with EtcdServer(enable_v2=contender.v2) as server, environment(**contender.environment):
        etcd = server.get_endpoint()
        job = Job(contender, nodes, etcd)
        try:
            with Processes(WORK[contender.kind], job) as processes:
                join(processes, job, etcd)
                before, start = metrics.load(etcd), time.monotonic()
                processes.send(duration)
                polls = sum(processes.gather(start + duration + job.timeout))
                took = time.monotonic() - start
                per_second = metrics.difference(metrics.load(etcd), before, took)
        except Failed as exc:
            return {"failed": str(exc)}
    return {"seconds": took, "polls_per_second": polls / took, "per_second": per_second}


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of the load per second."""
    lines = []
    for row in rows:
        line = [row["contender"], f"{row['nodes']:,}"]
        if "per_second" not in row:
            lines.append([*line, seconds(row), *(MISSING for _ in range(5))])
            continue
        load = row["per_second"]
        counts = (f"{load[name]:,.1f}" for name in ("requests", "raft", "keep_alives"))
        sent = MISSING if CONTENDERS[row["contender"]].v2 else f"{load['bytes'] / 1024:,.1f} KiB"
        cost = [*counts, sent, f"{load['cpu'] * 100:.1f} %"]
        lines.append([*line, f"{row['polls_per_second']:,.0f}", *cost])
    heads = ["", "nodes", "polls", "requests", "raft writes", "keep-alives", "bytes sent (v3)", "etcd's CPU"]
    caption = "The load of a running job on etcd per second, while nothing happens."
    return [Table(caption, heads, lines, remarks(rows))]
