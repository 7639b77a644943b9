"""Predictions for large worlds by a model: the unmodified protocol on a simulated etcd, on which all work takes time.

First the model is checked: the costs of this machine are measured, worlds are predicted from them, and the same worlds
are formed for real; the table shows the error. No parameter is fitted: costs are CPU times, and the share of the cores
that the work gets is measured with them. Then the model predicts worlds that are too large for this machine, from the
figures that etcd publishes.

The model includes: queues of etcd, of each process and, on this machine, of the cores that they share; latency; the
coordinator's own work; the bytes that watches deliver; the client's timeouts, retries and limit of requests in flight.

The model does not include: the network's bandwidth; etcd's garbage collection, snapshots, and the requests that it
refuses under load; that etcd sends many changes in one message to a watcher that is behind, as the coordinator can be;
opening connections; memory; the spread of latencies; other work of the nodes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks import capacities, formation, simulated
from benchmarks.model import (
    DELIVERY,
    GRANT,
    KEEP_ALIVE,
    KINDS,
    READ,
    SERIALIZABLE,
    WATCH,
    WRITE,
    Cost,
    Prices,
)
from benchmarks.processes import Processes
from benchmarks.simulated import Machine
from rendezvous.bench.checks import Failed
from rendezvous.bench.tables import MISSING, Table

REAL = "etcd-v3, coroutines"
"""The contender that forms the real worlds of the check."""

CHECKED = (1_000, 10_000)
SHORT = (1_000, 10_000)
FULL = (1_000, 10_000, 100_000)
_TIMEOUT = 3600.0

SOURCE = "https://etcd.io/docs/v3.5/op-guide/performance/"
PUBLISHED = {
    # etcd 3.2.0, three members with 8 virtual CPUs, 16 GB and an SSD each; 1,000 clients, and one client alone.
    "writes_per_second": 44_341,
    "linearizable_reads_per_second": 141_578,
    "serializable_reads_per_second": 185_758,
    "write_seconds": 1.6e-3,
    "linearizable_read_seconds": 0.7e-3,
    "serializable_read_seconds": 0.3e-3,
}


def published(here: Prices) -> Prices:
    """Return prices from etcd's published figures, and from the prices of this machine for what etcd does not publish.

    A watch, a delivery and a keep-alive cost the same as a serializable read, the cheapest request with a published
    figure: like them, it is handled by one member. The nodes' own work, bytes, and the further keys of a range (which
    only the coordinator reads) cost the same as on this machine.
    """

    def cost(kind: str, figure: str) -> Cost:
        work = 1 / PUBLISHED[f"{figure}s_per_second"]
        alone = PUBLISHED[f"{figure}_seconds"]
        return Cost(work, here.kinds[kind].client, alone - work)

    like = {WRITE: "write", GRANT: "write", READ: "linearizable_read"}
    return replace(here, kinds={kind: cost(kind, like.get(kind, "serializable_read")) for kind in KINDS})


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Measure this machine, check the model against it, and predict worlds on etcd's published figures."""
    measured = capacities.measure(full)
    here = capacities.prices(measured)
    rows: list[dict[str, Any]] = [
        {"part": "capacities", **measured, "prices": asdict(here)},
        {"part": "published", "source": SOURCE, **PUBLISHED, "prices": asdict(published(here))},
    ]
    print(*rows, sep="\n", flush=True)
    for nodes in CHECKED:
        rows.append(check(Machine(here.slowed(measured["share"]), shared=True), nodes, runs=3 if full else 1))
        print(rows[-1], flush=True)
    for nodes in FULL if full else SHORT:
        rows.append({"part": "prediction", "nodes": nodes, **predict(Machine(published(here)), nodes)})
        print(rows[-1], flush=True)
    return rows


def check(machine: Machine, nodes: int, runs: int) -> dict[str, Any]:
    """Predict a world of this machine, and form the same world for real."""
    row: dict[str, Any] = {"part": "check", "nodes": nodes}
    row["predicted"] = predict(machine, nodes, formation_only=True)
    row["real"] = formation.best(REAL, nodes, runs)
    if "failed" in row["real"] or "failed" in row["predicted"]:
        row["failed"] = row["real"].get("failed") or row["predicted"]["failed"]
    else:
        row["error"] = row["predicted"]["formation"]["seconds"] / row["real"]["seconds"] - 1
    return row


def predict(machine: Machine, nodes: int, formation_only: bool = False) -> dict[str, Any]:
    """Return the prediction of a world, computed in a process of its own."""
    try:
        with Processes(simulated.predict, machine, nodes, formation_only, count=1) as processes:
            return dict(processes.gather(time.monotonic() + _TIMEOUT)[0])
    except Failed as exc:
        return {"failed": str(exc)}


# The tables.


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the tables of the predictions, of the check of the model, and of the capacities."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    return [
        _predictions(parts.get("prediction", [])),
        _checks(parts.get("check", [])),
        _capacities(parts["capacities"][0], parts["published"][0]),
    ]


def _remarks(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{row['nodes']:,} nodes: {row['failed'].split(';')[0]}." for row in rows if "failed" in row)


def _requests(per_node: dict[str, float]) -> str:
    return f"{sum(per_node.get(kind, 0.0) for kind in (WRITE, GRANT, READ, SERIALIZABLE, WATCH)):.1f}"


def _kibibytes(count: float) -> str:
    return f"{count / 1024:.1f} KiB"


def _percent(part: float) -> str:
    return f"{part:.0%}"


def _bottleneck(world: dict[str, Any]) -> str:
    """Return the busiest queue, and the kind of work that takes most of its time."""
    queues = {"etcd": world["etcd_busy"], "busiest client": world["client_busy"]}
    name = max(queues, key=lambda queue: sum(queues[queue].values()))
    kind = max(queues[name], key=queues[name].__getitem__)
    return f"{name}, {kind}"


def _predictions(rows: list[dict[str, Any]]) -> Table:
    lines = []
    for row in rows:
        if "failed" in row:
            continue
        world, steady = row["formation"], row["steady"]
        lines.append(
            [
                f"{row['nodes']:,}",
                f"{world['seconds']:.2f} s",
                f"{row['loss']['seconds']:.2f} s",
                _requests(world["per_node"]),
                _kibibytes(world["per_node"]["sent"]),
                _percent(sum(world["etcd_busy"].values())),
                _percent(sum(world["client_busy"].values())),
                _bottleneck(world),
                f"{steady['keep_alives_per_second']:,.0f}/s",
                f"{sum(steady['etcd_busy'].values()):.1%}",
            ]
        )
    return Table(
        "Predictions of a model, not measurements: the unmodified protocol on a simulated etcd, with the speed of "
        "etcd's published figures. Each node has a core of its own.",
        [
            *("nodes", "to form the world", "to form the next world, from the end of a dead node's lease"),
            *("requests per node", "received per node", "etcd busy", "the busiest node busy", "bottleneck"),
            *("keep-alives of the running job", "etcd busy with them"),
        ],
        lines,
        _remarks(rows),
    )


def _checks(rows: list[dict[str, Any]]) -> Table:
    lines = []
    for row in rows:
        if "failed" in row:
            continue
        world, real = row["predicted"]["formation"], row["real"]
        sent = f"{_kibibytes(world['per_node']['sent'])} / {_kibibytes(real['per_node']['bytes'])}"
        asked = f"{real['per_node']['requests'] + real['per_node']['watches']:.1f}"
        lines.append(
            [
                f"{row['nodes']:,}",
                f"{world['seconds']:.2f} s",
                f"{real['seconds']:.2f} s",
                f"{row['error']:+.0%}",
                f"{_requests(world['per_node'])} / {asked}",
                sent,
                _bottleneck(world),
            ]
        )
    return Table(
        "The check of the model: predictions from the measured costs of this machine, and real worlds on this machine. "
        "No parameter is fitted.",
        [
            *("nodes", "predicted", "real", "error", "requests per node, predicted / real"),
            *("received per node, predicted / real", "bottleneck"),
        ],
        lines,
        _remarks(rows),
    )


def _capacities(measured: dict[str, Any], stated: dict[str, Any]) -> Table:
    lines = []
    for kind in KINDS:
        here, there = measured["prices"]["kinds"][kind], stated["prices"]["kinds"][kind]
        rate = measured["stages"].get(kind if kind != DELIVERY else "delivery, small", {}).get("per_second")
        lines.append(
            [
                kind,
                MISSING if rate is None else f"{rate:,.0f}/s",
                *(f"{here[part] * 1e6:,.0f} µs" for part in ("etcd", "client", "latency")),
                f"{1 / there['etcd']:,.0f}/s",
                f"{(there['latency'] + there['etcd']) * 1e3:.1f} ms",
            ]
        )
    return Table(
        "The input of the model: the CPU times and waiting times measured on this machine, and the capacities and "
        f"latencies of etcd's documentation ({stated['source']}: etcd 3.2.0, three members; writes to the leader; "
        "1,000 clients, and one client alone).",
        [
            *("", "rate on this machine", "etcd's CPU", "client's CPU", "waiting"),
            *("etcd's capacity, published", "one client alone, published"),
        ],
        lines,
        (
            f"etcd publishes no figures for {WATCH}, {DELIVERY} and {KEEP_ALIVE}; the model uses those of serializable "
            "reads. The capacity for reads is that of all three members together.",
        ),
    )
