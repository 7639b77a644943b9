"""The processes of a benchmark, which work side by side and start each part of the work at the same time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rendezvous.bench.checks import Failed, explain

__all__ = ["LATE", "PROCESSES", "Processes", "environment", "receive"]

PROCESSES = 2
"""The number of processes that share the nodes of one machine. The benchmarks assume as many cores."""

LATE = "not done in time"
"""The reason of a failure by timeout."""


@dataclass(frozen=True)
class _Failure:
    """What a process sends when it fails."""

    reason: str


class Processes:
    """Processes that run ``work(*arguments, number, pipe)``, each with its ``number``, from 0.

    ``work`` sends its results through the pipe and receives there what :meth:`send` sends.

    Args:
        work: a function of a module.
        arguments: its first arguments.
        count: the number of processes.

    Attributes:
        pipes: one end of each pipe.
        pids: the process ids.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any, count: int = PROCESSES) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self._children = []
        for number in range(count):
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(work, arguments, number, theirs), daemon=True)
            child.start()
            theirs.close()
            self.pipes.append(ours)
            self._children.append(child)
        self.pids = [child.pid or 0 for child in self._children]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.join()

    def gather(self, deadline: float) -> list[Any]:
        """Return what each process sends next.

        Raises:
            Failed: a process failed or ended, or did not send anything before ``deadline`` (monotonic clock).
        """
        answers: dict[int, Any] = {}
        while len(answers) < len(self.pipes):
            missing = {pipe: number for number, pipe in enumerate(self.pipes) if number not in answers}
            ready = wait(list(missing), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(LATE)
            answers |= {number: receive(pipe) for pipe, number in missing.items() if pipe in ready}
        return [answers[number] for number in range(len(self.pipes))]

    def send(self, message: Any = "go on") -> None:
        """Send ``message`` to all processes."""
        for pipe in self.pipes:
            pipe.send(message)


def receive(pipe: Connection) -> Any:
    """Return what a process sends next.

    Raises:
        Failed: the process failed or ended.
    """
    try:
        answer = pipe.recv()
    except EOFError:
        raise Failed("a process of the benchmark ended unexpectedly") from None
    if isinstance(answer, _Failure):
        raise Failed(answer.reason)
    return answer


def _work(work: Callable[..., None], arguments: tuple[Any, ...], number: int, pipe: Connection) -> None:
    logging.disable(logging.ERROR)  # torch's etcd backend logs each step of each node
    try:
        work(*arguments, number, pipe)
    except Exception as exc:
        pipe.send(_Failure(explain(exc)))
    # Do not wait for the threads and connections of the nodes.
    os._exit(0)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for processes that are started inside the ``with`` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
