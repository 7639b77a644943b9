"""Records histories, one after the other, on a cluster of three members."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rendezvous.etcd.v3 import background
from tests.etcd.clusters import Cluster
from tests.etcd.coordinated_store.spy import revision
from tests.histories import audit, checker, worker
from tests.histories.faults import Faults
from tests.histories.recorder import merge, read
from tests.histories.workload import final
from tests.proxy import Proxy

WORKERS = 2

_KILLED = 0.25  # in this part of the histories a worker is killed


@dataclass(frozen=True)
class Size:
    """The size of a history.

    Attributes:
        clients: of each worker.
        operations: of each client.
        pause: seconds between two operations of a client, on average.
    """

    clients: int
    operations: int
    pause: float = 0.03


SIZES = {"by key": Size(6, 40), "whole": Size(3, 30)}


@dataclass(frozen=True)
class Result:
    """A history, and what the checks say about it.

    Attributes:
        path: the file.
        verdict: of porcupine.
        problems: of the checks that need no model.
        faults: how many faults of each kind were made meanwhile.
    """

    path: Path
    verdict: checker.Verdict
    problems: list[str]
    faults: Counter[str]

    @property
    def good(self) -> bool:
        return self.verdict.result == "Ok" and not self.problems


class Worker:
    """A process with clients.

    Args:
        proxies: between it and each member.
        plant: the deliberate fault of its stores.
    """

    def __init__(self, proxies: Sequence[Proxy], plant: str | None) -> None:
        ports = (str(proxy.port) for proxy in proxies)
        options = ("--plant", plant) if plant else ()
        self._command = [sys.executable, "-m", "tests.histories.worker", *ports, *options]
        self._start()

    def _start(self) -> None:
        self.killed = False
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, task: dict[str, Any]) -> None:
        """Have the clients begin their part of a history."""
        if self.killed:
            self.close()
            self._start()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(task)}\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Wait until the clients have done their part, or were killed.

        Raises:
            RuntimeError: the process has ended with an error of its own.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n" and not self.killed:
            raise RuntimeError("a process with clients has ended; its error is above")

    def kill(self) -> None:
        """End the process with SIGKILL: nobody learns the outcome of what is under way."""
        self.killed = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process, and close the pipes."""
        self.kill()
        self._process.communicate()


class Recording:
    """A cluster, workers, and proxies between them, as a context manager.

    Args:
        folder: for the histories; exists.
        plant: the deliberate fault of the workers' stores.
        binary: etcd; by default the newest.
    """

    def __init__(self, folder: Path, plant: str | None = None, binary: str | None = None) -> None:
        self._folder, self._plant, self._binary = folder, plant, binary
        self._exit = ExitStack()

    def __enter__(self) -> Recording:
        with ExitStack() as stack:
            self._cluster = stack.enter_context(Cluster(3, binary=self._binary))
            self._proxies = [[stack.enter_context(Proxy(port)) for port in self._cluster.ports] for _ in range(WORKERS)]
            self._workers = []
            for proxies in self._proxies:
                self._workers.append(Worker(proxies, self._plant))
                stack.callback(self._workers[-1].close)
            self._client = worker.connect(self._cluster.endpoints)
            stack.callback(lambda: background.run(self._client.close()))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def record(self, name: str, mix: str, seed: str) -> tuple[Path, Counter[str]]:
        """Record a history into ``<name>.ndjson``; return the path, and the faults."""
        since, run_id = revision(self._client), uuid.uuid4().hex
        task = {"run_id": run_id, "mix": mix, "seed": seed, "since": since, **vars(SIZES[mix])}
        parts = [self._folder / f"{name}.{number}.part" for number in range(WORKERS + 1)]
        with Faults(self._cluster, self._proxies, seed) as faults:
            for number, (each, part) in enumerate(zip(self._workers, parts, strict=False)):
                first = number * SIZES[mix].clients
                clients = list(range(first, first + SIZES[mix].clients))
                each.begin({**task, "clients": clients, "path": str(part)})
            self._finish(random.Random(seed), faults)
        self._read_at_the_end(run_id, since, mix, parts[-1])
        path = self._folder / f"{name}.ndjson"
        merge(parts, path)
        for part in parts:
            part.unlink(missing_ok=True)
        return path, faults.counts

    def _finish(self, rng: random.Random, faults: Faults) -> None:
        """Wait for all workers. In some histories, one is killed meanwhile."""
        doomed = rng.choice(self._workers) if rng.random() < _KILLED else None
        if doomed is not None:
            timer = threading.Timer(rng.uniform(0.5, 2.5), doomed.kill)
            timer.start()
        for each in self._workers:
            each.finish()
        if doomed is not None:
            timer.cancel()
            timer.join()
            faults.counts["kill clients"] += doomed.killed

    def _read_at_the_end(self, run_id: str, since: int, mix: str, path: Path) -> None:
        reader, client = worker.recorder(self._client, run_id, since, path), WORKERS * SIZES[mix].clients
        for number, operation in enumerate(final(mix)):
            reader.carry_out(client, f"final.{number}", operation)
        reader.close()


def histories(
    count: int, seed: int, folder: Path, plant: str | None = None, binary: str | None = None
) -> Iterator[Result]:
    """Record and check ``count`` histories."""
    with Recording(folder, plant, binary) as recording:
        for number in range(seed, seed + count):
            mix = "whole" if number % 4 == 3 else "by key"
            path, faults = recording.record(f"history-{number}", mix, str(number))
            (verdict,) = checker.check([path], folder)
            yield Result(path, verdict, audit.problems(read(path)), faults)
