"""Every decision about a round of the dynamic rendezvous: pure functions of state and time.

A rule takes the state, after :func:`expire`, and returns what the node does next and the reason. :func:`apply` carries
out the actions that change the state; nothing else changes it. The rules are those that torch documents for its
dynamic rendezvous:

    The round forms.       Nodes join as participants. With ``min_nodes`` of them the last call starts. When it is
                           over, or with ``max_nodes``, the round is complete and each participant has a rank. If
                           fewer than ``min_nodes`` are left, the last call is cancelled.
    The round is complete. A new node is added to the wait list, or, if the round is full, to the redundancy list. A
                           participant that wants the next round leaves this one and waits. When the last participant
                           has left, the next round forms, and the nodes of both lists join it.
    A node stops.          Once its heartbeat is older than ``expiry``, another node removes it.
    It is closed.          No node can join any more. This never changes.

Times are in milliseconds since the epoch. ``late`` is in seconds, and negative before the deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from rendezvous._core import Role, State
from rendezvous.utils import listed

__all__ = [
    "ROLLBACK",
    "Action",
    "Decision",
    "Limits",
    "Node",
    "apply",
    "close",
    "expire",
    "join",
    "keep_alive",
    "leave",
    "next_event",
    "who_is_missing",
]

ROLLBACK = 5.0
"""Seconds after its deadline in which a node that gives up still removes itself from the state."""


class Node(NamedTuple):
    """A node: the address of its host, the id of its process, and its number within the process."""

    addr: str
    pid: int
    local_id: int

    def __str__(self) -> str:
        return f"{self.addr}_{self.pid}_{self.local_id}"


@dataclass(frozen=True)
class Limits:
    """The numbers of nodes and the times, in milliseconds, that the rules depend on."""

    min_nodes: int
    max_nodes: int
    last_call: int
    keep_alive_interval: int
    expiry: int


class Action(Enum):
    """What a node does next."""

    FINISH = auto()
    WAIT = auto()
    KEEP_ALIVE = auto()
    ADD_TO_PARTICIPANTS = auto()
    ADD_TO_WAIT_LIST = auto()
    ADD_TO_REDUNDANCY_LIST = auto()
    REMOVE = auto()
    MARK_COMPLETE = auto()
    MARK_CLOSED = auto()
    ERROR_CLOSED = auto()
    ERROR_TIMEOUT = auto()
    EXIT_GRACEFULLY = auto()

    @property
    def writes(self) -> bool:
        """Whether this action changes the state; :func:`apply` carries it out."""
        return self in _WRITES


_WRITES = frozenset(
    {
        Action.KEEP_ALIVE,
        Action.ADD_TO_PARTICIPANTS,
        Action.ADD_TO_WAIT_LIST,
        Action.ADD_TO_REDUNDANCY_LIST,
        Action.REMOVE,
        Action.MARK_COMPLETE,
        Action.MARK_CLOSED,
    }
)


@dataclass(frozen=True)
class Decision:
    """An action and its reason."""

    action: Action
    reason: str
    renews_deadline: bool = False
    """Whether the join timeout starts again: it does not run on standby."""


# What a node decides.


def join(state: State, node: Node, limits: Limits, now: int, late: float) -> Decision:
    """Decide the next step of a node that wants to join."""
    role = state.role(node)
    participants = state.count(Role.PARTICIPANT)
    if state.closed:
        if role == Role.REDUNDANT:
            return Decision(Action.EXIT_GRACEFULLY, "the rendezvous closed while the node was on standby")
        return Decision(Action.ERROR_CLOSED, "the rendezvous is closed")
    if role == Role.REDUNDANT:
        if participants >= limits.max_nodes:
            return _wait(state, node, limits, now, f"round {state.round} is full", renews_deadline=True)
        return _enter(state, f"round {state.round} has room again", renews_deadline=True)
    if state.complete and role == Role.PARTICIPANT:
        return Decision(Action.FINISH, f"round {state.round} is complete")
    if late > 0:
        return _give_up(role, late)
    if role == Role.WAITING and state.complete:
        return _wait(state, node, limits, now, f"round {state.round} is not over")
    if role != Role.PARTICIPANT:
        if state.complete and participants >= limits.max_nodes:
            return Decision(Action.ADD_TO_REDUNDANCY_LIST, f"round {state.round} is complete and full")
        if state.complete:
            return _enter(state, f"round {state.round} is complete")
        return _enter(state, f"round {state.round} forms")
    if participants < limits.min_nodes:
        return _wait(state, node, limits, now, f"{participants} of at least {limits.min_nodes} nodes joined")
    if state.deadline is None or now <= state.deadline:
        return _wait(state, node, limits, now, f"last call for round {state.round}")
    return Decision(Action.MARK_COMPLETE, f"the last call for round {state.round} is over")


def _enter(state: State, reason: str, renews_deadline: bool = False) -> Decision:
    action = Action.ADD_TO_WAIT_LIST if state.complete else Action.ADD_TO_PARTICIPANTS
    return Decision(action, reason, renews_deadline)


def _wait(state: State, node: Node, limits: Limits, now: int, reason: str, renews_deadline: bool = False) -> Decision:
    if _is_due(state, node, limits, now):
        return Decision(Action.KEEP_ALIVE, f"{reason}; a heartbeat is due", renews_deadline)
    return Decision(Action.WAIT, reason, renews_deadline)


def _give_up(role: int | None, late: float) -> Decision:
    if role in (Role.PARTICIPANT, Role.WAITING) and late <= ROLLBACK:
        return Decision(Action.REMOVE, "the join timeout has passed")
    return Decision(Action.ERROR_TIMEOUT, "the join timeout has passed")


def leave(state: State, node: Node, limits: Limits, now: int, late: float) -> Decision:
    """Decide the next step of a node that leaves the round it is in."""
    if state.role(node) != Role.PARTICIPANT:
        return Decision(Action.FINISH, f"the node is not in round {state.round}")
    if late > 0:
        return Decision(Action.ERROR_TIMEOUT, "the node could not leave within the join timeout")
    return Decision(Action.REMOVE, f"the node leaves round {state.round}")


def close(state: State, node: Node, limits: Limits, now: int, late: float) -> Decision:
    """Decide the next step of a node that closes the rendezvous."""
    if state.closed:
        return Decision(Action.FINISH, "the rendezvous is closed")
    if late > 0:
        return Decision(Action.ERROR_TIMEOUT, "the close timeout has passed")
    return Decision(Action.MARK_CLOSED, "the node closes the rendezvous")


def keep_alive(state: State, node: Node, limits: Limits, now: int, late: float) -> Decision:
    """Decide the next step of a node whose heartbeat timer has fired."""
    if state.role(node) in (None, Role.MISSING):
        return Decision(Action.FINISH, f"the node is no longer in round {state.round}")
    if not _is_due(state, node, limits, now):
        return Decision(Action.FINISH, "the last heartbeat is recent")
    if late > 0:
        return Decision(Action.ERROR_TIMEOUT, "the heartbeat timeout has passed")
    return Decision(Action.KEEP_ALIVE, "a heartbeat is due")


def _is_due(state: State, node: Node, limits: Limits, now: int) -> bool:
    heartbeat = state.heartbeat(node)
    return heartbeat is not None and heartbeat <= now - limits.keep_alive_interval


# How the state changes.


def apply(action: Action, state: State, node: Node, limits: Limits, now: int) -> None:
    """Carry out ``action`` on ``state``.

    Raises:
        ValueError: the action does not change the state.
    """
    if not action.writes:
        raise ValueError(f"{action} does not change the state")
    state.started = state.started or now
    state.touch(node, now)  # every write shows that the node is alive
    if action is Action.ADD_TO_PARTICIPANTS:
        state.join(node, now)
        participants = state.count(Role.PARTICIPANT)
        if participants >= limits.max_nodes:
            state.complete_round()
        elif participants >= limits.min_nodes and state.deadline is None:
            state.deadline = now + limits.last_call
    elif action is Action.ADD_TO_WAIT_LIST:
        state.wait(node, now)
    elif action is Action.ADD_TO_REDUNDANCY_LIST:
        state.stand_by(node, now)
    elif action is Action.REMOVE:
        state.leave(node)
        _after_removal(state, limits)
    elif action is Action.MARK_COMPLETE:
        state.complete_round()
    elif action is Action.MARK_CLOSED:
        state.closed = True


def expire(state: State, node: Node, limits: Limits, now: int) -> list[Node]:
    """Remove the nodes whose heartbeat is too old, except this ``node``; return them."""
    heartbeat = state.heartbeat(node)
    state.touch(node, now)
    expired = [Node(*silent) for silent in state.expire(max(0, now - limits.expiry))]
    if heartbeat is not None:
        state.touch(node, heartbeat)  # this node is alive, but its heartbeat may be due
    if expired:
        _after_removal(state, limits)
    return expired


def _after_removal(state: State, limits: Limits) -> None:
    participants = state.count(Role.PARTICIPANT)
    if state.complete and participants == 0:
        state.open_round()
    elif not state.complete and participants < limits.min_nodes:
        state.deadline = None


# Questions about a state.


def next_event(state: State, node: Node, limits: Limits, no_expiry_before: int = 0) -> int:
    """Return when the waiting ``node`` next has something to do, if the state does not change until then.

    Args:
        state: the state.
        node: this node.
        limits: the times.
        no_expiry_before: until when this node removes no other node.
    """
    times = []
    heartbeat = state.heartbeat(node)
    if heartbeat is not None:
        times.append(heartbeat + limits.keep_alive_interval)
    oldest = state.oldest_heartbeat()
    if oldest is not None:
        times.append(max(oldest + limits.expiry + 1, no_expiry_before))
    if state.deadline is not None:
        times.append(state.deadline + 1)
    return min(times, default=0)


def who_is_missing(state: State, limits: Limits) -> str:
    """Return who joined, how many nodes are needed, and who has not returned, for the message of a timeout."""
    if state.complete:
        members = [str(Node(*node)) for node in state.nodes(Role.PARTICIPANT)]
        return f"round {state.round} is complete without this node; its members are still: {listed(members)}"
    came = f"{state.count(Role.PARTICIPANT)} of at least {limits.min_nodes} nodes joined round {state.round}"
    missing = [str(Node(*node)) for node in state.nodes(Role.MISSING)]
    if missing:
        return f"{came}; missing since the previous round: {listed(missing)}"
    joined = [str(Node(*node)) for node in state.nodes(Role.PARTICIPANT)]
    return f"{came}: {listed(joined) or 'none'}"
