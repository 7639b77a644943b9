"""What the coordinator knows of the nodes, and of the members of the complete round or of the one before."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from rendezvous.coordinated.candidates import Candidate
from rendezvous.coordinated.rules import Counts

__all__ = ["Table"]


class Table:
    """The nodes that have a key, and the members of the round; while it forms, the members of the last round.

    Attributes:
        number: the number of the round.
        is_complete: whether the round is complete.
        nodes: the nodes by id.
        members: the names of the members by id, in the order of the ranks.
        highest: the highest round of which a node says that it was a member; -1 if there is none.
        joined: how many nodes have been added, those that were removed again included.
    """

    def __init__(self) -> None:
        self.number = 0
        self.is_complete = False
        self.nodes: dict[int, Candidate] = {}
        self.members: dict[int, str] = {}
        self.joined = 0
        self._present = self._returned = 0
        self.highest = -1

    def clear(self) -> None:
        """Forget all nodes. The round and its members are kept."""
        self.nodes.clear()
        self._present = self._returned = 0
        self.highest = -1

    def put(self, candidate: Candidate) -> None:
        """Add a node, or replace its record."""
        if not self.remove(candidate.node_id):
            self.joined += 1
        self.nodes[candidate.node_id] = candidate
        self.highest = max(self.highest, candidate.record.last_round)
        self._count(candidate, 1)

    def remove(self, node_id: int) -> bool:
        """Remove a node whose key is gone; return whether there was one."""
        gone = self.nodes.pop(node_id, None)
        if gone is not None:
            self._count(gone, -1)
        return gone is not None

    def _count(self, candidate: Candidate, by: int) -> None:
        if candidate.node_id in self.members:
            if self.is_complete and candidate.record.last_round < self.number:
                self._present += by
            else:
                self._returned += by

    def complete(self, number: int, members: dict[int, str]) -> None:
        """Record that round ``number`` is complete with ``members``: names by id, in the order of the ranks."""
        self._begin(number, True, members)

    def open(self, number: int, last_members: dict[int, str]) -> None:
        """Record that round ``number`` forms, and the members of the last round; none if they are not known."""
        self._begin(number, False, last_members)

    def _begin(self, number: int, is_complete: bool, members: dict[int, str]) -> None:
        self.number, self.is_complete, self.members = number, is_complete, members
        self._present = self._returned = 0
        for candidate in self.nodes.values():
            self._count(candidate, 1)

    def is_anyone_older(self, revision: int) -> bool:
        """Return whether a node joined before ``revision``."""
        return any(candidate.arrival < revision for candidate in self.nodes.values())

    def counts(self, closed: bool) -> Counts:
        """Return how many nodes of each kind there are."""
        inside = self._present + self._returned
        lost, newcomers = len(self.members) - inside, len(self.nodes) - inside
        return Counts(self.is_complete, self._present, self._returned, lost, newcomers, closed)

    def lost(self) -> list[str]:
        """Return the names of the members whose keys are gone."""
        return [name for node_id, name in self.members.items() if node_id not in self.nodes]

    def still_missing(self, names: Sequence[str]) -> list[str]:
        """Return those of ``names``, lost members of the last round, that have not joined again.

        A newcomer on the same host takes the place of one lost member: a restarted node has another process id, and
        so another name. The time is proportional to the number of nodes and names.
        """
        if not names:
            return []
        joined = {candidate.record.name for candidate in self.nodes.values()}
        left = {index: name for index, name in enumerate(names) if name not in joined}
        by_host: defaultdict[str, deque[int]] = defaultdict(deque)
        for index, name in left.items():
            by_host[name.rsplit("_", 2)[0]].append(index)  # the name is <address>_<process id>_<local id>
        for candidate in self.nodes.values():
            if candidate.record.last_round < self.number - 1 and (lost := by_host.get(candidate.record.addr)):
                del left[lost.popleft()]
        return list(left.values())

    def rank_0_gone(self) -> bool:
        """Return whether the member of rank 0 of the complete round has left or is lost."""
        first = next(iter(self.members), None)
        if first is None:
            return False
        candidate = self.nodes.get(first)
        return candidate is None or candidate.record.last_round >= self.number
