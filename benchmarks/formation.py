"""Seconds until a world has formed: our etcd-v3, our etcd-v2, compiled and pure, and torch's etcd-v2.

Each contender runs on a fresh etcd of its own. Its nodes are threads of two processes; the clock starts when all of
them are ready to join, and stops when the last one has returned from ``next_rendezvous()``, with the address where
the workers meet. The ranks must be 0..n-1 and all must name the same world size, or the run counts as failed.

What this does not show: a network between nodes and etcd, and nodes that do not share two cores with etcd and with
one another. The ratios are worth more than the seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rendezvous.etcd_server import EtcdServer

CONTENDERS = ("etcd-v3", "compiled", "pure", "torch")
PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """One world to form."""

    contender: str
    nodes: int
    timeout: int
    endpoint: str = ""


def make_handler(job: Job, index: int) -> Any:
    backend = "etcd-v3" if job.contender == "etcd-v3" else "etcd-v2"
    arguments = (backend, job.endpoint, "benchmark", job.nodes, job.nodes)
    options = {"local_addr": f"node-{index:05d}", "join_timeout": job.timeout}
    if job.contender != "torch":
        from rendezvous import RendezvousParameters, get_rendezvous_handler

        return get_rendezvous_handler(RendezvousParameters(*arguments, **options))
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    return get_rendezvous_handler(RendezvousParameters(*arguments, **options))


def run_nodes(job: Job, indices: range, pipe: Connection) -> None:
    """Join with the nodes ``indices``, a thread each; send what each returned."""
    # torch would start a TCPStore on each rank 0; 'node-00000' is no host of this machine, and it is not the subject.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handlers = [make_handler(job, index) for index in indices]
    lock = threading.Lock()

    def join(handler: Any) -> None:
        try:
            info = handler.next_rendezvous()
            outcome = (time.monotonic(), info.rank, info.world_size)
        except Exception as exc:
            outcome = f"{type(exc).__name__}: {exc}"
        with lock:
            pipe.send(outcome)

    pipe.send("ready")
    pipe.recv()
    for handler in handlers:
        threading.Thread(target=join, args=(handler,), daemon=True).start()
    pipe.recv()
    os._exit(0)  # the heartbeats of a world that is over are of no interest


def form(job: Job) -> dict[str, Any]:
    """Form one world on ``job.endpoint``; return the seconds, or why there are none."""
    context = multiprocessing.get_context("spawn")
    if job.contender == "pure":
        os.environ["RENDEZVOUS_NO_EXTENSIONS"] = "1"
    pipes, processes = [], []
    try:
        for process in range(PROCESSES):
            ours, theirs = context.Pipe()
            indices = range(process, job.nodes, PROCESSES)
            child = context.Process(target=run_nodes, args=(job, indices, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            processes.append(child)
        for pipe in pipes:
            pipe.recv()
        start = time.monotonic()
        for pipe in pipes:
            pipe.send("go")
        return collect(job, pipes, start)
    finally:
        os.environ.pop("RENDEZVOUS_NO_EXTENSIONS", None)
        for child in processes:
            child.kill()
            child.join()


def collect(job: Job, pipes: list[Connection], start: float) -> dict[str, Any]:
    outcomes: list[tuple[float, int, int]] = []
    while len(outcomes) < job.nodes:
        ready = wait(pipes, max(0.0, start + job.timeout - time.monotonic()))
        if not ready:
            return {"failed": f"{len(outcomes)} of {job.nodes} nodes were done after {job.timeout} s"}
        for pipe in ready:
            outcome = pipe.recv()
            if isinstance(outcome, str):
                return {"failed": outcome}
            outcomes.append(outcome)
    if sorted(rank for _, rank, _ in outcomes) != list(range(job.nodes)):
        return {"failed": "the ranks are not 0..n-1"}
    if {size for _, _, size in outcomes} != {job.nodes}:
        return {"failed": "the nodes do not agree on the size of the world"}
    return {"seconds": max(end for end, _, _ in outcomes) - start}


def measure(nodes: list[int], contenders: tuple[str, ...] = CONTENDERS, timeout: int = 120) -> list[dict[str, Any]]:
    """Form worlds of each size with each contender, in turn."""
    rows = []
    for size in nodes:
        for contender in contenders:
            with EtcdServer() as server:
                job = Job(contender, size, timeout, server.get_endpoint())
                rows.append({"contender": contender, "nodes": size, **form(job)})
                print(rows[-1], flush=True)
    return rows
