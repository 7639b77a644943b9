"""Processes that do one benchmark's work side by side, and start each part of it at a word."""

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

PROCESSES = 2
"""How many processes share the nodes of one machine: this many cores are assumed."""


LATE = "not done in time"
"""Why what was not done within its time-out has failed."""


class Failed(RuntimeError):
    """What was to be measured did not happen; the message says why."""


@dataclass(frozen=True)
class Failure:
    """What a process sends when it fails."""

    reason: str


class Crew:
    """Processes that run ``work(*arguments, number, pipe)``, from ``number`` 0 on.

    ``work`` sends what it has to say through the pipe, and receives a word there whenever it is to go on.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any, processes: int = PROCESSES) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(work, arguments, number, theirs), daemon=True)
            child.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(child)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.processes:
            child.kill()
            child.join()

    def gather(self, deadline: float) -> list[Any]:
        """Return what each process says next. Raises Failed where one fails or is late."""
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self.pipes):
            ready = wait([pipe for pipe in self.pipes if pipe not in answers], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(LATE)
            answers |= {pipe: receive(pipe) for pipe in ready}  # type: ignore[arg-type]
        return [answers[pipe] for pipe in self.pipes]

    def tell(self, word: Any = "go on") -> None:
        """Say ``word`` to all."""
        for pipe in self.pipes:
            pipe.send(word)


def receive(pipe: Connection) -> Any:
    """Return what a process says next. Raises Failed where it failed, or died."""
    try:
        answer = pipe.recv()
    except EOFError:
        raise Failed("a process of the benchmark died") from None
    if isinstance(answer, Failure):
        raise Failed(answer.reason)
    return answer


def _work(work: Callable[..., None], arguments: tuple[Any, ...], number: int, pipe: Connection) -> None:
    logging.disable(logging.ERROR)  # torch's etcd backend tells the console of each step of each node
    try:
        work(*arguments, number, pipe)
    except Exception as exc:
        pipe.send(Failure(explain(exc)))
    # The threads and connections of a world that is over are of no interest.
    os._exit(0)


def explain(exc: BaseException) -> str:
    """Return the type of an error, and its message where it has one; of what has Failed the message says it all."""
    if isinstance(exc, Failed):
        return str(exc)
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, for processes that start meanwhile."""
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
