"""The roster of `etcd-v3`: make, encode and decode it, and find a node in its shard; compiled and pure.

A part of the benchmark `state`. The ids of the nodes are as etcd gives them to leases, and the ranks are in another
order. Each twin runs in a process of its own; before it is timed, what it decodes must be what it encoded, and both
twins must give the same bytes. A time is the least of several runs.

The coordinator makes and encodes a roster when a round completes, and decodes it when it takes over; each node finds
itself in one shard. All of this is on the event loop, where nothing may take more than 50 ms.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import random
from typing import Any

from benchmarks import contenders
from benchmarks.tables import by, remarks
from benchmarks.timing import least
from rendezvous.bench.checks import Failed
from rendezvous.bench.tables import MISSING, Table

CONTENDERS = {"roster, compiled": "etcd-v3", "roster, pure": "etcd-v3, pure"}
"""Whose roster it is: names of the contenders of the other benchmarks."""

SIZES = (1000, 10_000, 100_000)
SHARD_NODES = 128
"""How many nodes the coordinator puts into a shard on average."""

FIRST_ID = 7_587_880_000_000_000_000
"""A lease of a real etcd: its ids are large, so that a varint of the first one takes nine bytes."""

OPERATIONS = {"make_us": "make", "encode_us": "encode", "decode_us": "decode", "find_us": "find"}


def ids(count: int) -> list[int]:
    """Return the ids of the nodes in the order of their ranks."""
    rng = random.Random(count)
    return rng.sample([FIRST_ID + 3 * number for number in range(count)], count)


def run(contender: str, count: int) -> dict[str, Any]:
    """Time one twin."""
    twin = "c" if contender == "roster, compiled" else "py"
    Roster = importlib.import_module(f"rendezvous._core._roster_{twin}").Roster
    nodes, shards = ids(count), -(-count // SHARD_NODES)
    roster = Roster(nodes)
    encoded = roster.encode(shards)
    last = nodes[-1]
    shard = encoded[last % shards]
    if Roster.decode(encoded).nodes() != nodes or Roster.find(shard, last) != (count - 1, count):
        raise Failed(f"the {contender}, does not hold what it must")
    number = max(1, 20_000 // count)
    return {
        "make_us": least(lambda: Roster(nodes), number),
        "encode_us": least(lambda: roster.encode(shards), number),
        "decode_us": least(lambda: Roster.decode(encoded), number),
        "find_us": least(lambda: Roster.find(shard, last), 1000),
        "bytes": sum(map(len, encoded)),
        "digest": hashlib.sha256(b"".join(encoded)).hexdigest(),
    }


def measure() -> list[dict[str, Any]]:
    """Time both twins at each number of nodes."""
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for size in SIZES:
        digests = set()
        for contender, name in CONTENDERS.items():
            obstacle = contenders.CONTENDERS[name].obstacle
            if obstacle is not None:
                rows.append({"contender": contender, "nodes": size, "obstacle": obstacle})
                continue
            with context.Pool(1) as pool:
                row = pool.apply(run, (contender, size))
            digests.add(row.pop("digest"))
            rows.append({"contender": contender, "nodes": size, **row})
            print(rows[-1], flush=True)
        if len(digests) > 1:
            raise Failed("the bytes of the twins' rosters differ")
    return rows


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of the rosters, if they were measured."""
    mine = [row for row in rows if row["contender"] in CONTENDERS]
    if not mine:
        return []
    found = by(mine, "nodes", "contender")
    lines = []
    for nodes in sorted({row["nodes"] for row in mine}):
        line = [f"{nodes:,}"]
        for key in OPERATIONS:
            for contender in CONTENDERS:
                row = found[nodes, contender]
                line.append(f"{row[key] / 1000:,.3f} ms" if key in row else MISSING)
        sizes = [
            f"{row['bytes'] / nodes:.1f}" for contender in CONTENDERS if "bytes" in (row := found[nodes, contender])
        ]
        lines.append([*line, sizes[0] if sizes else MISSING])
    twins = [contender.removeprefix("roster, ") for contender in CONTENDERS]
    return [
        Table(
            f"The roster of a complete `etcd-v3` round, in shards of {SHARD_NODES} nodes: to make it, encode it, "
            "decode it, and find a node in its shard.",
            ["nodes", *(f"{what}, {twin}" for what in OPERATIONS.values() for twin in twins), "bytes a node"],
            lines,
            remarks(mine),
        )
    ]
