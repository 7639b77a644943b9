"""Forms rounds of many handlers behind proxies that cut and stall, and measures what must not grow."""

from __future__ import annotations

import json
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rendezvous.coordinated.records import Keys
from tests.etcd.clusters import Cluster
from tests.histories.faults import Faults
from tests.proxy import Proxy
from tests.soak import figures
from tests.soak.worlds import Worlds

BOUND = 120.0
"""Seconds within which a round forms, under faults and on a busy machine."""

TTL = 15
"""Seconds that a lease lives: longer than each fault."""

OPTIONS = {"keep_alive_interval": 5, "keep_alive_max_attempt": 3, "join_timeout": 600, "last_call_timeout": 1}

_PREFIX = "/soak"
_PARTS = 5
_LONGEST_ROUND = 0.01  # of the whole time
_HANDLERS_OF_A_HOST = 50


class Host:
    """A process with handlers."""

    def __init__(self, names: Sequence[str], setup: dict[str, Any], reports: queue.Queue[dict[str, Any]]) -> None:
        self.names = names
        self.measured: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reports = reports
        command = [sys.executable, "-m", "tests.soak.host", json.dumps({"names": names, **setup})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            (self.measured if report["event"] == "measured" else self._reports).put(report)

    def tell(self, command: str) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """End the process; its handlers leave first, if they can."""
        if self.process.poll() is None:
            self.tell("stop")
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Result:
    """What a soak has found.

    Attributes:
        seconds: how long it took.
        handlers: the number of handlers.
        rounds: how many rounds were formed.
        forming: seconds that each round took, from the command that ended the round before.
        replaced: how many handlers were dropped and replaced.
        faults: how many faults of each kind were made.
        figures: the figures after each part of the time; the first part is the warm-up.
        stood_still: the longest time in seconds for which an event loop of a process with handlers stood still. On a
            machine that is too slow, leases end.
        problems: what was wrong, a sentence each.
    """

    seconds: float = 0.0
    handlers: int = 0
    rounds: int = 0
    forming: list[float] = field(default_factory=list)
    replaced: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    figures: list[dict[str, int]] = field(default_factory=list)
    stood_still: float = 0.0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the result for a file."""
        seconds = self.forming or [0.0]
        forming = {"median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}
        return {**vars(self), "seconds": round(self.seconds), "forming": forming, "faults": dict(self.faults)}


class Soak:
    """A soak, as a context manager that starts etcd, the proxies and the hosts.

    Args:
        handlers: the number of handlers.
        seed: decides which faults are made, and which handlers end a round.
        binary: etcd.
        plant: a deliberate fault of the handlers; None for none.
    """

    def __init__(self, handlers: int, seed: int, binary: str, plant: str | None = None) -> None:
        self._binary, self._seed, self._plant = binary, seed, plant
        self._rng = random.Random(seed)
        self._names = [f"node-{number}" for number in range(handlers)]
        self._worlds = Worlds(handlers)
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._run_id = uuid.uuid4().hex
        self._exit = ExitStack()
        self._stuck = False  # no further round can form
        self.result = Result(handlers=handlers)

    def __enter__(self) -> Soak:
        with ExitStack() as stack:
            self._cluster = stack.enter_context(Cluster(3, binary=self._binary))
            parts = [self._names[i : i + _HANDLERS_OF_A_HOST] for i in range(0, len(self._names), _HANDLERS_OF_A_HOST)]
            self._proxies = [[stack.enter_context(Proxy(port)) for port in self._cluster.ports] for _ in parts]
            self._hosts = []
            for names, proxies in zip(parts, self._proxies, strict=True):
                setup = {"params": self._params(proxies), "plant": self._plant}
                host = Host(names, setup, self._reports)
                stack.callback(host.stop)
                self._hosts.append(host)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def _params(self, proxies: Sequence[Proxy]) -> dict[str, Any]:
        endpoint, size = ",".join(proxy.endpoint for proxy in proxies), len(self._names)
        options = {**OPTIONS, "prefix": _PREFIX}
        return {"endpoint": endpoint, "run_id": self._run_id, "min_nodes": size, "max_nodes": size, **options}

    # The rounds.

    def run(self, seconds: float, say: Callable[[str], None]) -> Result:
        """Form rounds for ``seconds``; call ``say`` with the progress."""
        began, result = time.monotonic(), self.result
        self._settle()
        with Faults(self._cluster, self._proxies, str(self._seed), members=False, pause=(0.5, 4.0)) as faults:
            for part in range(1, _PARTS + 1):
                self._form_rounds(began + seconds * part / _PARTS, _LONGEST_ROUND * seconds, say)
                if part < _PARTS:
                    self._measure()
                    say(f"measured after {time.monotonic() - began:.0f} s")
        result.faults = faults.counts
        self._settle()
        self._measure()
        result.rounds = self._worlds.round + 1
        result.seconds = time.monotonic() - began
        result.problems = [*self._worlds.faults]
        if not self._stuck:
            result.problems += figures.growth(result.figures[0], result.figures[-1])
        return result

    def _form_rounds(self, until: float, longest: float, say: Callable[[str], None]) -> None:
        """Form rounds, each of which lasts at most ``longest`` seconds."""
        while time.monotonic() < until and not self._stuck:
            command = self._rng.choice(("again", "again", "replace"))
            names = self._rng.sample(self._names, self._rng.choice((1, 1, 3)))
            began, last = time.monotonic(), self._worlds.round
            for name in names:
                self._tell(name, command)
            self._settle(last)
            self.result.forming.append(time.monotonic() - began)
            self.result.replaced += len(names) if command == "replace" else 0
            self._rest(self._rng.uniform(0.0, longest))
            say(f"round {self._worlds.round} after {self.result.forming[-1]:.1f} s ({command} {len(names)})")

    def _tell(self, name: str, command: str) -> None:
        next(host for host in self._hosts if name in host.names).tell(f"{command} {name}")

    def _settle(self, after: int = -1) -> None:
        """Take in reports until all handlers have met in a round after the one that is given."""
        deadline = time.monotonic() + BOUND
        while not self._stuck and not (self._worlds.round > after and self._worlds.settled):
            try:
                self._take(self._reports.get(timeout=1))
            except queue.Empty:
                if any(host.process.poll() is not None for host in self._hosts):
                    self._give_up("a process with handlers has ended; its error is above")
                elif time.monotonic() > deadline:
                    self._give_up(f"no round after round {after} was formed within {BOUND:g} s")

    def _take(self, report: dict[str, Any]) -> None:
        self._worlds.take(report)
        self._stuck = self._stuck or report["event"] == "error"

    def _give_up(self, problem: str) -> None:
        self._worlds.faults.append(problem)
        self._stuck = True

    def _rest(self, seconds: float) -> None:
        """Let the round last. Nobody has a reason to leave it."""
        until, number = time.monotonic() + seconds, self._worlds.round
        while not self._stuck and (left := until - time.monotonic()) > 0:
            try:
                report = self._reports.get(timeout=left)
            except queue.Empty:
                return
            self._take(report)
            if report["event"] == "left":
                self._worlds.faults.append(f"{report['name']} left round {number} without a reason")
                return

    # The figures.

    def _measure(self) -> None:
        """Measure, as soon as etcd has ended the leases of handlers that could not revoke theirs."""
        if self._stuck:  # a process may have ended
            return
        deadline = time.monotonic() + 2 * TTL
        keys = Keys(_PREFIX, self._run_id)
        while True:
            found = figures.of_etcd(self._cluster, keys)
            if found["leases"] == len(self._names) + 1 or time.monotonic() > deadline:
                break
            time.sleep(1)
        for host in self._hosts:
            host.tell("measure")
        reports = [host.measured.get(timeout=BOUND) for host in self._hosts]
        self.result.stood_still = max(report["stood still"] for report in reports)
        self.result.figures.append(figures.of_hosts(reports) | found)
