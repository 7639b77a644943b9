"""Records histories, one after the other, on a cluster of three members."""

from __future__ import annotations

import json
import subprocess
import sys
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
            self._workers = [stack.enter_context(self._start(proxies)) for proxies in self._proxies]
            for process in self._workers:
                stack.callback(process.kill)
            self._client = worker.connect(self._cluster.endpoints)
            stack.callback(lambda: background.run(self._client.close()))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def _start(self, proxies: Sequence[Proxy]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.histories.worker", *(str(proxy.port) for proxy in proxies)]
        if self._plant:
            command += ["--plant", self._plant]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def record(self, name: str, mix: str, seed: str) -> tuple[Path, Counter[str]]:
        """Record a history into ``<name>.ndjson``; return the path, and the faults."""
        since, run_id = revision(self._client), uuid.uuid4().hex
        task = {"run_id": run_id, "mix": mix, "seed": seed, "since": since, **vars(SIZES[mix])}
        parts = [self._folder / f"{name}.{number}.part" for number in range(WORKERS + 1)]
        with Faults(self._cluster, self._proxies, seed) as faults:
            for number, (process, part) in enumerate(zip(self._workers, parts, strict=False)):
                first = number * SIZES[mix].clients
                clients = list(range(first, first + SIZES[mix].clients))
                assert process.stdin is not None
                process.stdin.write(json.dumps({**task, "clients": clients, "path": str(part)}) + "\n")
                process.stdin.flush()
            for process in self._workers:
                assert process.stdout is not None
                if process.stdout.readline() != "done\n":
                    raise RuntimeError(f"a worker ended in the history {name}; its error is above")
        self._read_at_the_end(run_id, since, mix, parts[-1])
        path = self._folder / f"{name}.ndjson"
        merge(parts, path)
        for part in parts:
            part.unlink()
        return path, faults.counts

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
            path, faults = recording.record(f"history-{number}", mix, f"{seed}/{number}")
            (verdict,) = checker.check([path], folder)
            yield Result(path, verdict, audit.problems(read(path)), faults)
