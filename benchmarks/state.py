"""The swap cycle of the state (decode, expire, join, encode): ours, and torch's pickle. Then the roster.

All three states hold the same nodes, as participants of a complete round. Their host names are like a cloud
provider's: 42 bytes long, with three random numbers. Each contender runs in a process of its own; before it is timed,
its result must hold the right nodes and, for our twins, the same bytes. A time is the least of several runs; memory is
the most that Python has allocated while it decodes. `rosters.py` describes the rows of the roster.

What this does not show: a compare-and-swap also takes a round trip to etcd, about a millisecond. Beside that, the time
of the compiled cycle does not matter, and the time of the others does.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import multiprocessing
import pickle
import random
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from benchmarks import contenders, rosters
from benchmarks.tables import by, remarks
from benchmarks.timing import least
from rendezvous.bench.checks import Failed
from rendezvous.bench.tables import MISSING, Table
from rendezvous.dynamic.backend_v2 import EtcdRendezvousBackend
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v2.client import EtcdClient

CONTENDERS = {"compiled": "etcd-v2", "pure": "etcd-v2, pure", "torch": "torch etcd-v2"}
"""Whose state it is: names of the contenders of the other benchmarks."""

SIZES = (8, 64, 1000, 10_000)
NOW = 1_760_000_000_000
EXPIRY = 15_000
NEWCOMER = ("ip-10-0-0-1.us-west-2.compute.internal", 4711, 0)


def hosts(count: int) -> list[tuple[str, int, int]]:
    rng = random.Random(count)
    names: set[str] = set()
    while len(names) < count:
        numbers = "-".join(str(rng.randrange(256)) for _ in range(3))
        names.add(f"ip-10-{numbers}.us-west-2.compute.internal")
    return [(name, rng.randrange(1000, 4_000_000), 0) for name in sorted(names)]


def heartbeats(count: int) -> list[int]:
    rng = random.Random(-count)
    return [NOW - rng.randrange(5000) for _ in range(count)]


def ours(twin: str, count: int) -> dict[str, Any]:
    State = importlib.import_module(f"rendezvous._core._state_{'c' if twin == 'compiled' else 'py'}").State
    state = State()
    state.started = NOW - EXPIRY
    for node, heartbeat in zip(hosts(count), heartbeats(count), strict=True):
        state.join(node, heartbeat)
    data = state.encode()

    def cycle() -> bytes:
        current = State.decode(data)
        current.expire(NOW - EXPIRY)
        current.join(NEWCOMER, NOW)
        encoded: bytes = current.encode()
        return encoded

    result = State.decode(cycle())
    if len(result) != count + 1 or result.heartbeat(NEWCOMER) != NOW:
        raise Failed(f"the {twin} cycle does not hold what it must")
    return {
        **timed(cycle, lambda: State.decode(data), state.encode, count),
        "bytes": len(data),
        "digest": hashlib.sha256(cycle()).hexdigest(),
    }


def torchs(count: int) -> dict[str, Any]:
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous as dynamic

    def when(milliseconds: int) -> datetime:
        return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)

    state = dynamic._RendezvousState()
    for node, heartbeat in zip(hosts(count), heartbeats(count), strict=True):
        description = dynamic._NodeDesc(*node)
        state.participants[description] = 0
        state.last_heartbeats[description] = when(heartbeat)
    data = pickle.dumps(state)

    def cycle() -> bytes:
        current = pickle.loads(data)
        limit = when(NOW) - timedelta(milliseconds=EXPIRY)
        for dead in [node for node, heartbeat in current.last_heartbeats.items() if heartbeat < limit]:
            del current.last_heartbeats[dead]
            current.participants.pop(dead, None)
        newcomer = dynamic._NodeDesc(*NEWCOMER)
        current.participants[newcomer] = 0
        current.last_heartbeats[newcomer] = when(NOW)
        return pickle.dumps(current)

    if len(pickle.loads(cycle()).participants) != count + 1:
        raise Failed("torch's cycle does not hold what it must")
    return {**timed(cycle, lambda: pickle.loads(data), lambda: pickle.dumps(state), count), "bytes": len(data)}


def timed(
    cycle: Callable[[], Any], decode: Callable[[], Any], encode: Callable[[], Any], count: int
) -> dict[str, float]:
    import tracemalloc

    tracemalloc.start()
    kept = decode()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    number = max(1, 20_000 // count)
    return {
        "cycle_us": least(cycle, number),
        "decode_us": least(decode, number),
        "encode_us": least(encode, number),
        "memory_bytes": memory,
    }


def contend(contender: str, count: int) -> dict[str, Any]:
    return torchs(count) if contender == "torch" else ours(contender, count)


def backoff(twin: str) -> float:
    """Return what one step of the backoff schedule costs, in microseconds, without the wait."""
    schedule = importlib.import_module(f"rendezvous._core._swap_{'c' if twin == 'compiled' else 'py'}").Backoff(seed=1)
    return least(schedule.next, 20_000)


def round_trip() -> float:
    """Return what one write to an etcd on this machine takes, in microseconds: the median of many."""
    with EtcdServer() as server:
        backend = EtcdRendezvousBackend(EtcdClient([("localhost", server.get_port())], discover=False), "benchmark")
        token, times = None, []
        for number in range(300):
            start = time.perf_counter()
            written = backend.set_state(str(number).encode(), token)
            times.append((time.perf_counter() - start) * 1e6)
            if written is None or not written[2]:
                raise Failed("a write without competitors was refused")
            token = written[1]
    return statistics.median(times)


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Time each contender at each number of nodes; then rosters, one step of the backoff, and a round trip to etcd."""
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for size in SIZES:
        digests = set()
        for contender in CONTENDERS:
            obstacle = contenders.CONTENDERS[CONTENDERS[contender]].obstacle
            if obstacle is not None:
                rows.append({"contender": contender, "nodes": size, "obstacle": obstacle})
                continue
            with context.Pool(1) as pool:
                row = pool.apply(contend, (contender, size))
            digests.add(row.pop("digest", None))
            stored = len(base64.b64encode(bytes(row["bytes"])))
            rows.append({"contender": contender, "nodes": size, **row, "stored_bytes_per_node": stored / size})
            print(rows[-1], flush=True)
        if len(digests - {None}) > 1:
            raise Failed("the twins' bytes differ")
    twins = {row["contender"] for row in rows if "cycle_us" in row} - {"torch"}
    rows += rosters.measure()
    steps = {twin: backoff(twin) for twin in sorted(twins)}
    rows.append({"contender": "etcd", "nodes": 0, "round_trip_us": round_trip(), "backoff_us": steps})
    print(rows[-1], flush=True)
    return rows


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the time and the size of a cycle, with a remark on the backoff; its parts and the memory; the rosters."""
    found = by(rows, "nodes", "contender")

    def cells(nodes: int, names: Iterable[str], unit: str, value: Callable[[dict[str, Any]], float]) -> list[str]:
        chosen = (found[nodes, name] for name in names)
        return [unit.format(value(row)) if "cycle_us" in row else MISSING for row in chosen]

    def ratios(nodes: int, *names: str) -> list[str]:
        compiled = found[nodes, "compiled"]
        if "cycle_us" not in compiled:
            return [MISSING for _ in names]
        return cells(nodes, names, "{:.0f}", lambda row: row["cycle_us"] / compiled["cycle_us"])

    cycles, parts = [], []
    for nodes in SIZES:
        cycles.append(
            [
                f"{nodes:,}",
                *cells(nodes, CONTENDERS, "{:,.0f} µs", lambda row: row["cycle_us"]),
                *ratios(nodes, "pure", "torch"),
                *cells(nodes, ("pure", "torch"), "{:.1f}", lambda row: row["stored_bytes_per_node"]),
            ]
        )
        parts.append(
            [
                f"{nodes:,}",
                *cells(nodes, CONTENDERS, "{:,.0f} µs", lambda row: row["decode_us"]),
                *cells(nodes, CONTENDERS, "{:,.0f} µs", lambda row: row["encode_us"]),
                *cells(nodes, CONTENDERS, "{:,.0f} KiB", lambda row: row["memory_bytes"] / 1024),
            ]
        )
    etcd = found[0, "etcd"]
    steps = " and ".join(f"{cost:.2f} µs {twin}" for twin, cost in etcd["backoff_us"].items())
    remark = (
        f"A write to an etcd on the same machine takes {etcd['round_trip_us']:,.0f} µs. One step of the backoff "
        f"between two tries costs {steps}, and the wait after it takes milliseconds: compiling it makes no practical "
        "difference."
    )
    names = ["compiled", "pure", "torch's pickle"]
    return [
        Table(
            "One swap cycle of the `etcd-v2` state (decode, expire, join, encode), and what a node takes in etcd.",
            ["nodes", *names, "pure / compiled", "torch / compiled", "bytes a node", "torch's"],
            cycles,
            (*remarks(row for row in rows if row["contender"] in CONTENDERS), remark),
        ),
        Table(
            "To decode it and to encode it alone, and what Python allocates to decode it.",
            ["nodes", *(f"{what}, {name}" for what in ("decode", "encode", "memory") for name in names)],
            parts,
        ),
        *rosters.tables(rows),
    ]
