"""The handler of the dynamic rendezvous: all nodes share one state, and each changes it by compare-and-swap."""

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
from rendezvous.dynamic import pacing, rules
from rendezvous.dynamic.backend import RendezvousBackend
from rendezvous.dynamic.rules import Action
from rendezvous.dynamic.settings import RendezvousSettings, RendezvousTimeout
from rendezvous.dynamic.shared_state import Rule, SharedState
from rendezvous.store import PrefixStore, Store

__all__ = ["DynamicRendezvousHandler", "create_handler"]

logger = logging.getLogger(__name__)

# The greatest age, in seconds, of the state that answers the launcher's polling.
_MAX_AGE = 1.0


class DynamicRendezvousHandler(RendezvousHandler):
    """Takes one node through the rounds of a rendezvous whose state is stored in ``backend``.

    Args:
        node: this node.
        settings: the settings, the same on all nodes.
        backend: where the state is stored.
        store: where the key-value stores of the rounds are stored.
        serve: called with this node's address if it has rank 0 in a round; starts the server that the workers
            connect to, and returns its port. By default, a free port is published.

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
        """Create a handler for a new node of this process; see the class and :class:`RendezvousSettings`."""
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
        """The node of this handler."""
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
            info = self._bootstrap(state, deadline)
            if info is not None:
                return info
            self._stop_heartbeats()

    def _spread_first_joins(self) -> None:
        if not self._joined_before:
            self._joined_before = True
            time.sleep(random.uniform(0, pacing.first_join(self._limits.min_nodes)))

    def _run(self, rule: Rule, deadline: float, timeout: timedelta) -> tuple[State, float]:
        """Apply ``rule`` until it finishes; return the state and the deadline, which standby moves."""
        missing: str | None = None
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
                    f"The rendezvous '{self._settings.run_id}' closed while node {self._node} was on standby."
                )
            elif action is Action.ERROR_TIMEOUT:
                missing = missing or rules.who_is_missing(state, self._limits)
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._settings.run_id}' timed out for node {self._node}: {decision.reason} "
                    f"({timeout.total_seconds():g} s); {missing}."
                )
            if action is not Action.REMOVE:
                missing = rules.who_is_missing(state, self._limits)

    def _bootstrap(self, state: State, deadline: float) -> RendezvousInfo | None:
        """Return the outcome of the round; None if rank 0 left before it published its address."""
        rank, world_size = state.rank(self._node), state.world_size
        assert rank is not None  # the rule has found this node in the complete round
        # The start time separates the keys from those that an older rendezvous with the same run id has left.
        prefix = f"torch.rendezvous.{self._settings.run_id}.{state.round}.{state.started}"
        store = PrefixStore(prefix, self._store)
        port = self._serve(self._node.addr) if rank == 0 and self._serve is not None else None
        if rank != 0 and not self._wait_for_rank_0(store, state, deadline):
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

    def _wait_for_rank_0(self, store: Store, joined: State, deadline: float) -> bool:
        """Wait for rank 0's address; return False if rank 0 has left, so that a new round must form."""
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
                self._shared.suspend_expiry()
                logger.warning(
                    "node %s still waits for the address of rank 0 of round %d: %s", self._node, joined.round, exc
                )
                continue
            if state.round != joined.round or host is None or state.rank(host) != 0:
                logger.warning("rank 0 of round %d left before it published its address; joining again", joined.round)
                return False
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._settings.run_id}' timed out for node {self._node}: rank 0 of round "
                    f"{joined.round}, {rules.Node(*host)}, is alive but did not publish its address."
                )

    # Polled by the launcher.

    def is_closed(self) -> bool:
        """See :meth:`RendezvousHandler.is_closed`. While etcd cannot be reached, this is the last known answer."""
        return self._shared.peek(_MAX_AGE).closed

    def num_nodes_waiting(self) -> int:
        """See :meth:`RendezvousHandler.num_nodes_waiting`, and :meth:`is_closed` for an etcd that is down."""
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
                    return  # the node has left the round of this heartbeat
                if decision.action is not Action.ERROR_TIMEOUT:
                    break
                logger.warning(
                    "node %s sends its heartbeat again: etcd did not answer within %g s",
                    self._node,
                    timeout.total_seconds(),
                )
        except RendezvousError as exc:
            logger.warning("node %s failed to send a heartbeat: %s", self._node, exc)
            return
        if decision.action is Action.FINISH and state.role(self._node) in (None, Role.MISSING):
            logger.warning(
                "node %s was taken for dead and removed from the rendezvous '%s': it sent no heartbeat for %g s",
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
