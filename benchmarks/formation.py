"""Seconds until a world has formed: our etcd-v2, compiled and pure, beside torch's etcd-v2.

Each contender runs on a fresh etcd of its own. Its nodes are threads in two processes; the clock starts when all of
them are ready to join, and stops when the last has its rank. Ranks must be 0..n-1 and all worlds of one size, or
the run counts as failed.

What this does not show: a network, and clients that do not share their cores with etcd.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

CONTENDERS = ("ours", "ours-pure", "torch")
PROCESSES = 2


@dataclass(frozen=True)
class Job:
    contender: str
    endpoint: str
    nodes: int
    timeout: int


def make_handler(job: Job, index: int):
    arguments = ("etcd-v2", job.endpoint, "benchmark", job.nodes, job.nodes)
    options = {"local_addr": f"node-{index:05d}", "join_timeout": job.timeout}
    if job.contender == "torch":
        from torch.distributed.elastic.rendezvous import RendezvousParameters
        from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
        from torch.distributed.elastic.rendezvous.etcd_rendezvous_backend import create_backend

        # The TCPStore that torch shares is not what is measured, and 'node-00000' is no host to start it on.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        params = RendezvousParameters(*arguments, **options)
        backend, store = create_backend(params)
        return create_handler(store, backend, params)
    from rendezvous import RendezvousParameters, get_rendezvous_handler

    return get_rendezvous_handler(RendezvousParameters(*arguments, **options))


def run_nodes(job: Job, indices: list[int], pipe: Connection) -> None:
    """Join with some of the nodes, each in a thread of its own; send (end, rank, world size) for each."""
    handlers = [make_handler(job, index) for index in indices]
    # The join, not the store: torch's store lists its whole directory for each get, which is a benchmark of its own.
    pipe.send("ready")
    pipe.recv()

    def join(handler) -> None:
        try:
            info = handler.next_rendezvous() if job.contender != "torch" else _join_torch(handler)
            pipe_send((time.monotonic(), *info))
        except Exception as exc:
            pipe_send(f"{type(exc).__name__}: {exc}")

    lock = threading.Lock()

    def pipe_send(message) -> None:
        if not isinstance(message, str):
            end, *rest = message
            if len(rest) == 1:
                message = (end, rest[0].rank, rest[0].world_size)
        with lock:
            pipe.send(message)

    threads = [threading.Thread(target=join, args=(handler,), daemon=True) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.recv()
    os._exit(0)
