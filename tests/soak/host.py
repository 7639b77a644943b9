"""A process with many handlers of one run, each in a thread that does what torch's agent does.

It writes reports to standard output, a line of JSON each:

    world      A handler has joined a round: name, node id, round, attempt, rank, size, and the bootstrap.
    met        Its members have met in the store of the round: name, round, attempt, and the names by rank.
    left       It leaves the round: name, node id, round, and what is wrong (the store's values, or a lost lease).
    error      A call failed, and the handler has ended: name, and the error.
    measured   The figures of this process.

and reads commands from standard input:

    again NAME     The handler joins the next round, as an agent does that starts its workers again.
    replace NAME   The handler is dropped, and another one with its name joins.
    measure        Report the figures.
    stop           Leave, and end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil

from rendezvous.api import RendezvousInfo, RendezvousParameters
from rendezvous.coordinated.handler import CoordinatedRendezvousHandler, create_handler
from rendezvous.coordinated.lifecycle import State
from rendezvous.etcd.v3 import background

_POLL = 0.25
"""Seconds between two looks at the number of waiting nodes."""

_STORE_TIMEOUT = timedelta(seconds=60)

_output = threading.Lock()


def report(event: str, **what: Any) -> None:
    """Write a report."""
    line = json.dumps({"event": event, **what})
    with _output:
        print(line, flush=True)


_kept: list[Any] = []

PLANTS: dict[str, Callable[[RendezvousInfo], Any]] = {
    "stores are kept": _kept.append,
    "files are left open": lambda info: os.open(os.devnull, os.O_RDONLY),
    "threads do not end": lambda info: threading.Thread(target=threading.Event().wait, daemon=True).start(),
    "a value is lost": lambda info: info.store.set(f"member/{info.rank}", "another"),
}
"""Deliberate faults, which a handler makes in each round; the soak must notice each."""


class Agent:
    """A handler, and the thread that takes it through the rounds.

    Args:
        params: the configuration of the handler.
        plant: a deliberate fault; None for none.
    """

    def __init__(self, params: RendezvousParameters, plant: str | None) -> None:
        self._params = params
        self._plant = PLANTS[plant] if plant else None
        self.name = str(params.local_addr)
        self.commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def _run(self) -> None:
        try:
            handler = create_handler(self._params)
            while (command := self._take_part(handler)) != "stop":
                if command == "replace":
                    handler = create_handler(self._params)  # the old one is collected, and its node leaves
            background.run(handler.member.leave(background.LEAVE_TIMEOUT))
        except Exception as exc:
            report("error", name=self.name, error=f"{type(exc).__name__}: {exc}")

    def _take_part(self, handler: CoordinatedRendezvousHandler) -> str:
        """Join a round, and stay until nodes are waiting or a command comes; return the command."""
        info, member = handler.next_rendezvous(), handler.member
        bootstrap, assignment, node = info.bootstrap_store_info, member._assignment, member.node_id
        assert bootstrap is not None
        assert assignment is not None
        place = {"name": self.name, "node": node, "round": assignment.round, "attempt": assignment.attempt}
        address = [bootstrap.master_addr, bootstrap.master_port]
        report("world", **place, rank=info.rank, size=info.world_size, bootstrap=address)
        report("met", **place, members=self._meet(info))
        if self._plant is not None:
            self._plant(info)
        command = ""
        while not command and not handler.num_nodes_waiting():
            try:
                command = self.commands.get(timeout=_POLL)
            except queue.Empty:
                pass
        report("left", **place, wrong=self._wrong(info, member.state, node, member.node_id))
        return command

    def _meet(self, info: RendezvousInfo) -> list[str]:
        """Use the store of the round; return the names of its members by rank, which the last to arrive publishes."""
        store, size = info.store, info.world_size
        store.set_timeout(_STORE_TIMEOUT)
        store.set(f"member/{info.rank}", self.name)
        if store.add("arrived", 1) == size:
            names = store.multi_get([f"member/{rank}" for rank in range(size)])
            store.compare_set("members", "", json.dumps([name.decode() for name in names]))
        members: list[str] = json.loads(store.get("members"))
        return members

    def _wrong(self, info: RendezvousInfo, state: State, before: int | None, now: int | None) -> list[str]:
        """Return what was lost in a round that ends."""
        wrong = []
        if state is State.LOST or before != now:
            wrong.append(f"its lease has ended ({state.value}; the loop stood still for up to {clock.recent:.1f} s)")
        name, arrived = info.store.multi_get([f"member/{info.rank}", "arrived"])
        if name != self.name.encode():
            wrong.append(f"the store has {name!r} under its rank")
        if arrived != b"%d" % info.world_size:
            wrong.append(f"the store counted {arrived!r} arrivals of {info.world_size} members")
        return wrong


class Clock:
    """Measures for how long the event loop stands still.

    Attributes:
        longest: in seconds, until now.
        recent: in the last two minutes.
    """

    def __init__(self) -> None:
        self._pauses: deque[float] = deque(maxlen=1200)
        self.longest = 0.0

    @property
    def recent(self) -> float:
        return max(self._pauses, default=0.0)

    async def start(self) -> None:
        """Begin to measure the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        time = asyncio.get_running_loop().time
        while True:
            began = time()
            await asyncio.sleep(0.1)
            self._pauses.append(time() - began - 0.1)
            self.longest = max(self.longest, self._pauses[-1])


clock = Clock()


def _measure() -> dict[str, float]:
    """Return the figures of this process."""

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    gc.collect()
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss,
        "objects": len(gc.get_objects()),
        "file descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": background.run(tasks()),
        "stood still": round(clock.longest, 2),
    }


def main() -> None:
    logging.getLogger("rendezvous").setLevel(logging.ERROR)  # connections are broken all the time
    setup = json.loads(sys.argv[1])
    agents = {
        name: Agent(RendezvousParameters(local_addr=name, backend="etcd-v3", **setup["params"]), setup["plant"])
        for name in setup["names"]
    }
    background.run(clock.start())
    for agent in agents.values():
        agent.thread.start()
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        if command == "measure":
            report("measured", **_measure())
        elif command == "stop":
            break
        else:
            agents[name].commands.put(command)
    for agent in agents.values():
        agent.commands.put("stop")
    for agent in agents.values():
        agent.thread.join(10)


if __name__ == "__main__":
    main()
