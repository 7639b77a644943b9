"""Which nodes become the members of a round, and in which order: pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rendezvous.coordinated.records import NodeRecord
from rendezvous.coordinated.rules import Limits, RankPolicy, usable
from rendezvous.utils import natural_key

__all__ = ["Candidate", "choose"]


class Candidate(NamedTuple):
    """A node that may become a member.

    Attributes:
        node_id: its id.
        arrival: the revision at which its key was created.
        record: what it publishes about itself.
    """

    node_id: int
    arrival: int
    record: NodeRecord


def choose(candidates: Iterable[Candidate], number: int, limits: Limits) -> list[Candidate]:
    """Return the members of round ``number`` in the order of their ranks.

    Members of the last round are preferred, then nodes that arrived earlier.
    """
    pool = sorted(candidates, key=lambda c: (c.record.last_round != number - 1, c.arrival, c.node_id))
    members = pool[: usable(len(pool), limits)]

    def key(candidate: Candidate) -> tuple[object, ...]:
        node = candidate.record
        hint = (node.rank_hint is None, node.rank_hint or 0)
        host = (natural_key(node.topology), natural_key(node.addr), node.pid, node.local_id, candidate.node_id)
        if limits.rank_policy is RankPolicy.STABLE:
            survives = node.last_round == number - 1
            return (hint, not survives, node.last_rank if survives else 0, host)
        if limits.rank_policy is RankPolicy.ARRIVAL:
            return (hint, candidate.arrival, candidate.node_id)
        return (hint, host)

    return sorted(members, key=key)
