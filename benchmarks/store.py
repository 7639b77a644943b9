"""The key-value store of a round: a barrier, many keys at once, one counter for all, and one key that all wait for.

Each client is a thread of two processes with a store of its own, ours over etcd's v3 and v2 API, torch's ``EtcdStore``
and torch's ``TCPStore``, whose server lives in the first process. Each operation starts for all at once and ends with
the last; what it returns is checked.

barrier     each adds one to a counter, the last to come sets a key, all wait for it: torch's store barrier
multi_get   one client reads as many keys as there are clients
add         each adds one to the same counter ten times
fan-out     all wait for a key that one client then sets

What this does not show: a network, and stores whose clients do not share two cores. torch's ``EtcdStore`` has no
``multi_get``; it gets one key after another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from rendezvous.api import RendezvousParameters
from rendezvous.benchmarks import contenders
from rendezvous.benchmarks.crew import PROCESSES, Crew, Failed, explain
from rendezvous.benchmarks.tables import Table, by, failures, seconds
from rendezvous.etcd_server import EtcdServer
from rendezvous.utils import get_free_port

CONTENDERS = ("etcd-v3", "etcd-v2", "torch EtcdStore", "torch TCPStore")
OPERATIONS = ("barrier", "multi_get", "add", "fan-out")
ADDITIONS = 10
TIMEOUT = 120.0
FAN_OUT_PAUSE = 1.0
"""Seconds that all have to begin to wait before the key is set; taken off the time."""

SHORT = (64,)
FULL = (64, 256, 1000)


@dataclass(frozen=True)
class Job:
    """One store and its clients."""

    contender: str
    clients: int
    etcd: str
    port: int


def measure(full: bool = False) -> list[dict[str, Any]]:
    """Do each operation with each store and number of clients."""
    rows = []
    failed: dict[str, int] = {}
    for clients in FULL if full else SHORT:
        for contender in CONTENDERS:
            row: dict[str, Any] = {"contender": contender, "nodes": clients}
            if contender in failed:
                row["failed"] = f"not tried after it failed at {failed[contender]} clients"
            else:
                row |= run(contender, clients)
                if "failed" in row:
                    failed[contender] = clients
            rows.append(row)
            print(row, flush=True)
    return rows


def run(contender: str, clients: int) -> dict[str, Any]:
    """Do each operation once; return the seconds of each, or why there are none."""
    if contender.startswith("torch") and contenders.CONTENDERS["torch c10d"].obstacle is not None:
        return {"failed": "torch is not installed"}
    with EtcdServer() as server:
        job = Job(contender, clients, server.get_endpoint(), get_free_port("localhost"))
        times = {}
        try:
            with Crew(run_clients, job) as crew:
                crew.gather(time.monotonic() + TIMEOUT)
                for operation in OPERATIONS:
                    crew.tell(operation)
                    crew.gather(time.monotonic() + TIMEOUT)
                    start = time.monotonic()
                    crew.tell()
                    pause = FAN_OUT_PAUSE if operation == "fan-out" else 0.0
                    times[operation] = max(crew.gather(start + TIMEOUT)) - start - pause
        except Failed as exc:
            failed = next(operation for operation in (*OPERATIONS, "the end") if operation not in times)
            return {"failed": f"{failed}: {exc}"}
    return {"seconds_of": times}


# What a process does.


def run_clients(job: Job, number: int, pipe: Connection) -> None:
    """Make this process's clients, and do each operation that is named when told so; say when it was done."""
    indices = range(number, job.clients, PROCESSES)
    stores = [make_store(job, first=number == 0 and index == indices[0]) for index in indices]
    if number == 0:
        stores[0].set("there", "1")
    for store in stores:
        store.wait(["there"])  # connections are made before the clock runs
    pipe.send("ready")
    while True:
        operation = pipe.recv()
        work = WORK[operation]
        if operation == "multi_get" and number == 0:
            for key in range(job.clients):
                stores[0].set(f"key-{key}", str(key))
        pipe.send("ready")
        pipe.recv()
        together([(work, (store, index, job.clients)) for store, index in zip(stores, indices, strict=True)])
        pipe.send(time.monotonic())


def make_store(job: Job, first: bool) -> Any:
    """Make one client's store; ``first`` for the one that brings the server, where the store needs one."""
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
        from rendezvous.v3.backend import create_backend
    else:
        from rendezvous.etcd_rendezvous_backend import create_backend  # type: ignore[assignment]
    _, store = create_backend(params)
    store.set_timeout(timeout)
    return store


def barrier(store: Any, index: int, clients: int) -> None:
    """Come, and wait for all."""
    if store.add("arrived", 1) == clients:
        store.set("all", "1")
    store.wait(["all"])


def multi_get(store: Any, index: int, clients: int) -> None:
    """Read all keys, with the first client."""
    if index:
        return
    keys = [f"key-{key}" for key in range(clients)]
    many = type(store).__name__ != "EtcdStore" or not type(store).__module__.startswith("torch")
    values = store.multi_get(keys) if many else [store.get(key) for key in keys]
    if [bytes(value) for value in values] != [str(key).encode() for key in range(clients)]:
        raise RuntimeError("multi_get returned wrong values")


def add(store: Any, index: int, clients: int) -> None:
    """Add one ten times."""
    sums = [store.add("sum", 1) for _ in range(ADDITIONS)]
    if sums != sorted(set(sums)) or sums[-1] > ADDITIONS * clients:
        raise RuntimeError("add returned wrong sums")


def fan_out(store: Any, index: int, clients: int) -> None:
    """Wait for the key that the first client sets, once it has seen that no addition was lost."""
    if index == 0:
        if int(store.get("sum")) != ADDITIONS * clients:
            raise RuntimeError("additions were lost")
        time.sleep(FAN_OUT_PAUSE)
        store.set("go", "1")
    store.wait(["go"])


WORK: dict[str, Callable[[Any, int, int], None]] = {
    "barrier": barrier,
    "multi_get": multi_get,
    "add": add,
    "fan-out": fan_out,
}


def together(calls: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """Make all calls, a thread each, and wait for them. Raises RuntimeError where one fails."""
    errors: list[str] = []

    def run(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            call(*arguments)
        except Exception as exc:
            errors.append(explain(exc))

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(errors[0])


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the seconds of each operation."""
    found = by(rows, "nodes", "contender")
    lines = []
    for clients in sorted({row["nodes"] for row in rows}):
        for operation in OPERATIONS:
            cells = []
            for contender in CONTENDERS:
                row = found[clients, contender]
                times = row.get("seconds_of")
                cells.append(seconds(row if times is None else {"seconds": times[operation]}))
            lines.append([f"{clients:,}", operation, *cells])
    caption = (
        "Seconds for the clients of a store, all at once: a barrier; one client reading as many keys as there are "
        f"clients; each adding one to the same counter {ADDITIONS} times; all waiting for one key."
    )
    return [Table(caption, ["clients", "", *CONTENDERS], lines, failures(rows))]
