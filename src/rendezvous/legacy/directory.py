"""One job's directory in etcd: its keys, and what the legacy protocol asks of etcd.

<prefix>/run_<run id>/                        renewed while a node lives, so that a dead job leaves nothing
<prefix>/run_<run id>/rdzv/active_version     the state that ``rules`` is about
<prefix>/run_<run id>/rdzv/version_counter    the number of the last round
<prefix>/run_<run id>/rdzv/v_<n>/rank_<k>     the keep-alive of a participant of round n
<prefix>/run_<run id>/rdzv/v_<n>/kv/...       the store of round n
<prefix>/run_<run id>/rdzv/v_<n>/extra_data   what nodes told one another in round n: one JSON object
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rendezvous._core import Backoff, compare_and_swap
from rendezvous.api import RendezvousConnectionError, RendezvousStateError, RendezvousTimeoutError
from rendezvous.etcd.v2.client import etcd_module, key_path, persist, translate_errors
from rendezvous.etcd.v2.store import EtcdStore
from rendezvous.legacy import lease, rules
from rendezvous.legacy.rules import Action, Decision, State

__all__ = ["EtcdRun", "View"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Seconds for a request that belongs to no round.
_PATIENCE = 30.0

# Seconds after which a node that waits asks anyway: a connection may have died without a word.
_LONGEST_WATCH = 10.0


class View(NamedTuple):
    """The state as etcd gave it."""

    answer: Any
    """etcd's answer; None where there is no state."""
    state: State | None
    etcd_index: int
    """etcd's index at that moment: changes since then have a greater one."""
    seen_at: float


class EtcdRun:
    """One job's directory in etcd.

    Args:
        client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        prefix: the directory of all jobs.
        run_id: the name of the job.
        timeout: how many seconds :meth:`load_extra_data` waits unless told otherwise.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: etcd cannot be reached.
        ValueError: the run id is empty, or names another directory (``..``).
    """

    def __init__(self, client: Any, prefix: str, run_id: str, timeout: float) -> None:
        if not run_id:
            raise ValueError("The run id must not be empty.")
        self._etcd = etcd_module()
        self.client = client
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"
        self._run_id = run_id
        self._timeout = timeout
        self._view = View(None, None, 0, float("-inf"))
        self._state_path = self.get_path("/rdzv/active_version")
        key_path(self._state_path)
        self._known_version = 0
        self._lease_run_id_stop: threading.Event | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Make the directories, where they are not there: not yet, or no more."""
        if self._prefix != "/":
            self.create_path_if_not_exists(self._prefix)
        self.create_path_if_not_exists(self.get_path(""), ttl=rules.RUN_TTL)
        self.create_path_if_not_exists(self.get_path("/rdzv"))
        self._create(self.get_path("/rdzv/version_counter"), "0")
        if self._lease_run_id_stop is not None:
            self._lease_run_id_stop.set()
        self._lease_run_id_stop = self.setup_lease_renewal(self.get_path(""), rules.RUN_TTL)

    @property
    def run_id(self) -> str:
        """The name of the job."""
        return self._run_id

    @property
    def timeout(self) -> float:
        """How many seconds a round may take to form."""
        return self._timeout

    # Keys and directories.

    def get_path(self, path: str) -> str:
        """Return the key of ``path``, which is relative to the job's directory."""
        return f"{self._prefix}run_{self._run_id}/{path.removeprefix('/')}"

    def create_path_if_not_exists(self, full_path: str, ttl: int | None = None) -> None:
        """Create a directory, to be deleted ``ttl`` seconds from now unless renewed."""
        self._create(full_path, None, ttl, dir=True)

    def _create(self, path: str, value: str | None, ttl: int | None = None, **options: Any) -> None:
        address = key_path(path)
        try:
            self._persist(
                f"create '{path}'", lambda: self.client.write(address, value, ttl, prevExist=False, **options)
            )
        except self._etcd.EtcdAlreadyExist:
            pass

    def setup_lease_renewal(self, full_path: str, ttl: int) -> threading.Event:
        """Keep a key from being deleted after ``ttl`` seconds; until the event is set, or this object is no more."""
        this = weakref.ref(self)

        def is_missed() -> bool:
            run = this()
            return run is not None and rules.keeps_alive(run._look().state, full_path)

        stop = lease.keep_alive(self.client, full_path, ttl, is_missed)
        weakref.finalize(self, stop.set).atexit = False
        return stop

    # Requests, and what becomes of them when etcd cannot be reached.

    def _what(self, what: str) -> str:
        return f"the rendezvous '{self._run_id}' cannot {what} in etcd"

    def _request(self, what: str, call: Callable[[], _T]) -> _T:
        """Return ``call()``, which may be harmful to repeat."""
        return self._explain(lambda: translate_errors(self._what(what), call))

    def _persist(self, what: str, call: Callable[[], _T], deadline: float | None = None) -> _T:
        """Return ``call()``, tried again while etcd cannot be reached; ``call`` must be harmless to repeat."""
        limit = time.monotonic() + _PATIENCE if deadline is None else deadline
        return self._explain(lambda: persist(self._what(what), call, limit))

    def _explain(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (self._etcd.EtcdNotFile, self._etcd.EtcdNotDir) as exc:
            raise RendezvousStateError(
                f"the rendezvous '{self._run_id}' needs directories below '{self._prefix}' in etcd where there are "
                f"other keys; choose another run id or prefix ({exc})"
            ) from exc

    def _read(self, path: str, deadline: float | None = None) -> tuple[Any, int]:
        """Return etcd's answer for ``path`` (None where there is none) and etcd's index at that moment."""
        known = self._view.etcd_index
        answer, index = self._read_once(path, deadline)
        if index < known:
            # A member that lags behind the others answered, or etcd has lost its data: let a quorum say.
            answer, index = self._read_once(path, deadline, quorum=True)
        return answer, index

    def _read_once(self, path: str, deadline: float | None, **options: Any) -> tuple[Any, int]:
        address = key_path(path)
        try:
            answer = self._persist(f"read '{path}'", lambda: self.client.read(address, **options), deadline)
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return answer, max(answer.etcd_index, answer.modifiedIndex)

    def _watch(self, path: str, index: int, timeout: float, recursive: bool | None = None) -> Any:
        """Return the first change after ``index``; None where the time is up, or etcd does not tell."""
        address = key_path(path)
        limit = min(timeout, _LONGEST_WATCH)
        if limit <= 0:
            return None
        try:
            return self._request(
                f"watch '{path}'", lambda: self.client.watch(address, index + 1, timeout=limit, recursive=recursive)
            )
        except (self._etcd.EtcdWatchTimedOut, self._etcd.EtcdEventIndexCleared):
            return None
        except RendezvousConnectionError as exc:
            # The read that follows meets the same trouble and deals with it; unless etcd answers reads alone.
            logger.debug("%s", exc)
            time.sleep(min(0.1, limit))
            return None

    # The state.

    def get_rdzv_state(self) -> tuple[Any, State]:
        """Return etcd's answer for the state, and the state.

        Raises:
            etcd.EtcdKeyNotFound: there is none.
            RendezvousConnectionError: etcd cannot be reached.
            RendezvousStateError: it is not a state of this protocol.
        """
        view = self._look()
        if view.state is None:
            raise self._etcd.EtcdKeyNotFound(f"Key not found : {self._state_path}")
        return view.answer, view.state

    def _look(self, deadline: float | None = None) -> View:
        return self._seen(*self._read(self._state_path, deadline))

    def _seen(self, answer: Any, index: int) -> View:
        state = self._parse(None if answer is None else answer.value)
        if state is not None and "version" in state:
            self._known_version = max(self._known_version, int(state["version"]))
        self._view = View(answer, state, index, time.monotonic())
        return self._view

    def _parse(self, text: str | None) -> State | None:
        try:
            return rules.parse(text)
        except RendezvousStateError as exc:
            raise RendezvousStateError(f"the etcd key '{self._state_path}' is not of this protocol: {exc}") from exc

    def peek(self, max_age: float) -> State | None:
        """Return the state, not older than ``max_age`` seconds; as last seen where etcd cannot be reached.

        Raises:
            RendezvousStateError: it is not a state of this protocol.
        """
        if time.monotonic() - self._view.seen_at >= max_age:
            try:
                self._look(deadline=time.monotonic())
            except RendezvousConnectionError as exc:
                logger.warning("%s; going by what was known before", exc)
                self._view = self._view._replace(seen_at=time.monotonic())
        return self._view.state

    def _swap(
        self, rule: Callable[[State | None], Decision], deadline: float, in_doubt: Decision | None = None
    ) -> tuple[Decision, View]:
        """Ask ``rule`` what to do and, where that is to write, write it for all nodes.

        Args:
            rule: one of the rules.
            deadline: on the monotonic clock.
            in_doubt: decides instead of ``rule`` once it cannot be known whether an earlier attempt was applied; for
                rules that do not see it in the state.
        """
        decision: Decision | None = None

        def change(text: str | None, doubt: bool) -> tuple[str, int | None] | None:
            nonlocal decision
            decision = in_doubt if doubt and in_doubt else rule(self._parse(text))
            if decision.action is not Action.WRITE or decision.state is None:
                return None
            return rules.dump(decision.state), decision.ttl

        answer, index = self._change(self._state_path, change, deadline)
        assert decision is not None  # change() has run
        logger.debug("rendezvous '%s': %s: %s", self._run_id, decision.action.name, decision.reason)
        return decision, self._seen(answer, index)

    def _change(
        self, path: str, change: Callable[[str | None, bool], tuple[str, int | None] | None], deadline: float
    ) -> tuple[Any, int]:
        """Replace the value of a key, atomically.

        Args:
            path: the key.
            change: takes the value (None: there is none) and whether an earlier attempt may have been applied since;
                returns the new value and its time to live in seconds, or None for no change.
            deadline: on the monotonic clock.

        Returns:
            As :meth:`_read`.
        """
        address = key_path(path)
        answer, index = None, 0
        lost: list[int | None] = []  # the token of a write whose outcome is not known

        def token() -> int | None:
            return None if answer is None else int(answer.modifiedIndex)

        def read() -> tuple[tuple[str, int | None], Any] | None:
            nonlocal answer, index
            answer, index = self._read(path, deadline)
            return None if answer is None else ((answer.value, None), token())

        def decide(current: tuple[str, int | None] | None) -> tuple[str, int | None] | None:
            return change(None if current is None else current[0], bool(lost) and lost != [token()])

        def write(
            wanted: tuple[str, int | None], expected: int | None
        ) -> tuple[tuple[str, int | None], Any, bool] | None:
            nonlocal answer, index
            condition = {"prevExist": False} if expected is None else {"prevIndex": expected}
            try:
                answer = self._request(
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
            index = max(answer.etcd_index, answer.modifiedIndex)
            return wanted, token(), True

        compare_and_swap(read, write, decide, Backoff(base=0.01, cap=1.0), deadline)
        return answer, index

    def _delete(self, answer: Any) -> None:
        """Delete the state that ``answer`` is; where another is there by now, leave it."""
        address = key_path(self._state_path)
        try:
            self._request("delete the state", lambda: self.client.delete(address, prevIndex=answer.modifiedIndex))
        except (self._etcd.EtcdCompareFailed, self._etcd.EtcdKeyNotFound):
            pass

    # What nodes of a round tell one another.

    def setup_kv_store(self, rdzv_version: str) -> EtcdStore:
        """Return the key-value store of a round."""
        path = self.get_path(f"/rdzv/v_{rdzv_version}/kv")
        self.create_path_if_not_exists(path)
        return EtcdStore(self.client, path)

    def store_extra_data(self, rdzv_version: str, key: str, value: Any) -> None:
        """Tell the nodes of a round ``value``, anything that JSON can hold, under ``key``."""

        def change(text: str | None, doubt: bool) -> tuple[str, None] | None:
            data = json.loads(text) if text else {}
            return None if data.get(key, ...) == value else (json.dumps({**data, key: value}), None)

        self._change(self._extra_data(rdzv_version), change, time.monotonic() + _PATIENCE)

    def load_extra_data(self, rdzv_version: str, key: str, timeout: float | None = None) -> Any:
        """Return what a node of the round told under ``key``; wait until one has.

        Args:
            rdzv_version: the round.
            key: the key.
            timeout: seconds; the time-out of the rendezvous unless given.

        Raises:
            RendezvousTimeoutError: no node told it in time.
        """
        path = self._extra_data(rdzv_version)
        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            answer, index = self._read(path, max(deadline, time.monotonic()))
            data = {} if answer is None else json.loads(answer.value)
            if key in data:
                return data[key]
            left = deadline - time.monotonic()
            if left <= 0:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._run_id}' timed out: no node of round {rdzv_version} told '{key}' within "
                    f"{seconds:g} s."
                )
            self._watch(path, index, left)

    def _extra_data(self, rdzv_version: str) -> str:
        return self.get_path(f"/rdzv/v_{rdzv_version}/extra_data")
