"""Worlds of many nodes on this machine, in a few processes: what ``rendezvous demo`` runs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from rendezvous.api import RendezvousError, RendezvousParameters
from rendezvous.coordinated.handler import CoordinatedRendezvousHandler, create_handler
from rendezvous.coordinated.records import NodeRecord, Phase, RoundRecord, run_keys
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import prefix_end

__all__ = ["LAST_CALL", "LEASE", "Plan", "Report", "Round", "form_twice"]

LAST_CALL = 1
LEASE = 3
"""Seconds. Both are short, so that killed nodes are noticed soon; jobs should keep the defaults."""

_CONFIGURATION = {
    "join_timeout": 120,
    "last_call_timeout": LAST_CALL,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": LEASE,
    "prefix": "/rendezvous-demo",
}

Progress = Callable[[str, int, int], None]
"""A function of a description, the number of nodes that have joined, and the number that is expected."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        endpoint: the etcd to use.
        run_id: the run id.
        nodes: the number of nodes of the first world, at least 2.
    """

    endpoint: str
    run_id: str
    nodes: int

    @property
    def killed(self) -> int:
        """The number of nodes that are killed after the first round: one in eight, at least one."""
        return max(1, self.nodes // 8)

    @property
    def processes(self) -> int:
        """The number of processes: one for the nodes that are killed, and one on each other CPU for the rest."""
        return 1 + min(max(1, (os.cpu_count() or 2) - 1), self.nodes - self.killed)

    def name(self, index: int) -> str:
        """Return the address that node ``index`` publishes."""
        return f"node-{index}"


@dataclass(frozen=True)
class Round:
    """One complete round.

    Attributes:
        round: its number.
        world_size: the number of its members.
        seconds: the time until the last member had its rank.
        first_rank: the address of rank 0.
        last_rank: the address of the member with the highest rank.
    """

    round: int
    world_size: int
    seconds: float
    first_rank: str
    last_rank: str


@dataclass(frozen=True)
class Report:
    """What happened: the number of nodes, the addresses of those that were killed, and the rounds."""

    nodes: int
    killed: list[str]
    backend: str = "etcd-v3"
    rounds: list[Round] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON."""
        return asdict(self)


def form_twice(plan: Plan, progress: Progress) -> Report:
    """Form a world, kill some of its nodes, and form the next world.

    Raises:
        RendezvousError: a node failed (the message is that node's), or the nodes do not agree.
    """
    observe = _observer(plan)
    victims = range(plan.nodes - plan.killed, plan.nodes)
    survivors = range(plan.nodes - plan.killed)
    report = Report(plan.nodes, [plan.name(index) for index in victims])
    others = plan.processes - 1
    groups = [victims, *(survivors[start::others] for start in range(others))]
    with _processes(plan, groups) as processes:
        pipes = [pipe for _, pipe in processes]
        first = _round(pipes, plan.nodes, -1, observe, progress)
        processes[0][0].kill()
        second = _round(pipes[1:], len(survivors), first.round, observe, progress)
        report.rounds.extend((first, second))
    return report


@dataclass(frozen=True)
class _Status:
    """The state of the run in etcd: the round's number, whether it is complete, and the number of nodes that joined."""

    round: int
    complete: bool
    joined: int


def _observer(plan: Plan) -> Callable[[], _Status]:
    """Return a function that reads the state of the run."""
    client = connect(_parameters(plan))
    keys = run_keys(_parameters(plan))

    async def read() -> _Status:
        deadline = asyncio.get_running_loop().time() + 30
        found, _ = await client.range(keys.round, b"", deadline)
        record = RoundRecord.decode(keys.round, found[0].value) if found else RoundRecord(0, Phase.FORMING)
        nodes, _ = await client.range(keys.nodes, prefix_end(keys.nodes), deadline)
        last = record.round if record.complete else record.round - 1
        joined = sum(NodeRecord.decode(kv.key, kv.value).last_round == last for kv in nodes)
        return _Status(record.round, record.complete, joined)

    return lambda: background.run(read())


def _parameters(plan: Plan, index: int | None = None) -> RendezvousParameters:
    name = None if index is None else plan.name(index)
    least = plan.nodes - plan.killed
    return RendezvousParameters("etcd-v3", plan.endpoint, plan.run_id, least, plan.nodes, name, **_CONFIGURATION)


@contextmanager
def _processes(plan: Plan, groups: list[range]) -> Iterator[list[tuple[Any, Connection]]]:
    """Start a process for each group of nodes. They join a round for each message that they receive."""
    context = multiprocessing.get_context("spawn")
    started: list[tuple[Any, Connection]] = []
    try:
        for indices in groups:
            ours, theirs = context.Pipe()
            process = context.Process(target=_run_nodes, args=(plan, indices, theirs), daemon=True)
            with _without_interrupts():
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


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C. A process that is started meanwhile always ignores it: its parent ends it, without a traceback."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_nodes(plan: Plan, indices: range, pipe: Connection) -> None:
    """Let the nodes ``indices`` join a round for each message that is received; send the outcome of each node."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
        with lock, suppress(BrokenPipeError):  # the parent has ended
            pipe.send(outcome)

    pipe.send("ready")
    with suppress(EOFError):  # the parent has ended
        while pipe.recv():
            for handler in handlers:
                threading.Thread(target=join, args=(handler,), daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the parent has ended: a parent that is killed cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except EOFError:
        raise RendezvousError("a process of the demo ended unexpectedly; its output says why") from None
    if isinstance(message, Exception):
        raise message
    return message


def _round(pipes: list[Connection], nodes: int, last: int, observe: Callable[[], _Status], progress: Progress) -> Round:
    """Let all processes join the round after ``last`` and wait for the outcomes of their nodes."""
    start = time.monotonic()
    for pipe in pipes:
        pipe.send("join")
    outcomes: list[tuple[float, int, int, str]] = []
    while len(outcomes) < nodes:
        status = observe()
        if status.complete and status.round == last:
            what = f"Round {status.round}: waiting until the leases of the killed nodes expire"
        else:
            what = f"Round {status.round}: joining"
        progress(what, max(len(outcomes), min(status.joined, nodes)), nodes)
        ready = wait(pipes, timeout=0.1)
        outcomes.extend(_receive(pipe) for pipe in pipes if pipe in ready)
    number = observe().round
    progress(f"Round {number}: complete", nodes, nodes)
    names = {rank: name for _, rank, _, name in outcomes}
    sizes = {size for _, _, size, _ in outcomes}
    if sorted(names) != list(range(nodes)) or sizes != {nodes}:
        raise RendezvousError(f"the nodes do not agree: ranks {sorted(names)}, world sizes {sorted(sizes)}")
    seconds = max(end for end, _, _, _ in outcomes) - start
    return Round(number, nodes, seconds, names[0], names[nodes - 1])
