"""One node's view of the state that all nodes share through a backend."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from rendezvous._core import Backoff, Role, State, compare_and_swap
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.dynamic import rules
from rendezvous.dynamic.backend import RendezvousBackend, Token

__all__ = ["Rule", "SharedState"]

logger = logging.getLogger(__name__)

Rule = Callable[[State, rules.Node, rules.Limits, int, float], rules.Decision]

_LEAST_WAIT = 0.25

# What a look at the state costs at least all in all, in seconds.
_LEAST_LOOK = 0.002


class _View(NamedTuple):
    state: State
    token: Token | None
    read_at: float


class SharedState:
    """Applies rules to the shared state, waits for its changes, and remembers it as last seen.

    Args:
        backend: where the state is.
        node: this node.
        limits: what the rules go by.
        run_id: the name of the job, for errors.
    """

    def __init__(self, backend: RendezvousBackend, node: rules.Node, limits: rules.Limits, run_id: str) -> None:
        self._backend = backend
        self._node = node
        self._limits = limits
        self._run_id = run_id
        self._view = _View(State(), None, float("-inf"))
        self._announced: tuple[bytes, Token] | None = None
        self._rested_at: Token | None = None
        self._look = _LEAST_LOOK
        self._progress = (0, float("inf"))  # how many participants there were, and when: none seen yet
        self._lenient_until = 0
        # Even a node that only waits hears of etcd once in each interval. A second more is no reason to worry.
        interval = limits.keep_alive_interval / 1000
        self._usual_silence = interval + min(1.0, interval / 2)
        self._answered_at = float("-inf")

    @property
    def state(self) -> State:
        """The state as last seen. It is not changed in place: keep it as long as needed."""
        return self._view.state

    def update(self, rule: Rule, deadline: float) -> tuple[rules.Decision, State]:
        """Ask ``rule`` what to do and, where that changes the state, change it for all nodes.

        Args:
            rule: one of the rules.
            deadline: on the monotonic clock; the rule hears how late it is.

        Returns:
            What the rule said, and the state as it is then.

        Raises:
            RendezvousConnectionError: etcd could not be reached until the deadline, or refused the user.
            RendezvousStateError: the state is damaged or foreign.
            RendezvousTimeoutError: other nodes won every race until past the deadline.
        """
        # Back soon after an outage: well before the others may be taken for dead.
        backoff = Backoff(base=0.02, cap=max(0.02, min(2.0, self._limits.keep_alive_interval / 2000)))
        level = logging.WARNING
        while True:
            try:
                return self._swap(rule, deadline)
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                self.spare_the_others()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RendezvousConnectionError(
                        f"rendezvous '{self._run_id}': etcd could not be reached until the time was up: {exc}"
                    ) from exc
                logger.log(level, "rendezvous '%s': %s; trying again", self._run_id, exc)
                level = logging.DEBUG
                time.sleep(min(backoff.next(), left))
            except RendezvousStateError as exc:
                raise RendezvousStateError(f"rendezvous '{self._run_id}': {exc}") from exc

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

        _, token, changed, attempts = compare_and_swap(
            self._read, self._write, change, self._backoff(), deadline + rules.ROLLBACK
        )
        self._view = _View(state, token, time.monotonic())
        if attempts == 0:
            # etcd's part is taken to be as much as this thread's.
            self._look = max(_LEAST_LOOK, 2 * (time.thread_time() - start))
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

    def _backoff(self) -> Backoff:
        """Return the pauses between swaps: long enough for the others' swaps, should all nodes want one at once."""
        nodes = max(self._limits.min_nodes, len(self.state))
        return Backoff(base=min(max(0.01, nodes * self._look / 4), 1.0), cap=2.0)

    def _read(self) -> tuple[bytes, Token] | None:
        announced, self._announced = self._announced, None
        if announced is not None:
            return announced
        current = self._backend.get_state()
        self._etcd_answered()
        return current

    def _write(self, state: bytes, token: Token | None) -> tuple[bytes, Token, bool] | None:
        outcome = self._backend.set_state(state, token)
        self._etcd_answered()
        return outcome

    def _etcd_answered(self) -> None:
        """Note it, before anybody is judged by the answer: the first after a silence is no reason to expire anybody.

        A stall that breaks no connection looks like that, an endpoint that swallows requests until another takes
        over, a pause of this process, and the very first answer: it may be the end of a stall too.
        """
        now = time.monotonic()
        if now - self._answered_at > self._usual_silence:
            self.spare_the_others()
        self._answered_at = now

    def spare_the_others(self) -> None:
        """Expire nobody for a while: while etcd was away the other nodes could not send heartbeats either."""
        self._lenient_until = int(time.time() * 1000) + self._limits.expiry

    def _load(self, data: bytes | None, now: int) -> State:
        state = State() if data is None else State.decode(data)
        if now < self._lenient_until:
            return state
        for node in rules.expire(state, self._node, self._limits, now):
            logger.info("rendezvous '%s': node %s is silent and was taken out", self._run_id, node)
        return state

    def wait(self, deadline: float) -> None:
        """Wait until the state may have changed, or time alone may give this node something to do."""
        event = rules.next_event(self.state, self._node, self._limits, self._lenient_until)
        # Not less for an event that is past: it gave the node nothing to do.
        left = min(max(event / 1000 - time.time(), _LEAST_WAIT), deadline - time.monotonic())
        if left <= 0:
            return
        token = self._view.token
        if token is None or token != self._rested_at:
            # The state moves: let changes gather before the next look. The more nodes wait, and the more a look
            # costs, the longer the pause: about one node at a time looks, and those that still join have room.
            self._rested_at = token
            time.sleep(min(left, self._pause() * random.uniform(0.5, 1.5)))
            return
        try:
            announced = self._backend.watch(token, left)
        except RendezvousConnectionError as exc:
            self.spare_the_others()
            # What update() does next meets the same trouble, and deals with it.
            logger.debug("rendezvous '%s': %s", self._run_id, exc)
            return
        if announced is not None:  # otherwise the time is over, and whether etcd is well is not known
            self._etcd_answered()
            self._announced = announced

    def _pause(self) -> float:
        """Return how long to rest before the next look at a state that moves, in seconds; remember how far it is."""
        participants, now = self.state.count(Role.PARTICIPANT), time.monotonic()
        before, then = self._progress
        self._progress = (participants, now)
        pause = (participants + self.state.count(Role.WAITING)) * self._look
        if participants > before:
            # Longer, until half of those that are missing have come, if they come as the last ones did.
            missing = self._limits.min_nodes - participants
            pause = max(pause, min(4 * pause, missing / (participants - before) * (now - then) / 2))
        return pause

    def peek(self, max_age: float) -> State:
        """Return the state, not older than ``max_age`` seconds; as last seen where etcd cannot be reached.

        Raises:
            RendezvousStateError: the state is damaged or foreign.
        """
        max_age = max(max_age, len(self.state) * self._look)
        if time.monotonic() - self._view.read_at < max_age:
            return self.state
        try:
            current = self._backend.get_state()
        except RendezvousConnectionError as exc:
            self.spare_the_others()
            logger.warning("rendezvous '%s': %s; going by what was known before", self._run_id, exc)
            self._view = self._view._replace(read_at=time.monotonic())
            return self.state
        self._etcd_answered()
        data, token = current if current is not None else (None, None)
        self._view = _View(self._load(data, int(time.time() * 1000)), token, time.monotonic())
        return self.state
