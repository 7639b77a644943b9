"""The event loop behind the blocking interface: one for each process, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from rendezvous.api import RendezvousConnectionError, RendezvousError

__all__ = ["LEAVE_TIMEOUT", "run", "run_at_exit", "run_now"]

_T = TypeVar("_T")

LEAVE_TIMEOUT = 2.0
"""How long the functions that run at exit may take together, in seconds."""

_SHUTTING_DOWN = "the interpreter is shutting down; the request was not sent to etcd, or its answer was not awaited"

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_stopped = False
_forked = False
_exit_functions: dict[object, Callable[[], Awaitable[None]]] = {}
_running_exit_functions: set[asyncio.Future[None]] = set()


def _start() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _forked:
            raise RendezvousConnectionError(
                "this process was forked from one that uses etcd, and gRPC does not work in such a child; start it as "
                "a new process (multiprocessing's 'spawn', subprocess)",
                retryable=False,
            )
        if _stopped:
            raise RendezvousConnectionError("the interpreter is shutting down; the request was not sent to etcd")
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="rendezvous", daemon=True)
            _thread.start()
            atexit.register(_stop)
        return _loop


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run ``coroutine`` on the loop and return its result. If the caller is interrupted, the coroutine is cancelled.

    The traceback of a :class:`RendezvousError` begins here: its message says what happened, and the frames of the
    loop would hide it.

    Raises:
        RendezvousConnectionError: the interpreter is shutting down, or the process was forked from one that used
            the loop.
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

    # An interrupt may come at any point: if the coroutine has been started, it is cancelled.
    try:
        loop = _start()
        loop.call_soon_threadsafe(begin)
        return outcome.result()
    except CancelledError:
        raise RendezvousConnectionError(_SHUTTING_DOWN) from None
    except BaseException as exc:
        if not outcome.done():
            if _loop is None or _forked:
                coroutine.close()
            else:
                _loop.call_soon_threadsafe(cancel)
        if isinstance(exc, RendezvousError):
            raise exc.with_traceback(None) from exc.__cause__
        raise


def run_at_exit(key: object, function: Callable[[], Awaitable[None]]) -> None:
    """Have ``function`` run on the loop when the interpreter exits, unless :func:`run_now` runs it earlier."""
    _exit_functions[key] = function


def run_now(key: object) -> None:
    """Have the exit function of ``key`` run soon, without waiting for it. An exit of the interpreter waits for it."""
    function, loop = _exit_functions.pop(key, None), _loop
    if function is not None and loop is not None and not loop.is_closed() and not _forked:
        loop.call_soon_threadsafe(_run_exit_function, function)


def _run_exit_function(function: Callable[[], Awaitable[None]]) -> None:
    running = asyncio.ensure_future(function())
    _running_exit_functions.add(running)
    running.add_done_callback(_running_exit_functions.discard)


def _stop() -> None:
    global _loop, _thread, _stopped
    _stopped = True
    loop, thread = _loop, _thread
    if loop is None or thread is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(_finish(), loop).result(LEAVE_TIMEOUT + 1)
    except Exception:  # the process ends: etcd ends the leases that could not be revoked in time
        pass
    loop.call_soon_threadsafe(loop.stop)
    thread.join(1)
    if not thread.is_alive():
        loop.close()
    _loop = _thread = None


async def _finish() -> None:
    """Run the exit functions, then cancel everything else."""
    for key in list(_exit_functions):
        _run_exit_function(_exit_functions.pop(key))
    if _running_exit_functions:
        await asyncio.wait(_running_exit_functions, timeout=LEAVE_TIMEOUT)
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _disable_in_child() -> None:
    """In a forked child: gRPC would hang here, and crash if its objects were freed. So everything is left as it is."""
    global _lock, _forked
    _lock = threading.Lock()
    _forked = _forked or _loop is not None
    atexit.unregister(_stop)


os.register_at_fork(after_in_child=_disable_in_child)
