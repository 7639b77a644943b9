"""The directory of one run in etcd: its keys, and the requests that the legacy protocol sends.

<prefix>/run_<run id>/                        renewed while a node lives, so that etcd deletes what a dead run leaves
<prefix>/run_<run id>/rdzv/active_version     the state that ``rules`` is about
<prefix>/run_<run id>/rdzv/version_counter    the number of the last round
<prefix>/run_<run id>/rdzv/v_<n>/rank_<k>     the keep-alive of a participant of round n
<prefix>/run_<run id>/rdzv/v_<n>/kv/...       the store of round n
<prefix>/run_<run id>/rdzv/v_<n>/extra_data   data that nodes of round n publish for each other: one JSON object
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rendezvous._core import Backoff, compare_and_swap
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.etcd.v2.client import etcd_module, key_path, retry, translate_errors
from rendezvous.etcd.v2.store import EtcdStore
from rendezvous.legacy import lease, rules
from rendezvous.legacy.rules import Action, Decision, State
from rendezvous.utils import quoted

__all__ = ["REQUEST_TIMEOUT", "Directory", "View"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

REQUEST_TIMEOUT = 30.0
"""Seconds for which a request that belongs to no round is retried."""

# The longest watch, in seconds. A node that waits longer reads again: its connection may have died silently.
_MAX_WATCH = 10.0


class View(NamedTuple):
    """The state, as read from etcd at one moment."""

    response: Any
    """etcd's response; None if no state exists."""
    state: State | None
    etcd_index: int
    """etcd's index when it answered: later changes have a greater index."""
    read_at: float
    """When it was read, on the monotonic clock."""


class Directory:
    """Reads, swaps and watches the keys of one run, and keeps them alive.

    Creating it creates the directories and starts to renew them.

    Args:
        client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        prefix: the directory of all runs.
        run_id: the run id.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: etcd cannot be reached.
        RendezvousStateError: another key is stored where a directory is needed.
        ValueError: the run id is empty, or refers to another directory (``..``).
    """

    def __init__(self, client: Any, prefix: str, run_id: str) -> None:
        if not run_id:
            raise ValueError("The run id must not be empty.")
        self._etcd = etcd_module()
        self.client = client
        self.run_id = run_id
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"
        self.state_path = self.path("/rdzv/active_version")
        self.counter_path = self.path("/rdzv/version_counter")
        key_path(self.state_path)
        self._view = View(None, None, 0, float("-inf"))
        self._last_version = 0
        self._stop_renewal: threading.Event | None = None
        self.prepare()

    def prepare(self) -> None:
        """Create the directories and the version counter, if they do not exist (or no longer), and renew them."""
        if self._prefix != "/":
            self.create_directory(self._prefix)
        self.create_directory(self.path(""), ttl=rules.RUN_TTL)
        self.create_directory(self.path("/rdzv"))
        self._create(self.counter_path, "0")
        if self._stop_renewal is not None:
            self._stop_renewal.set()
        self._stop_renewal = self.keep_alive(self.path(""), rules.RUN_TTL)

    def path(self, relative: str) -> str:
        """Return the key of ``relative``, a path below the directory of the run."""
        return f"{self._prefix}run_{self.run_id}/{relative.removeprefix('/')}"

    @property
    def view(self) -> View:
        """The state when it was last read."""
        return self._view

    # Requests.

    def _describe(self, what: str) -> str:
        return f"the rendezvous '{self.run_id}' cannot {what} in etcd"

    def _send(self, what: str, call: Callable[[], _T]) -> _T:
        """Return ``call()``, which is not repeated if it fails."""
        return self._name_obstacle(lambda: translate_errors(self._describe(what), call))

    def _retry(self, what: str, call: Callable[[], _T], deadline: float | None = None) -> _T:
        """Return ``call()``, repeated while etcd cannot be reached; repeating ``call`` must be harmless."""
        limit = time.monotonic() + REQUEST_TIMEOUT if deadline is None else deadline
        return self._name_obstacle(lambda: retry(self._describe(what), call, limit))

    def _name_obstacle(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (self._etcd.EtcdNotFile, self._etcd.EtcdNotDir) as exc:
            raise RendezvousStateError(
                f"the rendezvous '{self.run_id}' cannot create its directories below '{self._prefix}' in etcd, because "
                f"another key is stored there; choose another run id or prefix ({exc})"
            ) from None

    def create_directory(self, path: str, ttl: int | None = None) -> None:
        """Create a directory, if it does not exist; etcd deletes it after ``ttl`` seconds without a renewal."""
        self._create(path, None, ttl, dir=True)

    def _create(self, path: str, value: str | None, ttl: int | None = None, **options: Any) -> None:
        address = key_path(path)
        try:
            self._retry(f"create '{path}'", lambda: self.client.write(address, value, ttl, prevExist=False, **options))
        except self._etcd.EtcdAlreadyExist:
            pass

    def write(self, path: str, value: str, ttl: int, deadline: float) -> None:
        """Write a key without a condition; repeated until ``deadline`` while etcd cannot be reached."""
        address = key_path(path)
        self._retry(f"write '{path}'", lambda: self.client.write(address, value, ttl), deadline)

    def write_state(self, state: State, ttl: int | None, replaced: Any) -> Any:
        """Write the state with one request, and return etcd's response.

        Args:
            state: the new state.
            ttl: seconds until etcd deletes it; None for never.
            replaced: etcd's response with the state that is replaced; None if no state may exist.

        Raises:
            etcd.EtcdAlreadyExist: a state exists already.
            etcd.EtcdCompareFailed, etcd.EtcdKeyNotFound: the state is no longer the one to replace.
        """
        address, text = key_path(self.state_path), rules.dump(state)
        condition = {"prevExist": False} if replaced is None else {"prevIndex": replaced.modifiedIndex}
        return self._send(f"write '{self.state_path}'", lambda: self.client.write(address, text, ttl, **condition))

    def delete_state(self, view: View) -> None:
        """Delete the state of ``view``; a newer state is kept."""
        address, index = key_path(self.state_path), view.response.modifiedIndex
        try:
            self._send("delete the state", lambda: self.client.delete(address, prevIndex=index))
        except (self._etcd.EtcdCompareFailed, self._etcd.EtcdKeyNotFound):
            pass

    def read(self, path: str, deadline: float | None = None) -> tuple[Any, int]:
        """Return etcd's response for ``path`` (None if the key does not exist), and etcd's index at that moment."""
        known = self._view.etcd_index
        response, index = self._read_once(path, deadline)
        if index < known:
            # The member that answered is behind the others, or etcd has lost its data: ask for a quorum read.
            response, index = self._read_once(path, deadline, quorum=True)
        return response, index

    def _read_once(self, path: str, deadline: float | None, **options: Any) -> tuple[Any, int]:
        address = key_path(path)
        try:
            response = self._retry(f"read '{path}'", lambda: self.client.read(address, **options), deadline)
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return response, max(response.etcd_index, response.modifiedIndex)

    def watch(self, path: str, index: int, timeout: float, recursive: bool | None = None) -> Any:
        """Wait for the first change after ``index``.

        Returns:
            etcd's response, or None if the caller must read: ``timeout`` seconds (10 s at most) have passed, etcd no
            longer has the change, or it could not be reached.
        """
        address = key_path(path)
        limit = min(timeout, _MAX_WATCH)
        if limit <= 0:
            return None
        try:
            return self._send(
                f"watch '{path}'", lambda: self.client.watch(address, index + 1, timeout=limit, recursive=recursive)
            )
        except (self._etcd.EtcdWatchTimedOut, self._etcd.EtcdEventIndexCleared):
            return None
        except RendezvousConnectionError as exc:
            # The read that follows handles an outage. The pause is for an etcd that answers reads only.
            logger.debug("%s", exc)
            time.sleep(min(0.1, limit))
            return None

    # The state.

    def read_state(self, deadline: float | None = None) -> View:
        """Read the state.

        Raises:
            RendezvousConnectionError: etcd cannot be reached.
            RendezvousStateError: the key holds something else.
        """
        return self._update_view(*self.read(self.state_path, deadline))

    def _update_view(self, response: Any, index: int) -> View:
        state = self.parse(None if response is None else response.value)
        if state is not None and "version" in state:
            self._last_version = max(self._last_version, int(state["version"]))
        self._view = View(response, state, index, time.monotonic())
        return self._view

    def parse(self, text: str | None) -> State | None:
        """Return the state in ``text``, the value of the state's key.

        Raises:
            RendezvousStateError: it is not a state of this protocol.
        """
        try:
            return rules.parse(text)
        except RendezvousStateError as exc:
            raise RendezvousStateError(
                f"the etcd key '{self.state_path}' does not belong to this protocol: {exc}; choose another run id or "
                f"prefix"
            ) from None

    def peek(self, max_age: float) -> State | None:
        """Return the state, at most ``max_age`` seconds old; older if etcd cannot be reached.

        Raises:
            RendezvousStateError: the key holds something else.
        """
        if time.monotonic() - self._view.read_at >= max_age:
            try:
                self.read_state(deadline=time.monotonic())
            except RendezvousConnectionError as exc:
                logger.warning("%s; using the last known state", exc)
                self._view = self._view._replace(read_at=time.monotonic())
        return self._view.state

    def swap_state(
        self, rule: Callable[[State | None], Decision], deadline: float, in_doubt: Decision | None = None
    ) -> tuple[Decision, View]:
        """Apply ``rule`` to the state and, if it decides to, replace the state.

        Args:
            rule: one of the rules.
            deadline: on the monotonic clock.
            in_doubt: replaces the decision of ``rule`` if an earlier attempt may have been applied; for rules that
                cannot tell so from the state.
        """
        decision: Decision | None = None

        def change(text: str | None, doubt: bool) -> tuple[str, int | None] | None:
            nonlocal decision
            decision = in_doubt if doubt and in_doubt else rule(self.parse(text))
            if decision.action is not Action.WRITE or decision.state is None:
                return None
            return rules.dump(decision.state), decision.ttl

        response, index = self.change(self.state_path, change, deadline)
        assert decision is not None  # change() has run
        logger.debug("rendezvous '%s': %s: %s", self.run_id, decision.action.name, decision.reason)
        return decision, self._update_view(response, index)

    def change(
        self, path: str, change: Callable[[str | None, bool], tuple[str, int | None] | None], deadline: float
    ) -> tuple[Any, int]:
        """Replace the value of a key atomically.

        Args:
            path: the key.
            change: takes the value (None: the key does not exist) and whether an earlier attempt may have been
                applied; returns the new value and its time to live in seconds, or None for no change.
            deadline: on the monotonic clock.

        Returns:
            The same as :meth:`read`.
        """
        address = key_path(path)
        response, index = None, 0
        lost: list[int | None] = []  # the index that a write with an unknown outcome should have replaced

        def token() -> int | None:
            return None if response is None else int(response.modifiedIndex)

        def read() -> tuple[tuple[str, int | None], Any] | None:
            nonlocal response, index
            response, index = self.read(path, deadline)
            return None if response is None else ((response.value, None), token())

        def decide(current: tuple[str, int | None] | None) -> tuple[str, int | None] | None:
            return change(None if current is None else current[0], bool(lost) and lost != [token()])

        def write(
            wanted: tuple[str, int | None], expected: int | None
        ) -> tuple[tuple[str, int | None], Any, bool] | None:
            nonlocal response, index
            condition = {"prevExist": False} if expected is None else {"prevIndex": expected}
            try:
                response = self._send(
                    f"write '{path}'", lambda: self.client.write(address, wanted[0], wanted[1], **condition)
                )
            except (self._etcd.EtcdCompareFailed, self._etcd.EtcdAlreadyExist, self._etcd.EtcdKeyNotFound):
                current = read()
                return None if current is None else (*current, False)
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                lost[:] = [expected]
                return None
            index = max(response.etcd_index, response.modifiedIndex)
            return wanted, token(), True

        compare_and_swap(read, write, decide, Backoff(base=0.01, cap=1.0), deadline)
        return response, index

    # Rounds.

    def next_version(self, deadline: float) -> str:
        """Count a new round, and return its version."""

        def change(text: str | None, doubt: bool) -> tuple[str, None]:
            # If etcd has deleted the counter, a new round must still not get the number of an earlier one.
            return str(max(self._counter(text), self._last_version) + 1), None

        response, _ = self.change(self.counter_path, change, deadline)
        return str(response.value)

    def _counter(self, text: str | None) -> int:
        if not text:
            return 0
        if not rules.is_version(text):
            raise RendezvousStateError(
                f"the etcd key '{self.counter_path}' contains {quoted(text)}, which is not the number of a round: "
                f"another program wrote it; choose another run id or prefix"
            )
        return int(text)

    def keep_alives(self, version: str, deadline: float) -> set[str]:
        """Return the keys in the directory of a round, among them the keep-alives of its live participants."""
        response, _ = self.read(self.path(f"/rdzv/v_{version}"), deadline)
        return set() if response is None else {child.key for child in response.children}

    def keep_alive(self, path: str, ttl: int) -> threading.Event:
        """Renew a key, so that etcd does not delete it after ``ttl`` seconds.

        Returns:
            An event: renewing ends when it is set, or when this object is deleted.
        """
        this = weakref.ref(self)

        def is_needed() -> bool:
            directory = this()
            return directory is not None and rules.keeps_alive(directory.read_state().state, path)

        stop = lease.keep_alive(self.client, path, ttl, is_needed)
        weakref.finalize(self, stop.set).atexit = False
        return stop

    def store(self, version: str) -> EtcdStore:
        """Return the key-value store of a round."""
        path = self.path(f"/rdzv/v_{version}/kv")
        self.create_directory(path)
        return EtcdStore(self.client, path)
