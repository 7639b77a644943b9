"""The nodes of one experiment, as processes that can be killed and suspended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rendezvous.api import RendezvousParameters
from tests.chaos import node
from tests.chaos.judge import History

__all__ = ["Job", "Node"]

# Each node is forked from a process that has imported everything and started nothing: gRPC works in such a child.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([node.__name__])


class Node:
    """A process, and what it has reported so far."""

    def __init__(self, params: RendezvousParameters, folder: Path, join_at: float) -> None:
        self.history = History(str(params.local_addr), time.monotonic())
        self._path = folder / f"{self.name}.ndjson"
        self._offset = 0
        self._process = _processes.Process(target=node.run, args=(params, folder, join_at), name=self.name, daemon=True)
        self._process.start()

    @property
    def name(self) -> str:
        return self.history.name

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def runs(self) -> bool:
        """Whether the process runs and is not suspended."""
        return self.history.killed is None and not self.history.is_frozen(time.monotonic())

    def kill(self) -> None:
        self.history.killed = self.history.killed or time.monotonic()
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.history.freezes.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        begin, _ = self.history.freezes.pop()
        self.history.freezes.append((begin, time.monotonic()))
        os.kill(self.pid, signal.SIGCONT)

    def read(self) -> None:
        """Read the new reports."""
        try:
            with open(self._path, "rb") as reports:
                reports.seek(self._offset)
                data = reports.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]  # a process that is killed may leave a part of a line
        self._offset += len(whole)
        self.history.events += map(json.loads, whole.splitlines())

    @property
    def error(self) -> str | None:
        """The error with which the process ended; None if it runs."""
        last = self.history.events[-1] if self.history.events else {}
        return last.get("error")

    @property
    def world(self) -> tuple[int, int, str] | None:
        """The round in which the node has met the others, its size and its token; None if there is none now."""
        events = self.history.events
        if len(events) < 2 or events[-1]["event"] != "members":
            return None
        return events[-1]["round"], events[-2]["size"], events[-1]["token"]


class Job:
    """All nodes of an experiment.

    Args:
        params: what all nodes have in common.
        folder: where their reports and logs are stored.
    """

    def __init__(self, params: dict[str, Any], folder: Path) -> None:
        self._params = params
        self._folder = folder
        self._lock = threading.Lock()
        self.nodes: list[Node] = []

    @property
    def run_id(self) -> str:
        return str(self._params["run_id"])

    @property
    def shortest_lease(self) -> float:
        """After how many seconds without a renewal the lease of a node may end, at the earliest."""
        interval, attempts = self._params["keep_alive_interval"], self._params["keep_alive_max_attempt"]
        return float(interval * (attempts - 1))

    def start(self, join_at: float = 0.0) -> Node:
        """Start another node, which joins at ``join_at`` on the monotonic clock."""
        with self._lock:
            params = RendezvousParameters(local_addr=f"node-{len(self.nodes)}", **self._params)
            self.nodes.append(Node(params, self._folder, join_at))
            return self.nodes[-1]

    @property
    def running(self) -> list[Node]:
        """The nodes that run and are not suspended."""
        return [each for each in self.nodes if each.runs]

    def read(self) -> None:
        """Read the new reports of all nodes."""
        for each in list(self.nodes):
            each.read()

    def is_settled(self, expected: Collection[Node]) -> bool:
        """Return whether the nodes ``expected``, and no others, have met in one world."""
        worlds = {each.world for each in expected}
        return len(worlds) == 1 and (world := worlds.pop()) is not None and world[1] == len(expected)

    def stop(self) -> None:
        """Kill all nodes that are left; they keep their histories."""
        for each in self.nodes:
            killed = each.history.killed
            each.kill()
            each.history.killed = killed
        self.read()
