"""What must not grow in a soak."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.etcd_cluster import send
from rendezvous.coordinated.records import Keys
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from tests.etcd.clusters import Cluster

MEMORY, OBJECTS, DESCRIPTORS, THREADS, TASKS = "memory", "objects", "file descriptors", "threads", "tasks"

Figures = Mapping[str, int]


@dataclass(frozen=True)
class Allowance:
    """How much a figure may grow: by a part of what it was, and by a number."""

    part: float
    number: int


# Of all processes with handlers together, or of etcd. Python's memory becomes fragmented; the number of its objects
# tells more. gRPC opens and closes connections, and its own threads come and go.
ALLOWED = {
    MEMORY: Allowance(0.1, 10 << 20),
    OBJECTS: Allowance(0.01, 500),
    DESCRIPTORS: Allowance(0.05, 20),
    THREADS: Allowance(0.02, 10),
    TASKS: Allowance(0.02, 10),
    "keys of nodes": Allowance(0, 0),
    "keys of the run": Allowance(0, 1),
    "keys of rosters": Allowance(0.1, 4),
    "keys of stores": Allowance(0.1, 10),
    "idempotency keys": Allowance(0.25, 10),
    "leases": Allowance(0, 0),
}


def of_etcd(cluster: Cluster, keys: Keys) -> dict[str, int]:
    """Return the numbers of keys and leases in etcd."""
    channel = cluster.channel()
    request = rpc_pb2.RangeRequest(key=keys.root, range_end=prefix_end(keys.root), keys_only=True)
    kinds = Counter(kv.key[len(keys.root) :].split(b"/")[0].decode() for kv in send(channel, request).kvs)
    return {
        "keys of nodes": kinds["nodes"],
        "keys of the run": kinds["ctl"],
        "keys of rosters": kinds["roster"],
        "keys of stores": kinds["store"],
        "idempotency keys": kinds["once"],
        "leases": len(_leases(cluster.ports[0])),
    }


def _leases(port: int) -> list[Any]:
    """Return all leases. etcd's gateway is asked: the package has no message for a request that needs more rights."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3/lease/leases", data=b"{}", timeout=30) as answer:
        leases: list[Any] = json.load(answer).get("leases", [])
        return leases


def of_hosts(reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the figures of all processes with handlers together."""
    return {name: sum(report[name] for report in reports) for name in (MEMORY, OBJECTS, DESCRIPTORS, THREADS, TASKS)}


def growth(before: Figures, after: Figures) -> list[str]:
    """Return which figures have grown by more than is allowed, a sentence each."""
    found = []
    for name, allowed in ALLOWED.items():
        limit = before[name] * (1 + allowed.part) + allowed.number
        if after[name] > limit:
            found.append(
                f"{name}: {before[name]} after the warm-up, {after[name]} at the end, at most {limit:.0f} allowed"
            )
    return found
