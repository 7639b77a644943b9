"""Nodes in processes of their own, with torch's handlers or with ours, that tests control and kill."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.nodes import BOUND

# Forked from a process that has imported all this: torch takes seconds to import. (pytest's own has threads.)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.torchrun.mixed_main"])


class Outcome(NamedTuple):
    """What a node got from a round."""

    rank: int
    world_size: int
    version: str
    master: tuple[str, int]


class Failure(Exception):
    """A node's error, by the name of its class."""


class Node:
    """A node; ``kind`` is one of those in :mod:`tests.torchrun.mixed_main`. Its first answer means that it runs."""

    def __init__(self, kind: str, endpoint: str, run_id: str, least: int, most: int, **config: Any) -> None:
        self.kind = kind
        file, log = tempfile.mkstemp(prefix=f"node-{kind}-")
        os.close(file)
        self._log = Path(log)
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_serve, args=(theirs, str(self._log), kind, endpoint, run_id, least, most, config), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, verb: str, *args: Any) -> None:
        """Have the node do something; :meth:`answer` returns the result."""
        self._pipe.send((verb, args))

    def answer(self) -> Any:
        assert self._pipe.poll(BOUND), f"{self} does not answer\n{self._log.read_text()[-3000:]}"
        try:
            good, value = self._pipe.recv()
        except EOFError:
            raise AssertionError(f"{self} is dead\n{self._log.read_text()[-3000:]}") from None
        if not good:
            raise Failure(value)
        return value

    def ask(self, verb: str, *args: Any) -> Any:
        self.send(verb, *args)
        return self.answer()

    def join(self) -> None:
        self.send("join")

    def outcome(self) -> Outcome:
        return Outcome(*self.answer())

    def kill(self) -> None:
        """Kill the node without letting it leave."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._log.unlink()

    def __str__(self) -> str:
        return f"the {self.kind} node {self._process.pid}"


def _serve(pipe: Connection, log: str, kind: str, *arguments: Any) -> None:
    from tests.torchrun import mixed_main

    with open(log, "w") as file:
        # torch logs to it, and Python writes errors of torch's threads to it at exit.
        os.dup2(file.fileno(), 2)
    handler = mixed_main.KINDS[kind](*arguments)
    info = None

    def join() -> tuple[int, int, str, tuple[str, int]]:
        nonlocal info
        info = handler.next_rendezvous()
        place = info.bootstrap_store_info
        version = mixed_main.version_of(info.store)
        return info.rank, info.world_size, version, (place.master_addr, place.master_port)

    def put(key: str, value: str) -> None:
        info.store.set(key, value)

    def get(key: str) -> str:
        info.store.set_timeout(timedelta(seconds=BOUND / 2))
        return info.store.get(key).decode()

    def add(key: str, number: int) -> int:
        return info.store.add(key, number)

    verbs = {"join": join, "put": put, "get": get, "add": add}
    pipe.send((True, None))
    while True:
        try:
            verb, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, verbs.get(verb, getattr(handler, verb, None))(*args)))
        except Exception as exc:
            pipe.send((False, f"{type(exc).__name__}: {exc}"))


class Nodes:
    """All nodes of one job."""

    def __init__(self, endpoint: str, run_id: str) -> None:
        self.endpoint, self.run_id = endpoint, run_id
        self.nodes: list[Node] = []

    def start(self, kinds: list[str], least: int, most: int, **config: Any) -> list[Node]:
        """Start nodes that do not join yet."""
        nodes = [Node(kind, self.endpoint, self.run_id, least, most, **config) for kind in kinds]
        self.nodes += nodes
        for node in nodes:
            node.answer()
        return nodes

    def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        node.kill()

    def stop(self) -> None:
        while self.nodes:
            self.kill(self.nodes[0])


def agree(nodes: list[Node]) -> list[Outcome]:
    """Return what the nodes that join got, and check that they agree and share a store."""
    outcomes = [node.outcome() for node in nodes]
    assert sorted(outcome.rank for outcome in outcomes) == list(range(len(nodes))), outcomes
    assert len({outcome[1:] for outcome in outcomes}) == 1, outcomes
    assert outcomes[0].world_size == len(nodes)
    for number, node in enumerate(nodes):
        node.ask("put", f"from {number}", f"{number} {time.time()}")
        assert node.ask("add", "count", 1) == number + 1
    values = [[node.ask("get", f"from {number}") for number in range(len(nodes))] for node in nodes]
    assert all(value == values[0] for value in values)
    return outcomes
