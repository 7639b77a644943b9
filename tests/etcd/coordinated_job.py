"""Nodes of a coordinated job in threads of a test, each with a handler of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from rendezvous.api import RendezvousParameters
from rendezvous.coordinated.handler import CoordinatedRendezvousHandler, create_handler
from rendezvous.coordinated.records import Keys, RoundRecord
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import prefix_end

SHORT = {"join_timeout": 60, "last_call_timeout": 1, "keep_alive_interval": 1, "keep_alive_max_attempt": 2}
TTL = 2


class Job:
    """A run of ``least`` to ``most`` nodes with short timeouts."""

    def __init__(self, endpoint: str, run_id: str, least: int, most: int, **options: Any) -> None:
        self.endpoint, self.run_id, self.least, self.most = endpoint, run_id, least, most
        self.options = {**SHORT, **options}
        self.handlers: list[CoordinatedRendezvousHandler] = []
        self.keys = Keys(options.get("prefix", "/rendezvous"), run_id)

    def params(self, name: str, **options: Any) -> RendezvousParameters:
        return RendezvousParameters(
            "etcd-v3", self.endpoint, self.run_id, self.least, self.most, name, **{**self.options, **options}
        )

    def node(self, name: str, serve: Any = None, **options: Any) -> CoordinatedRendezvousHandler:
        handler = create_handler(self.params(name, **options), serve)
        self.handlers.append(handler)
        return handler

    def nodes(self, count: int, **options: Any) -> list[CoordinatedRendezvousHandler]:
        return [self.node(f"node-{i}", **options) for i in range(count)]

    def range(self, prefix: bytes) -> list[Any]:
        client = connect(self.params("observer"))

        async def read() -> list[Any]:
            deadline = asyncio.get_running_loop().time() + 30
            found, _ = await client.range(prefix, prefix_end(prefix), deadline)
            return found

        return background.run(read())

    def record(self) -> RoundRecord | None:
        found = self.range(self.keys.round)
        return RoundRecord.decode(found[0].key, found[0].value) if found else None

    def coordinator(self) -> CoordinatedRendezvousHandler:
        """Return the handler of the coordinator."""
        leader = self.range(self.keys.coordinator)[0].lease
        return next(handler for handler in self.handlers if handler._member.node_id == leader)

    def stop(self) -> None:
        for handler in self.handlers:
            background.run(handler._member.leave(2))


MakeJob = Callable[..., Job]


def jobs(endpoint: str, run_id: str) -> Iterator[MakeJob]:
    """Yield a function that makes jobs; stop them afterwards. For a fixture."""
    made: list[Job] = []

    def make(least: int, most: int, **options: object) -> Job:
        made.append(Job(endpoint, run_id, least, most, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def kill(handler: CoordinatedRendezvousHandler) -> None:
    """Stop a node as if its process had died: its lease exists until its time to live has passed."""

    async def die() -> None:
        member = handler._member
        session, member._session = member._session, None
        if session is not None:
            session._stop()
        await member.leave(1)

    background.run(die())
