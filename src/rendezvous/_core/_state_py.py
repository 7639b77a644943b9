"""The state of a rendezvous: its round, a table of nodes, and its bytes. The pure twin of ``src/_core/state.pyx``.

The table holds each node once, in one of four roles. When a node changes its role is decided in
``rendezvous.dynamic.rules``; the table only stores it.

    participant  takes part in the round that forms, or took part in the one that is complete
    waiting      waits for the next round (torch: wait list)
    redundant    joined a full round (torch: redundancy list)
    missing      took part in the last complete round, left it, and has not joined again

``_state_bytes_py`` describes the bytes.
"""

from __future__ import annotations

from typing import final

from rendezvous._core._nodes_py import (
    MAX_ID,
    MAX_TIME,
    MISSING,
    PARTICIPANT,
    REDUNDANT,
    WAITING,
    Node,
    NodeTuple,
    Table,
    key_of,
)
from rendezvous._core._state_bytes_py import Round, decode, encode
from rendezvous._core._wire_py import integer

__all__ = ["State"]


def _role_of(role: object) -> int:
    return integer(int(role) if isinstance(role, int) else role, "role", MISSING)


@final
class State:
    """The state of one rendezvous. Times are milliseconds since the epoch; a node is (address, pid, local id)."""

    def __init__(self) -> None:
        self._current = Round()
        self._table = Table()

    # The round.

    @property
    def round(self) -> int:
        """The number of the round that forms or is complete, from 0."""
        return self._current.number

    @round.setter
    def round(self, value: int) -> None:
        self._current.number = integer(value, "round", MAX_TIME)

    @property
    def started(self) -> int:
        """The time at which the state was first written; 0 before that."""
        return self._current.started

    @started.setter
    def started(self, value: int) -> None:
        self._current.started = integer(value, "started", MAX_TIME)

    @property
    def deadline(self) -> int | None:
        """When the last call ends, or None if there is no last call."""
        return self._current.deadline

    @deadline.setter
    def deadline(self, value: int | None) -> None:
        self._current.deadline = None if value is None else integer(value, "deadline", MAX_TIME)

    @property
    def closed(self) -> bool:
        """Whether the rendezvous is closed."""
        return self._current.closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._current.closed = bool(value)

    @property
    def complete(self) -> bool:
        """Whether the round is complete."""
        return self._current.complete

    @property
    def world_size(self) -> int:
        """The number of participants when the round became complete; 0 while it forms."""
        return self._current.world_size

    def complete_round(self) -> None:
        """Complete the round: rank the participants from 0 in natural order of address, and remove missing nodes.

        Raises:
            ValueError: the round is complete already.
        """
        if self._current.complete:
            raise ValueError(f"round {self._current.number} is complete already")
        self._current.world_size = self._table.give_ranks()
        self._current.complete = True
        self._current.deadline = None

    def open_round(self) -> None:
        """Begin the next round: its number is one more, it is not complete, and it has no deadline."""
        self.round = self._current.number + 1
        self._current.complete = False
        self._current.deadline = None
        self._current.world_size = 0

    # The nodes.

    def __len__(self) -> int:
        return len(self._table.nodes)

    def count(self, role: int) -> int:
        """Return how many nodes have ``role``."""
        return self._table.counts[_role_of(role)]

    def nodes(self, role: int) -> list[NodeTuple]:
        """Return the nodes that have ``role``, in natural order of address."""
        wanted = _role_of(role)
        return [each.name for each in self._table.in_order() if each.role == wanted]

    def role(self, node: NodeTuple) -> int | None:
        """Return the role of ``node``, or None if it is not in the table."""
        found = self._find(node)
        return None if found is None else found.role

    def rank(self, node: NodeTuple) -> int | None:
        """Return the rank of ``node``, or None if it is not a participant of a complete round."""
        found = self._find(node)
        return found.rank if found is not None and self._current.complete and found.role == PARTICIPANT else None

    def node_of_rank(self, rank: int) -> NodeTuple | None:
        """Return the node that has ``rank`` in the complete round, or None if there is none."""
        integer(rank, "rank", MAX_ID)
        if self._current.complete:
            for each in self._table.nodes.values():
                if each.role == PARTICIPANT and each.rank == rank:
                    return each.name
        return None

    def heartbeat(self, node: NodeTuple) -> int | None:
        """Return the time of the last heartbeat of ``node``, or None if it is not in the table."""
        found = self._find(node)
        return None if found is None else found.heartbeat

    def oldest_heartbeat(self) -> int | None:
        """Return the oldest heartbeat of the nodes that are not missing, or None if there are no such nodes."""
        return min((each.heartbeat for each in self._table.nodes.values() if each.role != MISSING), default=None)

    def join(self, node: NodeTuple, now: int) -> None:
        """Make ``node`` a participant of the round that forms; ``now`` is its heartbeat.

        Raises:
            ValueError: the round is complete.
        """
        if self._current.complete:
            raise ValueError(f"no node can join round {self._current.number}: it is complete")
        self._set_role(node, PARTICIPANT, now)

    def wait(self, node: NodeTuple, now: int) -> None:
        """Put ``node`` on the wait list; ``now`` is its heartbeat."""
        self._set_role(node, WAITING, now)

    def stand_by(self, node: NodeTuple, now: int) -> None:
        """Put ``node`` on the redundancy list; ``now`` is its heartbeat."""
        self._set_role(node, REDUNDANT, now)

    def touch(self, node: NodeTuple, now: int) -> bool:
        """Set the heartbeat of ``node`` to ``now``; return False if it is not in the table, or missing."""
        integer(now, "now", MAX_TIME)
        found = self._find(node)
        if found is None or found.role == MISSING:
            return False
        found.heartbeat = now
        return True

    def leave(self, node: NodeTuple) -> bool:
        """Remove ``node``; if it is a member of the last complete round, it becomes missing.

        Returns False if it is not in the table, or missing already.
        """
        found = self._find(node)
        if found is None or found.role == MISSING:
            return False
        self._table.drop(found)
        return True

    def expire(self, before: int) -> list[NodeTuple]:
        """Remove each node whose heartbeat is older than ``before``, as ``leave`` does, and return these nodes."""
        integer(before, "before", MAX_TIME)
        late = [each for each in self._table.nodes.values() if each.role != MISSING and each.heartbeat < before]
        late.sort(key=lambda each: each.key)
        for each in late:
            self._table.drop(each)
        return [each.name for each in late]

    def _find(self, node: NodeTuple) -> Node | None:
        return self._table.nodes.get(key_of(node).node)

    def _set_role(self, node: NodeTuple, role: int, now: int) -> None:
        self._table.put(key_of(node), role, integer(now, "now", MAX_TIME))

    # The bytes.

    def encode(self) -> bytes:
        """Return the bytes of the state: the same state always gives the same bytes."""
        return encode(self._current, self._table)

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Return the state that was encoded as ``data``.

        Raises:
            RendezvousStateError: ``data`` is not a state that this version can read; the message says why.
        """
        state = cls()
        state._current, state._table = decode(data)
        return state
