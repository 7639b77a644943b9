"""Nodes of a job in threads of a test, each with a handler of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from rendezvous._core import State
from rendezvous.api import RendezvousInfo, RendezvousParameters
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.dynamic.handler import DynamicRendezvousHandler
from rendezvous.dynamic.settings import RendezvousTimeout

T = TypeVar("T")

BOUND = 60.0
"""Seconds within which everything that a test waits for must happen."""


def eventually(condition: Callable[[], Any], what: str, bound: float = BOUND) -> Any:
    """Return the first true value of ``condition``; fail after ``bound`` seconds."""
    deadline = time.monotonic() + bound
    while not (value := condition()):
        assert time.monotonic() < deadline, f"this did not happen within {bound:g} s: {what}"
        time.sleep(0.02)
    return value


class Job:
    """A rendezvous of ``least`` to ``most`` nodes with short timeouts."""

    def __init__(self, endpoint: str, run_id: str, least: int, most: int, **options: Any) -> None:
        self.params = RendezvousParameters("etcd-v2", endpoint, run_id, least, most, **options)
        self.handlers: list[DynamicRendezvousHandler] = []

    def node(
        self,
        name: str,
        join: float = 60,
        last_call: float = 1,
        close: float = 10,
        heartbeat: float = 2,
        interval: float = 0.5,
        attempts: int = 3,
        serve: Callable[[str], int] | None = None,
    ) -> DynamicRendezvousHandler:
        backend, store = create_backend(self.params)
        handler = DynamicRendezvousHandler.from_backend(
            self.params.run_id,
            store,
            backend,
            self.params.min_nodes,
            self.params.max_nodes,
            name,
            RendezvousTimeout(*(timedelta(seconds=s) for s in (join, last_call, close, heartbeat))),
            interval,
            attempts,
            serve,
        )
        self.handlers.append(handler)
        return handler

    def nodes(self, count: int, **options: Any) -> list[DynamicRendezvousHandler]:
        return [self.node(f"node-{i}", **options) for i in range(count)]

    def state(self) -> State:
        backend, _ = create_backend(self.params)
        current = backend.get_state()
        return State() if current is None else State.decode(current[0])

    def stop(self) -> None:
        for handler in self.handlers:
            kill(handler)


def kill(handler: DynamicRendezvousHandler) -> None:
    """Stop the heartbeats of a node in a round, as if its process had died."""
    handler._stop_heartbeats()


def expel(job: Job, handler: DynamicRendezvousHandler) -> None:
    """Remove a node from the state, as other nodes do if its heartbeats have stopped."""
    backend, _ = create_backend(job.params)

    def swap() -> bool:
        current = backend.get_state()
        assert current is not None
        state = State.decode(current[0])
        assert state.leave(handler.node)
        written = backend.set_state(state.encode(), current[1])
        return written is not None and written[2]

    eventually(swap, "the node is removed")


def count_reads(handler: DynamicRendezvousHandler) -> list[float]:
    """Return a list to which each read of the state by this node appends its time."""
    backend = handler._shared._backend
    times: list[float] = []
    read = backend.get_state

    def counted() -> tuple[bytes, Any] | None:
        times.append(time.monotonic())
        return read()

    backend.get_state = counted  # type: ignore[method-assign]
    return times


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Run ``call`` in a thread."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=work, daemon=True).start()
    return future


def join(handler: DynamicRendezvousHandler) -> Future[RendezvousInfo]:
    """Let a node join in a thread."""
    return in_thread(handler.next_rendezvous)


def join_all(handlers: list[DynamicRendezvousHandler]) -> list[RendezvousInfo]:
    """Let nodes join at the same time; check that they agree, and return the result of each."""
    infos = [future.result(BOUND) for future in [join(handler) for handler in handlers]]
    assert sorted(info.rank for info in infos) == list(range(len(infos)))
    assert {info.world_size for info in infos} == {len(infos)}
    addresses = {(info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) for info in infos}
    assert len(addresses) == 1
    return infos
