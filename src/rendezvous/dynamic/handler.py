"""The dynamic rendezvous: one state that all nodes share, swapped by whoever moves it."""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from rendezvous import config
from rendezvous._core import Role, State
from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    check_nodes,
)
from rendezvous.dynamic import rules
from rendezvous.dynamic.backend import RendezvousBackend, Token
from rendezvous.dynamic.rules import Action
from rendezvous.dynamic.shared_state import Rule, SharedState
from rendezvous.store import PrefixStore, Store

__all__ = [
    "DynamicRendezvousHandler",
    "RendezvousBackend",
    "RendezvousSettings",
    "RendezvousTimeout",
    "Token",
    "create_handler",
]

logger = logging.getLogger(__name__)

# How old an answer to the launcher's polling may be, in seconds.
_MAX_AGE = 1.0


class RendezvousTimeout:
    """The time-outs of a rendezvous.

    Args:
        join: within which a round must be complete; 600 s unless given.
        last_call: how long a round with enough nodes waits for more; 30 s.
        close: within which closing must succeed; 30 s.
        heartbeat: within which a heartbeat must succeed; 5 s.

    Raises:
        ValueError: one is not positive.
    """

    def __init__(
        self,
        join: timedelta | None = None,
        last_call: timedelta | None = None,
        close: timedelta | None = None,
        heartbeat: timedelta | None = None,
    ) -> None:
        self._join = self._positive("join", join, 600)
        self._last_call = self._positive("last call", last_call, 30)
        self._close = self._positive("close", close, 30)
        self._heartbeat = self._positive("heartbeat", heartbeat, 5)

    @staticmethod
    def _positive(name: str, timeout: timedelta | None, default: int) -> timedelta:
        timeout = timedelta(seconds=default) if timeout is None else timeout
        if timeout <= timedelta(0):
            raise ValueError(f"The {name} timeout ({timeout}) must be positive.")
        return timeout

    @property
    def join(self) -> timedelta:
        """Within which a round must be complete."""
        return self._join

    @property
    def last_call(self) -> timedelta:
        """How long a round with enough nodes waits for more."""
        return self._last_call

    @property
    def close(self) -> timedelta:
        """Within which closing must succeed."""
        return self._close

    @property
    def heartbeat(self) -> timedelta:
        """Within which a heartbeat must succeed."""
        return self._heartbeat


@dataclass(repr=False, eq=False, frozen=True)
class RendezvousSettings:
    """The settings of a rendezvous.

    Attributes:
        run_id: the name of the job.
        min_nodes: the least number of nodes of a round.
        max_nodes: the greatest number of nodes of a round.
        timeout: the time-outs.
        keep_alive_interval: how often a node sends a heartbeat.
        keep_alive_max_attempt: after how many missed heartbeats a node counts as dead.
    """

    run_id: str
    min_nodes: int
    max_nodes: int
    timeout: RendezvousTimeout
    keep_alive_interval: timedelta
    keep_alive_max_attempt: int


class DynamicRendezvousHandler(RendezvousHandler):
    """Takes one node through the rounds of a rendezvous whose state stands in ``backend``.

    Args:
        node: this node.
        settings: the settings, the same on all nodes.
        backend: where the state is.
        store: where the rounds' key-value stores are.
        serve: called on rank 0 of each round with this node's address; starts what the workers meet at and
            returns its port. A free port is published unless given.

    Raises:
        ValueError: the run id is empty, or the numbers of nodes are out of range.
    """

    _local_ids: ClassVar = itertools.count()

    @classmethod
    def from_backend(
        cls,
        run_id: str,
        store: Store,
        backend: RendezvousBackend,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        timeout: RendezvousTimeout | None = None,
        keep_alive_interval: float = 5,
        keep_alive_max_attempt: int = 3,
        serve: Callable[[str], int] | None = None,
    ) -> DynamicRendezvousHandler:
        """Make a handler for a new node of this process; the class and its settings describe the arguments."""
        node = rules.Node(local_addr or socket.getfqdn(), os.getpid(), next(cls._local_ids))
        settings = RendezvousSettings(
            run_id,
            min_nodes,
            max_nodes,
            timeout or RendezvousTimeout(),
            timedelta(seconds=keep_alive_interval),
            keep_alive_max_attempt,
        )
        return cls(node, settings, backend, store, serve)

    def __init__(
        self,
        node: rules.Node,
        settings: RendezvousSettings,
        backend: RendezvousBackend,
        store: Store,
        serve: Callable[[str], int] | None = None,
    ) -> None:
        if not settings.run_id:
            raise ValueError("The run id must not be empty.")
        check_nodes(settings.min_nodes, settings.max_nodes)
        self._node = node
        self._settings = settings
        self._backend_name = backend.name
        self._store = store
        self._serve = serve
        interval = _milliseconds(settings.keep_alive_interval)
        limits = rules.Limits(
            settings.min_nodes,
            settings.max_nodes,
            _milliseconds(settings.timeout.last_call),
            interval,
            interval * settings.keep_alive_max_attempt,
        )
        self._limits = limits
        self._shared = SharedState(backend, node, limits, settings.run_id)
        self._stop_heartbeats: Callable[[], None] = lambda: None
        self._joined_before = False

    @property
    def settings(self) -> RendezvousSettings:
        """The settings of the rendezvous."""
        return self._settings

    @property
    def node(self) -> rules.Node:
        """The node that this handler stands for."""
        return self._node

    def get_backend(self) -> str:
        """See :meth:`RendezvousHandler.get_backend`."""
        return self._backend_name

    def get_run_id(self) -> str:
        """See :meth:`RendezvousHandler.get_run_id`."""
        return self._settings.run_id

    # Joining a round.

    def next_rendezvous(self) -> RendezvousInfo:
        """See :meth:`RendezvousHandler.next_rendezvous`."""
        self._stop_heartbeats()
        self._spread_first_joins()
        timeout = self._settings.timeout.join
        deadline = _deadline(timeout)
        while True:
            self._run(rules.leave, deadline, timeout)
            state, deadline = self._run(rules.join, deadline, timeout)
            self._start_heartbeats()
            info = self._meet(state, deadline)
            if info is not None:
                return info
            self._stop_heartbeats()

    def _spread_first_joins(self) -> None:
        # The nodes of a job start together. Spread over the time that their writes take anyway, fewer collide.
        if not self._joined_before:
            self._joined_before = True
            time.sleep(random.uniform(0, min(2.0, self._limits.min_nodes * 0.005)))

    def _run(self, rule: Rule, deadline: float, timeout: timedelta) -> tuple[State, float]:
        """Follow ``rule`` to its end; return the state then, and the deadline, which standing by renews."""
        blame: str | None = None
        while True:
            decision, state = self._shared.update(rule, deadline)
            action = decision.action
            if decision.renews_deadline:
                deadline = _deadline(timeout)
            if action is Action.FINISH:
                return state, deadline
            if action is Action.WAIT:
                self._shared.wait(deadline)
            elif action is Action.ERROR_CLOSED:
                raise RendezvousClosedError(f"The rendezvous '{self._settings.run_id}' is closed.")
            elif action is Action.EXIT_GRACEFULLY:
                raise RendezvousGracefulExitError(
                    f"The rendezvous '{self._settings.run_id}' closed while node {self._node} stood by."
                )
            elif action is Action.ERROR_TIMEOUT:
                blame = blame or rules.who_is_missing(state, self._limits)
                raise RendezvousTimeoutError(self._complaint(decision, timeout, blame))
            if action is not Action.REMOVE:
                blame = rules.who_is_missing(state, self._limits)

    def _complaint(self, decision: rules.Decision, timeout: timedelta, blame: str) -> str:
        return (
            f"The rendezvous '{self._settings.run_id}' timed out for node {self._node}: {decision.reason} "
            f"({timeout.total_seconds():g} s); {blame}."
        )

    def _meet(self, state: State, deadline: float) -> RendezvousInfo | None:
        """Return the outcome of the round, or None where it broke before rank 0 said where the workers meet."""
        rank, world_size = state.rank(self._node), state.world_size
        assert rank is not None  # the rule said that the round is complete with this node
        # The start keeps apart what an older rendezvous of the same run id has left in the store.
        prefix = f"torch.rendezvous.{self._settings.run_id}.{state.round}.{state.started}"
        store = PrefixStore(prefix, self._store)
        port = self._serve(self._node.addr) if rank == 0 and self._serve is not None else None
        if rank != 0 and not self._address_came(store, state, deadline):
            return None
        bootstrap = RendezvousStoreInfo.build(rank, store, self._node.addr, port)
        logger.info(
            "node %s joined round %d of the rendezvous '%s' as rank %d of %d",
            self._node,
            state.round,
            self._settings.run_id,
            rank,
            world_size,
        )
        return RendezvousInfo(store, rank, world_size, bootstrap)

    def _address_came(self, store: Store, joined: State, deadline: float) -> bool:
        """Wait for rank 0's address; False where rank 0 is gone, so that the round must form again."""
        host = joined.node_of_rank(0)
        expiry = timedelta(milliseconds=self._limits.expiry)
        keys = [RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY]
        while True:
            left = timedelta(seconds=max(0.0, deadline - time.monotonic()))
            try:
                store.wait(keys, min(expiry, left))
                return True
            except LookupError:
                state = self._shared.peek(_MAX_AGE)
            except RendezvousConnectionError as exc:
                if not exc.retryable or not left:
                    raise
                self._shared.spare_the_others()
                logger.warning("node %s still asks where to meet in round %d: %s", self._node, joined.round, exc)
                continue
            if state.round != joined.round or host is None or state.rank(host) != 0:
                logger.warning("rank 0 of round %d left before it said where to meet; joining again", joined.round)
                return False
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._settings.run_id}' timed out for node {self._node}: rank 0 of round "
                    f"{joined.round}, {rules.Node(*host)}, is alive but has not said where the workers meet."
                )

    # What the launcher asks.

    def is_closed(self) -> bool:
        """See :meth:`RendezvousHandler.is_closed`. While etcd cannot be reached, the last known answer stands."""
        return self._shared.peek(_MAX_AGE).closed

    def num_nodes_waiting(self) -> int:
        """See :meth:`RendezvousHandler.num_nodes_waiting`, and :meth:`is_closed` on an etcd that is down."""
        return self._shared.peek(_MAX_AGE).count(Role.WAITING)

    def set_closed(self) -> None:
        """See :meth:`RendezvousHandler.set_closed`."""
        timeout = self._settings.timeout.close
        self._run(rules.close, _deadline(timeout), timeout)

    def shutdown(self) -> bool:
        """See :meth:`RendezvousHandler.shutdown`."""
        self._stop_heartbeats()
        try:
            self.set_closed()
        except RendezvousError as exc:
            logger.warning("the rendezvous '%s' could not be closed: %s", self._settings.run_id, exc)
            return False
        return True

    # Heartbeats.

    def _start_heartbeats(self) -> None:
        stop = threading.Event()
        interval = self._settings.keep_alive_interval.total_seconds()
        threading.Thread(
            target=_send_heartbeats,
            args=(weakref.ref(self), stop, interval),
            name=f"rendezvous-heartbeat-{self._node.local_id}",
            daemon=True,
        ).start()
        self._stop_heartbeats = stop.set
        weakref.finalize(self, stop.set).atexit = False

    def _send_heartbeat(self, stop: threading.Event) -> None:
        timeout = self._settings.timeout.heartbeat
        try:
            while True:
                decision, state = self._shared.update(rules.keep_alive, _deadline(timeout))
                if stop.is_set():
                    return  # the node has left the round that this heartbeat was for
                if decision.action is not Action.ERROR_TIMEOUT:
                    break
                logger.warning(
                    "node %s sends its heartbeat again: etcd took longer than %g s",
                    self._node,
                    timeout.total_seconds(),
                )
        except RendezvousError as exc:
            logger.warning("node %s failed to send a heartbeat: %s", self._node, exc)
            return
        if decision.action is Action.FINISH and state.role(self._node) in (None, Role.MISSING):
            logger.warning(
                "node %s was taken for dead and is out of the rendezvous '%s': it sent no heartbeat for %g s",
                self._node,
                self._settings.run_id,
                self._limits.expiry / 1000,
            )
            stop.set()


def _send_heartbeats(handler: weakref.ref[DynamicRendezvousHandler], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        target = handler()
        if target is None:
            return
        target._send_heartbeat(stop)
        del target


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


def _deadline(timeout: timedelta) -> float:
    return time.monotonic() + timeout.total_seconds()


def create_handler(
    store: Store,
    backend: RendezvousBackend,
    params: RendezvousParameters,
    serve: Callable[[str], int] | None = None,
) -> DynamicRendezvousHandler:
    """Make a handler from a configuration.

    ``rendezvous config --backend etcd-v2`` lists the configuration keys.

    Raises:
        ValueError: a value is not an integer, is out of range, or contradicts another.
    """
    timeout = RendezvousTimeout(
        timedelta(seconds=config.JOIN_TIMEOUT.read(params)),
        timedelta(seconds=config.last_call_timeout(params, config.Backend.DYNAMIC_V2)),
        timedelta(seconds=config.CLOSE_TIMEOUT.read(params)),
        timedelta(seconds=config.HEARTBEAT_TIMEOUT.read(params)),
    )
    return DynamicRendezvousHandler.from_backend(
        params.run_id,
        store,
        backend,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        timeout,
        config.KEEP_ALIVE_INTERVAL.read(params),
        config.KEEP_ALIVE_MAX_ATTEMPT.read(params),
        serve,
    )
