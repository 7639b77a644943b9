"""How far it scales, by a model: the unmodified protocol on a simulated etcd, in which everything takes its time.

First the model is checked: the prices of this machine are measured, worlds are predicted from them, and the same
worlds are formed for real; the error stands in the table. Nothing is fitted: prices are CPU times, and how much of the
cores the work gets is measured with them. Then it predicts worlds that this machine cannot hold, from the figures that
etcd publishes.

What the model has: queues of etcd, of each process and, on this machine, of the cores that they share; latency; the
coordinator's own work; bytes of deliveries; the client's time-outs, retries and limit of requests in flight.

What it has not: the network's bandwidth; etcd's garbage collection, snapshots, and its refusals when too much is under
way; that etcd sends many changes in one message to a watcher that lags, as the coordinator may; the opening of
connections; memory; the spread of latencies; other work of the nodes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks import capacities, formation, simulated
from benchmarks.crew import Crew, Failed
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
from benchmarks.simulated import Machine
from benchmarks.tables import MISSING, Table

REAL = "etcd-v3, coroutines"
"""The contender whose worlds the model is checked against."""

CHECKED = (1_000, 10_000)
SHORT = (1_000, 10_000)
FULL = (1_000, 10_000, 100_000)
_PATIENCE = 3600.0

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
    """Return prices by etcd's published figures; ``here`` has those of this machine, for what etcd does not publish.

    A watch, a delivery and a keep-alive count as a serializable read, the cheapest request of which there is a figure:
    it is heard and answered by one member, as they are. The nodes' own work, bytes, and the further keys of a range
    (which only the coordinator reads) cost what they cost on this machine.
    """

    def cost(kind: str, figure: str) -> Cost:
        work = 1 / PUBLISHED[f"{figure}s_per_second"]
        alone = PUBLISHED[f"{figure}_seconds"]
        return Cost(work, here.kinds[kind].client, alone - work)

    like = {WRITE: "write", GRANT: "write", READ: "linearizable_read"}
    return replace(here, kinds={kind: cost(kind, like.get(kind, "serializable_read")) for kind in KINDS})


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Measure this machine, check the model against it, and predict worlds on etcd's published figures."""
    if simulated.clone() is None:
        return [{"part": "all", "failed": "the simulation is part of the source tree: run this in a clone"}]
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
    """Predict a world of this machine, and form it for real, right after the prices were measured."""
    row: dict[str, Any] = {"part": "check", "nodes": nodes}
    row["predicted"] = predict(machine, nodes, formation_only=True)
    row["real"] = formation.best(REAL, nodes, runs)
    if "failed" in row["real"] or "failed" in row["predicted"]:
        row["failed"] = row["real"].get("failed") or row["predicted"]["failed"]
    else:
        row["error"] = row["predicted"]["formation"]["seconds"] / row["real"]["seconds"] - 1
    return row


def predict(machine: Machine, nodes: int, formation_only: bool = False) -> dict[str, Any]:
    """Return what the model says of a world, from a process of its own."""
    try:
        with Crew(simulated.predict, machine, nodes, formation_only, processes=1) as crew:
            return dict(crew.gather(time.monotonic() + _PATIENCE)[0])
    except Failed as exc:
        return {"failed": str(exc)}


# The tables.


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the check of the model, what etcd publishes and what was measured, and the predictions."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    if "capacities" not in parts:
        return [Table("Predictions of a model: none.", ["why"], [[row["failed"]] for row in rows])]
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
    """Return the busiest queue, and what keeps it busy."""
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
        "Predictions of a model, not measurements: the protocol as it is on a simulated etcd that takes the time that "
        "etcd's published figures give, each node with a core of its own.",
        [
            *("nodes", "to form the world", "to form it anew, from the end of a dead node's lease"),
            *("requests a node", "received a node", "etcd busy", "the busiest node busy", "bottleneck"),
            *("keep-alives, then", "etcd busy with them"),
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
        "The model held against this machine: predictions from its measured prices, and the real worlds that it formed "
        "right after. Nothing is fitted.",
        [
            *("nodes", "predicted", "real", "error", "requests a node, predicted / real"),
            *("received a node, predicted / real", "bottleneck"),
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
        "What the model reckons with: this machine's measured CPU times and waiting times, and the capacities and "
        f"latencies of etcd's documentation ({stated['source']}: etcd 3.2.0, three members; writes to the leader; "
        "1,000 clients, and one alone).",
        [
            *("", "done here", "etcd's CPU", "client's CPU", "waiting"),
            *("etcd's capacity, published", "one client alone, published"),
        ],
        lines,
        (
            f"Of {WATCH}, {DELIVERY} and {KEEP_ALIVE} etcd publishes no figures: they are taken for serializable "
            "reads. Reads are of all three members together.",
        ),
    )
