"""The key-value store of a round: a barrier, many keys at once, one counter for all, one key that all wait for.

Each client is a thread in one of two processes, with a store of its own: ours on etcd's v3 and v2 API, torch's
``EtcdStore``, and torch's ``TCPStore`` with its server in the first process. On the v3 API the stores of a process
share one connection; the other stores have one each. Each operation starts for all clients at once and ends with the
last client. Its results are checked.

- barrier: each client adds one to a counter, the last one sets a key, all wait for the key: torch's store barrier
- multi_get: one client reads as many keys as there are clients
- add: each client adds one to the same counter ten times
- fan-out: all clients wait for a key that one of them sets

Not measured: a network, and clients that do not share two cores. Torch's ``EtcdStore`` has no ``multi_get``; it gets
one key after another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks import contenders
from benchmarks.processes import PROCESSES, Processes
from benchmarks.tables import by, remarks, seconds
from rendezvous.api import RendezvousParameters
from rendezvous.bench.checks import Failed, explain
from rendezvous.bench.tables import Table
from rendezvous.etcd.server import EtcdServer
from rendezvous.utils import get_free_port

CONTENDERS = ("etcd-v3", "etcd-v2", "torch EtcdStore", "torch TCPStore")
OPERATIONS = ("barrier", "multi_get", "add", "fan-out")
ADDITIONS = 10
TIMEOUT = 120.0
CONNECT_TIMEOUT = 600.0
"""Seconds for all clients to connect, which is not measured: hundreds of TCPStores take minutes."""

FAN_OUT_PAUSE = 1.0
"""Seconds until the key is set, in which all clients begin to wait; not part of the result."""

SHORT = (64,)
FULL = (64, 256, 1000)


@dataclass(frozen=True)
class Job:
    """One store and its clients."""

    contender: str
    clients: int
    etcd: str
    port: int


class Ended(NamedTuple):
    """When the first and the last client of a process were done, and when one of them began to set the key."""

    first: float
    last: float
    set_at: float | None


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Measure each operation with each store and each number of clients."""
    rows = []
    failed: dict[str, int] = {}
    for clients in FULL if full else SHORT:
        for contender in CONTENDERS:
            row: dict[str, Any] = {"contender": contender, "nodes": clients}
            if contender in failed:
                row["failed_at"] = failed[contender]
            else:
                row |= run(contender, clients)
                if "failed" in row:
                    failed[contender] = clients
            rows.append(row)
            print(row, flush=True)
    return rows


def run(contender: str, clients: int) -> dict[str, Any]:
    """Do each operation once; return the seconds of each, as far as they come, and why not all did."""
    obstacle = contenders.CONTENDERS["torch c10d"].obstacle
    if contender.startswith("torch") and obstacle is not None:
        return {"obstacle": obstacle}
    with EtcdServer() as server:
        job = Job(contender, clients, server.get_endpoint(), get_free_port("localhost"))
        times: dict[str, float] = {}
        doing = "to connect"
        try:
            with Processes(run_clients, job) as processes:
                processes.gather(time.monotonic() + CONNECT_TIMEOUT)
                for operation in OPERATIONS:
                    doing = operation
                    processes.send(operation)
                    processes.gather(time.monotonic() + TIMEOUT)
                    start = time.monotonic()
                    processes.send()
                    took = seconds_from(start, processes.gather(start + TIMEOUT))
                    times[operation] = took - (FAN_OUT_PAUSE if operation == "fan-out" else 0.0)
        except Failed as exc:
            return {"failed": f"{doing}: {exc}", "seconds_of": times}
    return {"seconds_of": times}


# What a process does.


def run_clients(job: Job, number: int, pipe: Connection) -> None:
    """Make the clients of this process; run the operations whose names are received, and send when they ended."""
    indices = range(number, job.clients, PROCESSES)
    stores = [make_store(job, first=number == 0 and index == indices[0]) for index in indices]
    if number == 0:
        stores[0].set("there", "1")
    for store in stores:
        store.wait(["there"])  # so that it has connected
    pipe.send("ready")
    while True:
        operation = pipe.recv()
        if operation == "multi_get" and number == 0:
            for key in range(job.clients):
                stores[0].set(f"key-{key}", str(key))
        if operation == "fan-out" and number == 0 and int(stores[0].get("sum")) != ADDITIONS * job.clients:
            raise Failed("additions were lost")
        pipe.send("ready")
        pipe.recv()
        pipe.send(together(WORK[operation], list(zip(stores, indices, strict=True)), job.clients))


def make_store(job: Job, first: bool) -> Any:
    """Make the store of one client; the ``first`` one starts the server if the store needs one."""
    timeout = timedelta(seconds=TIMEOUT)
    if job.contender == "torch TCPStore":
        from torch.distributed import TCPStore

        return TCPStore("localhost", job.port, None, first, timeout, wait_for_workers=False)
    if job.contender == "torch EtcdStore":
        import etcd
        from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore

        host, port = job.etcd.split(":")
        return EtcdStore(etcd.Client(host=host, port=int(port), allow_reconnect=True), "/benchmark", timeout)
    params = RendezvousParameters(job.contender, job.etcd, "benchmark", 1, 1)
    if job.contender == "etcd-v3":
        from rendezvous.dynamic.backend_v3 import create_backend
    else:
        from rendezvous.dynamic.backend_v2 import create_backend  # type: ignore[assignment]
    _, store = create_backend(params)
    store.set_timeout(timeout)
    return store


def barrier(store: Any, index: int, clients: int) -> float | None:
    """Arrive, and wait for all."""
    set_at = None
    if store.add("arrived", 1) == clients:
        set_at = time.monotonic()
        store.set("all", "1")
    store.wait(["all"])
    return set_at


def multi_get(store: Any, index: int, clients: int) -> None:
    """Read all keys, with the first client."""
    if index:
        return
    keys = [f"key-{key}" for key in range(clients)]
    many = type(store).__name__ != "EtcdStore" or not type(store).__module__.startswith("torch")
    values = store.multi_get(keys) if many else [store.get(key) for key in keys]
    if [bytes(value) for value in values] != [str(key).encode() for key in range(clients)]:
        raise Failed("multi_get returned wrong values")


def add(store: Any, index: int, clients: int) -> None:
    """Add one ten times."""
    sums = [store.add("sum", 1) for _ in range(ADDITIONS)]
    if sums != sorted(set(sums)) or sums[-1] > ADDITIONS * clients:
        raise Failed("add returned wrong sums")


def fan_out(store: Any, index: int, clients: int) -> float | None:
    """Wait for the key that the first client sets."""
    set_at = None
    if index == 0:
        time.sleep(FAN_OUT_PAUSE)
        set_at = time.monotonic()
        store.set("go", "1")
    store.wait(["go"])
    return set_at


Work = Callable[[Any, int, int], float | None]
"""What a client does: takes the store, its number and the number of clients; returns when it began to set the key."""

WORK: dict[str, Work] = {
    "barrier": barrier,
    "multi_get": multi_get,
    "add": add,
    "fan-out": fan_out,
}


def together(work: Work, clients: list[tuple[Any, int]], count: int) -> Ended:
    """Run ``work`` for all clients of this process, each a store and a number, in a thread each.

    Raises:
        Failed: a client failed.
    """
    errors: list[str] = []
    ends: list[float] = []
    set_at: list[float] = []

    def run(store: Any, index: int) -> None:
        try:
            began_to_set = work(store, index, count)
        except Exception as exc:
            errors.append(explain(exc))
            return
        ends.append(time.monotonic())
        if began_to_set is not None:
            set_at.append(began_to_set)

    threads = [threading.Thread(target=run, args=client, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise Failed(errors[0])
    return Ended(min(ends), max(ends), max(set_at, default=None))


def seconds_from(start: float, ended: list[Ended]) -> float:
    """Return the seconds from ``start`` until the last client was done.

    Raises:
        Failed: a client returned before the key was set.
    """
    if min(each.first for each in ended) < max((each.set_at for each in ended if each.set_at), default=start):
        raise Failed("wait returned before the key was set")
    return max(each.last for each in ended) - start


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of the seconds of each operation."""
    found = by(rows, "nodes", "contender")
    lines = []
    for clients in sorted({row["nodes"] for row in rows}):
        for operation in OPERATIONS:
            cells = []
            for contender in CONTENDERS:
                row = found[clients, contender]
                times = row.get("seconds_of", {})
                cells.append(seconds({"seconds": times[operation]} if operation in times else row))
            lines.append([f"{clients:,}", operation, *cells])
    caption = (
        "Seconds of an operation of all clients of a store. barrier: the store barrier of torch. multi_get: one client "
        f"reads as many keys as there are clients. add: each client adds one to the same counter {ADDITIONS} times. "
        "fan-out: all clients wait for one key."
    )
    return [Table(caption, ["clients", "", *CONTENDERS], lines, remarks(rows))]
