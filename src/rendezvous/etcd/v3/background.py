"""The event loop behind the blocking interface: one a process, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from rendezvous.api import RendezvousConnectionError

__all__ = ["FAREWELL", "at_exit", "depart", "run"]

_T = TypeVar("_T")

FAREWELL = 2.0
"""What leaving may take, in seconds."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_stopped = False
_forked = False
_farewells: dict[object, Callable[[], Awaitable[None]]] = {}
_partings: set[asyncio.Future[None]] = set()


def _start() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _forked:
            raise RendezvousConnectionError(
                "this process was forked from one that speaks with etcd, and gRPC does not work in such a child: start "
                "it as a new process (multiprocessing's 'spawn', subprocess)"
            )
        if _stopped:
            raise RendezvousConnectionError("the interpreter exits: etcd is not asked any more")
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="rendezvous", daemon=True)
            _thread.start()
            atexit.register(_stop)
        return _loop


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run ``coroutine`` on the loop and return what it does. An interrupt of the caller cancels it.

    Raises:
        RendezvousConnectionError: the interpreter exits, or the process was forked from one that used the loop.
        RuntimeError: the caller runs on the loop.
    """
    if threading.current_thread() is _thread:
        coroutine.close()
        raise RuntimeError("a coroutine of the background loop called a blocking function, which waits for that loop")
    outcome: Future[_T] = Future()
    tasks: list[asyncio.Task[_T]] = []

    def begin() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(end)

    def end(task: asyncio.Task[_T]) -> None:
        if task.cancelled():
            outcome.cancel()
            outcome.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(task.result())

    def cancel() -> None:
        for task in tasks:
            task.cancel()
        if not tasks:
            coroutine.close()

    # Whenever an interrupt comes: what it finds begun is cancelled.
    try:
        loop = _start()
        loop.call_soon_threadsafe(begin)
        return outcome.result()
    except CancelledError:
        raise RendezvousConnectionError("the interpreter exits: etcd is not asked any more") from None
    except BaseException:
        if not outcome.done():
            if _loop is None or _forked:
                coroutine.close()
            else:
                _loop.call_soon_threadsafe(cancel)
        raise


def at_exit(key: object, farewell: Callable[[], Awaitable[None]]) -> None:
    """Have ``farewell`` run on the loop when the interpreter exits, unless ``key`` departs before."""
    _farewells[key] = farewell


def depart(key: object) -> None:
    """Have the farewell of ``key`` run soon. The interpreter does not exit in the middle of it."""
    farewell, loop = _farewells.pop(key, None), _loop
    if farewell is not None and loop is not None and not loop.is_closed() and not _forked:
        loop.call_soon_threadsafe(_part, farewell)


def _part(farewell: Callable[[], Awaitable[None]]) -> None:
    parting = asyncio.ensure_future(farewell())
    _partings.add(parting)
    parting.add_done_callback(_partings.discard)


def _stop() -> None:
    global _loop, _thread, _stopped
    _stopped = True
    loop, thread = _loop, _thread
    if loop is None or thread is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(_leave(), loop).result(FAREWELL + 1)
    except Exception:  # the process ends: what could not be left in time is left to the leases
        pass
    loop.call_soon_threadsafe(loop.stop)
    thread.join(1)
    if not thread.is_alive():
        loop.close()
    _loop = _thread = None


async def _leave() -> None:
    for key in list(_farewells):
        _part(_farewells.pop(key))
    if _partings:
        await asyncio.wait(_partings, timeout=FAREWELL)
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _remember_fork() -> None:
    """In a forked child: gRPC would hang here, and crash where its objects are freed, so all is left as it is."""
    global _lock, _forked
    _lock = threading.Lock()
    _forked = _forked or _loop is not None
    atexit.unregister(_stop)


os.register_at_fork(after_in_child=_remember_fork)
