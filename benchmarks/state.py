"""The state's swap cycle: decode, expire, join, encode; ours, compiled and pure, beside torch's pickle.

All three hold the same nodes: host names of a cloud provider, 42 bytes long and random in three of four numbers, as
participants of a complete round. Each contender runs in a process of its own; before it is timed, its result must
hold the right nodes and, for our twins, the same bytes. A time is the least of several runs; memory is the growth of
the process's peak while it decodes.

What this does not show: a compare-and-swap also takes a round trip to etcd, about a millisecond, beside which the
compiled cycle vanishes and the others do not.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import multiprocessing
import pickle
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

CONTENDERS = ("compiled", "pure", "torch")
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
        return current.encode()

    result = State.decode(cycle())
    assert len(result) == count + 1
    assert result.heartbeat(NEWCOMER) == NOW
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

    assert len(pickle.loads(cycle()).participants) == count + 1
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
    return {
        "cycle_us": least(cycle, count),
        "decode_us": least(decode, count),
        "encode_us": least(encode, count),
        "memory_bytes": memory,
    }


def least(call: Callable[[], Any], count: int) -> float:
    """Return the least mean time of a call over seven runs, in microseconds."""
    number = max(1, 20_000 // count)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(number):
            call()
        times.append((time.perf_counter() - start) / number * 1e6)
    return min(times)


def contend(contender: str, count: int) -> dict[str, Any]:
    return torchs(count) if contender == "torch" else ours(contender, count)


def measure(sizes: list[int]) -> list[dict[str, Any]]:
    """Time each contender at each number of nodes."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for size in sizes:
        digests = set()
        for contender in CONTENDERS:
            with context.Pool(1) as pool:
                row = pool.apply(contend, (contender, size))
            digests.add(row.pop("digest", None))
            stored = len(base64.b64encode(bytes(row["bytes"])))
            rows.append({"contender": contender, "nodes": size, **row, "stored_bytes_per_node": stored / size})
            print(rows[-1], flush=True)
        assert len(digests - {None}) == 1, "the twins' bytes differ"
    return rows
