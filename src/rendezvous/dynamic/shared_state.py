"""The state that all nodes share through a backend, as one node reads, changes and watches it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from rendezvous._core import Backoff, Role, State, compare_and_swap
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.dynamic import pacing, rules
from rendezvous.dynamic.backend import RendezvousBackend, Token

__all__ = ["Rule", "SharedState"]

logger = logging.getLogger(__name__)

Rule = Callable[[State, rules.Node, rules.Limits, int, float], rules.Decision]


class _View(NamedTuple):
    state: State
    token: Token | None
    read_at: float


class SharedState:
    """Applies rules to the shared state, waits for its changes, and keeps it as last read.

    ``rules`` decides what happens to the state, ``pacing`` when it is read and written.

    Args:
        backend: where the state is stored.
        node: this node.
        limits: the numbers of nodes and the times for the rules.
        run_id: the run id, for messages.
    """

    def __init__(self, backend: RendezvousBackend, node: rules.Node, limits: rules.Limits, run_id: str) -> None:
        self._backend = backend
        self._node = node
        self._limits = limits
        self._run_id = run_id
        self._view = _View(State(), None, float("-inf"))
        self._watched: tuple[bytes, Token] | None = None  # the state that a watch returned, until it is used
        self._settled: Token | None = None  # the token of the state after which this node last paused
        self._progress: pacing.Progress | None = None  # the participants at the last pause
        self._read_cost = pacing.MIN_READ_COST
        self._answered_at = float("-inf")
        self._no_expiry_before = 0

    @property
    def state(self) -> State:
        """The state as last read. It is never changed in place, so that a caller may keep it."""
        return self._view.state

    def update(self, rule: Rule, deadline: float) -> tuple[rules.Decision, State]:
        """Apply ``rule`` to the state and, if it decides to, change the state for all nodes.

        Args:
            rule: one of the rules.
            deadline: on the monotonic clock; the rule receives how late it is.

        Returns:
            The decision of the rule, and the state after it.

        Raises:
            RendezvousConnectionError: etcd could not be reached until the deadline, or refused the user.
            RendezvousStateError: the state is damaged, or was not written by this kind of node.
            RendezvousTimeoutError: other nodes changed the state first, each time until after the deadline.
        """
        backoff = Backoff(*pacing.outage_backoff(self._limits.keep_alive_interval / 1000))
        level = logging.WARNING
        while True:
            try:
                return self._swap(rule, deadline)
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                self.suspend_expiry()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RendezvousConnectionError(
                        f"rendezvous '{self._run_id}': etcd could not be reached until the deadline: {exc}"
                    ) from None
                logger.log(level, "rendezvous '%s': %s; trying again", self._run_id, exc)
                level = logging.DEBUG
                time.sleep(min(backoff.next(), left))
            except RendezvousStateError as exc:
                raise RendezvousStateError(f"rendezvous '{self._run_id}': {exc}") from None

    def _swap(self, rule: Rule, deadline: float) -> tuple[rules.Decision, State]:
        state, decision = State(), None
        start = time.thread_time()

        def change(data: bytes | None) -> bytes | None:
            nonlocal state, decision
            now = int(time.time() * 1000)
            state = self._load(data, now)
            decision = rule(state, self._node, self._limits, now, time.monotonic() - deadline)
            if not decision.action.writes:
                return None
            rules.apply(decision.action, state, self._node, self._limits, now)
            return state.encode()

        backoff = Backoff(*pacing.swap_backoff(len(self.state), self._limits.min_nodes, self._read_cost))
        _, token, changed, attempts = compare_and_swap(
            self._read, self._write, change, backoff, deadline + rules.ROLLBACK
        )
        self._view = _View(state, token, time.monotonic())
        if attempts == 0:
            self._read_cost = pacing.read_cost(time.thread_time() - start)
        assert decision is not None  # change() has run
        logger.debug(
            "rendezvous '%s': node %s: %s: %s%s",
            self._run_id,
            self._node,
            decision.action.name,
            decision.reason,
            f" ({attempts} attempts)" if changed else "",
        )
        return decision, state

    def _read(self) -> tuple[bytes, Token] | None:
        watched, self._watched = self._watched, None
        if watched is not None:
            return watched
        current = self._backend.get_state()
        self._note_answer()
        return current

    def _write(self, state: bytes, token: Token | None) -> tuple[bytes, Token, bool] | None:
        outcome = self._backend.set_state(state, token)
        self._note_answer()
        return outcome

    def _note_answer(self) -> None:
        """Record that etcd has answered. Must run before the answer is used, because it may suspend the expiry."""
        now, limits = time.monotonic(), self._limits
        silence = now - self._answered_at
        grace = pacing.expiry_grace(silence, limits.keep_alive_interval / 1000, limits.expiry / 1000)
        if grace.seconds:
            logger.debug("rendezvous '%s': expiring no node: %s", self._run_id, grace.reason)
            self.suspend_expiry()
        self._answered_at = now

    def suspend_expiry(self) -> None:
        """Expire no node from now until ``expiry`` has passed: during an outage no node could send heartbeats."""
        self._no_expiry_before = int(time.time() * 1000) + self._limits.expiry

    def _load(self, data: bytes | None, now: int) -> State:
        try:
            state = State() if data is None else State.decode(data)
        except RendezvousStateError as exc:
            raise RendezvousStateError(f"{self._backend.place} contains something else than a state: {exc}") from None
        if now < self._no_expiry_before:
            return state
        for node in rules.expire(state, self._node, self._limits, now):
            logger.info("rendezvous '%s': node %s sent no heartbeat and was removed", self._run_id, node)
        return state

    def wait(self, deadline: float) -> None:
        """Wait until the state may have changed, or until the node has something to do without a change."""
        event = rules.next_event(self.state, self._node, self._limits, self._no_expiry_before)
        pause = pacing.wait(event / 1000 - time.time(), deadline - time.monotonic())
        if pause.seconds <= 0:
            return
        token = self._view.token
        if token is None or token != self._settled:
            self._settled = token
            time.sleep(min(pause.seconds, self._settle().seconds * random.uniform(0.5, 1.5)))
            return
        try:
            watched = self._backend.watch(token, pause.seconds)
        except RendezvousConnectionError as exc:
            self.suspend_expiry()
            # update() is called next, and handles the outage.
            logger.debug("rendezvous '%s': %s", self._run_id, exc)
            return
        if watched is not None:  # None after the pause, even if etcd did not answer
            self._note_answer()
            self._watched = watched

    def _settle(self) -> pacing.Pause:
        """Return how long to pause before reading a state that changes, and record how far the round is."""
        before, self._progress = self._progress, pacing.Progress(self.state.count(Role.PARTICIPANT), time.monotonic())
        waiting = self.state.count(Role.WAITING)
        return pacing.settle(before, self._progress, waiting, self._limits.min_nodes, self._read_cost)

    def peek(self, max_age: float) -> State:
        """Return the state, at most ``max_age`` seconds old; older if etcd cannot be reached, or for many nodes.

        Raises:
            RendezvousStateError: the state is damaged, or was not written by this kind of node.
        """
        max_age = pacing.peek_age(max_age, len(self.state), self._read_cost)
        if time.monotonic() - self._view.read_at < max_age:
            return self.state
        try:
            current = self._backend.get_state()
        except RendezvousConnectionError as exc:
            self.suspend_expiry()
            logger.warning("rendezvous '%s': %s; using the last known state", self._run_id, exc)
            self._view = self._view._replace(read_at=time.monotonic())
            return self.state
        self._note_answer()
        data, token = current if current is not None else (None, None)
        self._view = _View(self._load(data, int(time.time() * 1000)), token, time.monotonic())
        return self.state
