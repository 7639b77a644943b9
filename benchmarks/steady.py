"""What a running job costs etcd: requests, raft writes, bytes and CPU while nothing happens.

A world forms; then its nodes are asked ten times a second whether others wait, as torchrun's agents ask, and etcd's
counters are read before and after.

What this does not show: workers that use the round's store meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import metrics
from benchmarks.contenders import CONTENDERS, Job
from benchmarks.crew import Crew, Failed, environment
from benchmarks.formation import WORK, join
from benchmarks.tables import MISSING, Table, remarks, seconds
from rendezvous.etcd.server import EtcdServer

FULL_SECONDS, SHORT_SECONDS = 60.0, 15.0
SHORT = (("etcd-v3", 64), ("etcd-v2", 64), ("torch etcd-v2", 64), ("etcd-v3, coroutines", 1000))
FULL = (*SHORT, ("torch etcd", 64), ("etcd", 64), ("etcd-v3, coroutines", 10_000))


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Let a job of each contender run."""
    rows = []
    for name, nodes in FULL if full else SHORT:
        row = {"contender": name, "nodes": nodes, **run(name, nodes, FULL_SECONDS if full else SHORT_SECONDS)}
        rows.append(row)
        print(row, flush=True)
    return rows


def run(name: str, nodes: int, duration: float) -> dict[str, Any]:
    """Let one job run for ``duration`` seconds; return what etcd did meanwhile, per second, or why there is no job."""
    contender = CONTENDERS[name]
    if contender.obstacle is not None:
        return {"obstacle": contender.obstacle}
    with EtcdServer(enable_v2=contender.v2) as server, environment(**contender.environment):
        etcd = server.get_endpoint()
        job = Job(name, nodes, etcd)
        try:
            with Crew(WORK[contender.kind], job) as crew:
                join(crew, job, etcd)
                before, start = metrics.load(etcd), time.monotonic()
                crew.tell(duration)
                polls = sum(crew.gather(start + duration + job.timeout))
                took = time.monotonic() - start
                per_second = metrics.difference(metrics.load(etcd), before, took)
        except Failed as exc:
            return {"failed": str(exc)}
    return {"seconds": took, "polls_per_second": polls / took, "per_second": per_second}


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the load per second."""
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
    heads = ["", "nodes", "agents ask", "requests", "raft writes", "keep-alives", "bytes sent (v3)", "etcd's CPU"]
    return [Table("What a running job costs etcd in a second, while nothing happens.", heads, lines, remarks(rows))]
