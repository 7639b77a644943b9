"""The states of a member, and the only code that changes them.

    IDLE         The node takes part in no round and no join is under way.
    ENTERING     It gets a lease and a watch, and writes its key.
    WAITING      Its key is written: it waits until it is in the roster of a complete round.
    STANDING_BY  It is a spare: the complete round has no room for it. Its join timeout does not run.
    MEETING      It is in the roster: it publishes or awaits the bootstrap.
    IN_ROUND     It is a member of the round, and the join has returned.
    LOST         The join has returned, but etcd has ended the node's lease: the other members count it as lost.

Legal transitions:

    IDLE        -> ENTERING                        a join begins
    ENTERING    -> WAITING                         the key is written
    WAITING     -> STANDING_BY | MEETING           the round has no room for the node | the roster contains it
    WAITING     -> ENTERING                        the lease ended: enter again with a new one
    STANDING_BY -> WAITING | MEETING | ENTERING    the next round forms | as for WAITING
    MEETING     -> IN_ROUND | LOST                 the bootstrap is known | and the lease has ended meanwhile
    MEETING     -> ENTERING                        the round broke before rank 0 published the bootstrap
    IN_ROUND    -> LOST | ENTERING                 the lease ended | the next join begins
    LOST        -> ENTERING                        the next join begins
    every state -> IDLE                            the node left the run, or its join failed or was cancelled

All other transitions raise :class:`IllegalTransitionError`.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["IllegalTransitionError", "Lifecycle", "State"]


class State(Enum):
    """The states of a member."""

    IDLE = "idle"
    ENTERING = "entering"
    WAITING = "waiting"
    STANDING_BY = "standing by"
    MEETING = "meeting"
    IN_ROUND = "in the round"
    LOST = "lost"


_NEXT: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.ENTERING}),
    State.ENTERING: frozenset({State.WAITING}),
    State.WAITING: frozenset({State.STANDING_BY, State.MEETING, State.ENTERING}),
    State.STANDING_BY: frozenset({State.WAITING, State.MEETING, State.ENTERING}),
    State.MEETING: frozenset({State.IN_ROUND, State.LOST, State.ENTERING}),
    State.IN_ROUND: frozenset({State.LOST, State.ENTERING}),
    State.LOST: frozenset({State.ENTERING}),
}

_JOINING = frozenset({State.ENTERING, State.WAITING, State.STANDING_BY, State.MEETING})


class IllegalTransitionError(RuntimeError):
    """The transition is not in the list above: a call came at the wrong time, or there is a fault in this package."""


class Lifecycle:
    """The state of one member."""

    def __init__(self) -> None:
        self._state = State.IDLE

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    @property
    def joining(self) -> bool:
        """Whether a join is under way."""
        return self._state in _JOINING

    def begin_join(self) -> None:
        """Go to ENTERING with a new join. Raises IllegalTransitionError if a join is under way."""
        if self.joining:
            raise IllegalTransitionError(f"a join is already under way: the node is {self._state.value}")
        self.become(State.ENTERING)

    def become(self, state: State) -> None:
        """Go to ``state``. Raises IllegalTransitionError."""
        if state is not State.IDLE and state not in _NEXT[self._state]:
            raise IllegalTransitionError(f"a node that is {self._state.value} cannot become {state.value}")
        self._state = state
