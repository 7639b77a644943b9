"""A process with several clients of the store. Each line of standard input is a task: its part of one history."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store import EtcdStore
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import ClientOptions
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from tests.histories import plants
from tests.histories.recorder import Recorder
from tests.histories.workload import MIXES

PREFIX = "/histories"
PATIENT, HASTY = timedelta(seconds=30), timedelta(seconds=0.6)

# Short, so that a stall of a second makes clients send their requests again, to another member.
OPTIONS = ClientOptions(attempt_timeout=0.4)


def connect(endpoints: list[tuple[str, int]]) -> GrpcEtcdClient:
    """Return a client of the members behind ``endpoints``, on the background loop."""

    async def make() -> GrpcEtcdClient:
        return GrpcEtcdClient(endpoints, options=OPTIONS)

    return background.run(make())


def recorder(client: GrpcEtcdClient, run_id: str, since: int, path: Path) -> Recorder:
    """Return a recorder with stores of its own."""
    keys = Keys(PREFIX, run_id)
    patient, hasty = (EtcdStore(client, keys, 0, 0, since, timeout) for timeout in (PATIENT, HASTY))
    return Recorder(path, patient, hasty)


def _work(recorder: Recorder, client: int, task: dict[str, Any], errors: list[BaseException]) -> None:
    rng, choose = random.Random(f"{task['seed']}/{client}"), MIXES[task["mix"]]
    try:
        for number in range(task["operations"]):
            name = f"{client}.{number}"
            recorder.carry_out(client, name, choose(rng, name))
            time.sleep(rng.uniform(0, 2 * task["pause"]))
    except BaseException as exc:
        errors.append(exc)


def _run(client: GrpcEtcdClient, task: dict[str, Any]) -> None:
    into = recorder(client, task["run_id"], task["since"], Path(task["path"]))
    errors: list[BaseException] = []
    threads = [threading.Thread(target=_work, args=(into, number, task, errors)) for number in task["clients"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    into.close()
    if errors:
        raise errors[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.histories.worker")
    parser.add_argument("ports", nargs="+", type=int, help="the ports of the members, or of proxies before them")
    parser.add_argument("--plant", choices=plants.PLANTS, help="the deliberate fault of this process's stores")
    options = parser.parse_args()
    if options.plant:
        plants.PLANTS[options.plant]()
    logging.getLogger("rendezvous").setLevel(logging.ERROR)  # requests are made to fail all the time
    client = connect([("127.0.0.1", port) for port in options.ports])
    for line in sys.stdin:
        _run(client, json.loads(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
