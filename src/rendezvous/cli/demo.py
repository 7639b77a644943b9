"""The demonstration: a world of many nodes on one machine, and a second one after some of them were killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from rendezvous.api import RendezvousError, RendezvousParameters
from rendezvous.coordinated.handler import CoordinatedRendezvousHandler, create_handler
from rendezvous.coordinated.records import NodeRecord, RoundRecord, run_keys
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import prefix_end

__all__ = ["Plan", "Report", "Round", "run"]

# Short, so that the dead are missed soon. Real jobs keep the defaults.
_CONFIGURATION = {
    "join_timeout": 120,
    "last_call_timeout": 1,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 3,
    "prefix": "/rendezvous-demo",
}

Progress = Callable[[str, int, int], None]
"""Is told what forms, how many nodes have joined, and how many are to come."""


@dataclass(frozen=True)
class Plan:
    """What the demonstration does.

    Attributes:
        endpoint: the etcd to use.
        run_id: the name of the job.
        nodes: how many nodes the first world has, at least 2.
    """

    endpoint: str
    run_id: str
    nodes: int

    @property
    def killed(self) -> int:
        """How many nodes are killed after the first round: one in eight, at least one."""
        return max(1, self.nodes // 8)

    def name(self, index: int) -> str:
        """Return the address that node ``index`` goes by."""
        return f"node-{index}"


@dataclass(frozen=True)
class Round:
    """One round: its number, its size, the seconds until all had their ranks, and who is first and last."""

    round: int
    world_size: int
    seconds: float
    first_rank: str
    last_rank: str


@dataclass(frozen=True)
class Report:
    """What happened."""

    nodes: int
    killed: list[str]
    backend: str = "etcd-v3"
    rounds: list[Round] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return asdict(self)


def run(plan: Plan, progress: Progress) -> Report:
    """Form a world, kill some of its nodes, form the next.

    Raises:
        RendezvousError: a node failed; the message is that node's.
    """
    look = _observer(plan)
    doomed = range(plan.nodes - plan.killed, plan.nodes)
    survivors = range(plan.nodes - plan.killed)
    report = Report(plan.nodes, [plan.name(index) for index in doomed])
    workers = min(max(1, (os.cpu_count() or 2) - 1), len(survivors))
    groups = [doomed, *(survivors[start::workers] for start in range(workers))]
    with _processes(plan, groups) as processes:
        everyone = dict(processes)
        report.rounds.append(_round(everyone, plan.nodes, look, progress))
        victim, _ = processes[0]
        os.kill(victim.pid or 0, signal.SIGKILL)
        report.rounds.append(_round(dict(processes[1:]), len(survivors), look, progress))
    return report


@dataclass(frozen=True)
class _Sight:
    """What can be seen of the run from outside."""

    round: int
    complete: bool
    joined: int


def _observer(plan: Plan) -> Callable[[], _Sight]:
    """Return what looks at the keys of the run."""
    client = connect(_parameters(plan))
    keys = run_keys(_parameters(plan))

    async def read() -> _Sight:
        deadline = asyncio.get_running_loop().time() + 30
        found, _ = await client.range(keys.round, b"", deadline)
        record = RoundRecord.decode(keys.round, found[0].value) if found else RoundRecord(0)
        nodes, _ = await client.range(keys.nodes, prefix_end(keys.nodes), deadline)
        asks = (NodeRecord.decode(kv.key, kv.value).last_round == record.round - (not record.complete) for kv in nodes)
        return _Sight(record.round, record.complete, sum(asks))

    return lambda: background.run(read())


def _parameters(plan: Plan, index: int | None = None) -> RendezvousParameters:
    name = None if index is None else plan.name(index)
    least = plan.nodes - plan.killed
    return RendezvousParameters("etcd-v3", plan.endpoint, plan.run_id, least, plan.nodes, name, **_CONFIGURATION)


@contextmanager
def _processes(plan: Plan, groups: list[range]) -> Iterator[list[tuple[Any, Connection]]]:
    """Start a process for each group of nodes; they wait for a word to join."""
    context = multiprocessing.get_context("spawn")
    started: list[tuple[Any, Connection]] = []
    try:
        for indices in groups:
            ours, theirs = context.Pipe()
            process = context.Process(target=_run_nodes, args=(plan, indices, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        for _, pipe in started:
            _receive(pipe)
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _run_nodes(plan: Plan, indices: range, pipe: Connection) -> None:
    """Take the nodes ``indices`` through a round for each word that comes; send what each node got."""
    handlers = []
    try:
        for index in indices:
            handlers.append(create_handler(_parameters(plan, index)))
    except RendezvousError as exc:
        pipe.send(exc)
        return
    lock = threading.Lock()

    def join(handler: CoordinatedRendezvousHandler) -> None:
        try:
            info = handler.next_rendezvous()
            outcome: object = (time.monotonic(), info.rank, info.world_size, handler.node.addr)
        except Exception as exc:
            outcome = RendezvousError(f"{handler.node.name}: {exc}")
        with lock:
            pipe.send(outcome)

    pipe.send("ready")
    while pipe.recv():
        for handler in handlers:
            threading.Thread(target=join, args=(handler,), daemon=True).start()


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except EOFError:
        raise RendezvousError("a process of the demonstration ended before its time") from None
    if isinstance(message, Exception):
        raise message
    return message


def _round(processes: dict[Any, Connection], nodes: int, look: Callable[[], _Sight], progress: Progress) -> Round:
    """Send all processes into the next round and wait for their nodes."""
    start = time.monotonic()
    for pipe in processes.values():
        pipe.send("join")
    pipes = list(processes.values())
    outcomes: list[tuple[float, int, int, str]] = []
    while len(outcomes) < nodes:
        sight = look()
        if sight.complete and not outcomes:
            progress(f"Round {sight.round}: over when the killed nodes' leases end", min(sight.joined, nodes), nodes)
        else:
            progress(f"Round {sight.round}: joining", max(len(outcomes), min(sight.joined, nodes)), nodes)
        ready = wait(pipes, timeout=0.1)
        outcomes.extend(_receive(pipe) for pipe in pipes if pipe in ready)
    number = look().round
    progress(f"Round {number}: complete", nodes, nodes)
    names = {rank: name for _, rank, _, name in outcomes}
    sizes = {size for _, _, size, _ in outcomes}
    if sorted(names) != list(range(nodes)) or sizes != {nodes}:
        raise RendezvousError(f"the nodes do not agree: ranks {sorted(names)}, world sizes {sorted(sizes)}")
    seconds = max(end for end, _, _, _ in outcomes) - start
    return Round(number, nodes, seconds, names[0], names[nodes - 1])
