"""Every decision that moves a coordinated round: pure functions of what is known, with a reason in words.

The coordinator decides for all, by :func:`coordinate`:

    The round forms.   Each node that is there is a candidate. With ``max_nodes`` of them it completes; with
                       ``min_nodes`` the last call begins, and when that ends it completes; below again, the last
                       call is off. All numbers count whole node units.
    It is complete.    It stays so while any member is in it: a member leaves by asking to join again, or by losing
                       its lease. When none is left, the next round forms.
    Closed             is final.

A node decides for itself, by :func:`follow`, what to make of the round record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from rendezvous.coordinated.records import NodeRecord, RoundRecord
from rendezvous.utils import listed, natural_key

__all__ = [
    "Candidate",
    "Decision",
    "Limits",
    "Move",
    "RankPolicy",
    "Step",
    "Tally",
    "blame",
    "choose",
    "coordinate",
    "follow",
    "least",
    "publish_interval",
    "spares",
    "usable",
    "waiting",
]

_URGENT_MESSAGES_PER_SECOND = 2000
_MESSAGES_PER_SECOND = 500


class RankPolicy(str, Enum):
    """How members are ordered: by host, by their order in the round before, or by arrival."""

    HOST = "host"
    STABLE = "stable"
    ARRIVAL = "arrival"


@dataclass(frozen=True)
class Limits:
    """What the rules go by.

    Attributes:
        min_nodes: the least number of nodes of a round.
        max_nodes: the greatest.
        last_call: seconds that a round with enough nodes waits for more.
        node_unit: the world is a multiple of it.
        upscale: whether a newcomer is a reason to form a larger world.
        reform_on_loss: whether a lost member is a reason to form the world anew.
        rank_policy: how members are ordered.

    Raises:
        ValueError: no multiple of ``node_unit`` lies from ``min_nodes`` to ``max_nodes``.
    """

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    node_unit: int = 1
    upscale: bool = True
    reform_on_loss: bool = True
    rank_policy: RankPolicy = RankPolicy.HOST

    def __post_init__(self) -> None:
        if self.max_nodes - self.max_nodes % self.node_unit < self.min_nodes:
            raise ValueError(
                f"The rendezvous configuration option 'node_unit' ({self.node_unit}) has no multiple from "
                f"{self.min_nodes} to {self.max_nodes}, the numbers of nodes."
            )


def least(limits: Limits) -> int:
    """Return the least number of nodes that makes a round: whole units."""
    return limits.min_nodes + -limits.min_nodes % limits.node_unit


def usable(nodes: int, limits: Limits) -> int:
    """Return how many of ``nodes`` a round can take: whole units, at most the maximum; 0 for too few."""
    most = min(nodes, limits.max_nodes)
    most -= most % limits.node_unit
    return most if most >= limits.min_nodes else 0


# What the coordinator decides.


class Tally(NamedTuple):
    """The nodes, counted.

    Attributes:
        complete: whether the round is complete; while it forms, all nodes are newcomers.
        present: members that are in the round.
        returned: members that have left it and want the next.
        lost: members that are gone.
        newcomers: other nodes.
        closed: whether the rendezvous is closed.
    """

    complete: bool
    present: int
    returned: int
    lost: int
    newcomers: int
    closed: bool = False


class Move(Enum):
    """What the coordinator does."""

    REST = auto()
    OPEN = auto()
    BEGIN_LAST_CALL = auto()
    END_LAST_CALL = auto()
    COMPLETE = auto()


class Decision(NamedTuple):
    """A move and its reason."""

    move: Move
    reason: str


def coordinate(tally: Tally, limits: Limits, last_call_left: float | None) -> Decision:
    """Decide the coordinator's next move.

    Args:
        tally: who is there.
        limits: what the rules go by.
        last_call_left: seconds until the last call ends; None where there is none.
    """
    if tally.closed:
        return Decision(Move.REST, "the rendezvous is closed")
    if tally.complete:
        if tally.present:
            return Decision(Move.REST, f"{tally.present} members are in the round")
        return Decision(Move.OPEN, "every member has left or is lost")
    size = usable(tally.newcomers, limits)
    if size + limits.node_unit > limits.max_nodes:
        return Decision(Move.COMPLETE, f"{size} nodes joined, the most that a round takes")
    if not size:
        reason = f"{tally.newcomers} of at least {least(limits)} nodes joined"
        return Decision(Move.REST if last_call_left is None else Move.END_LAST_CALL, reason)
    if last_call_left is None:
        return Decision(Move.BEGIN_LAST_CALL, f"{tally.newcomers} nodes joined, enough for a round of {size}")
    if last_call_left > 0:
        return Decision(Move.REST, f"last call: {tally.newcomers} nodes joined")
    return Decision(Move.COMPLETE, f"the last call is over: {tally.newcomers} nodes joined")


def _room_for_newcomers(tally: Tally, limits: Limits) -> bool:
    members = tally.present + tally.returned
    size = members + tally.newcomers
    if not limits.upscale:
        size = min(size, members + tally.lost)
    return usable(size, limits) > members


def waiting(tally: Tally, limits: Limits) -> int:
    """Return how many nodes are a reason to leave the complete round and form the next."""
    if not tally.complete or tally.closed:
        return 0
    count = tally.returned
    if limits.reform_on_loss:
        count += tally.lost
    if _room_for_newcomers(tally, limits):
        count += tally.newcomers
    return count


def spares(tally: Tally, limits: Limits) -> int:
    """Return how many nodes the complete round has no place for."""
    return 0 if not tally.complete or _room_for_newcomers(tally, limits) else tally.newcomers


def publish_interval(watchers: int, urgent: bool) -> float:
    """Return the least seconds between two round records: all watchers hear of each.

    Urgent is what makes a running job stop; how far a round has come can wait longer.
    """
    if urgent:
        return max(0.1, watchers / _URGENT_MESSAGES_PER_SECOND)
    return max(1.0, watchers / _MESSAGES_PER_SECOND)


class Candidate(NamedTuple):
    """A node that may take part.

    Attributes:
        node_id: its id.
        arrival: the revision at which it first appeared.
        record: what it says of itself.
    """

    node_id: int
    arrival: int
    record: NodeRecord


def choose(candidates: Iterable[Candidate], number: int, limits: Limits) -> list[Candidate]:
    """Return who takes part in round ``number``, in the order of the ranks.

    Members of the round before go first, then who arrived first.
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


# What a node decides.


class Step(Enum):
    """What a node does that wants to take part."""

    WAIT = auto()
    STAND_BY = auto()
    LOOK_UP = auto()
    ERROR_CLOSED = auto()
    EXIT_GRACEFULLY = auto()
    ERROR_TIMEOUT = auto()


def follow(
    record: RoundRecord | None, looked_up: int, last_round: int, stands_by: bool, closed: bool, late: bool
) -> tuple[Step, str]:
    """Decide the next step of a node that has asked to join.

    Args:
        record: the round record, as last heard.
        looked_up: the last complete round whose roster the node knows itself to be in or not; -1 for none.
        last_round: the last round that the node was in; -1 for none.
        stands_by: whether the node has no place in the complete round, so that its time does not run.
        closed: whether the rendezvous is closed.
        late: whether the time to join is up.
    """
    if closed:
        if stands_by:
            return Step.EXIT_GRACEFULLY, "the rendezvous closed while the node stood by"
        return Step.ERROR_CLOSED, "the rendezvous is closed"
    if record is not None and record.complete and record.round > looked_up:
        return Step.LOOK_UP, f"round {record.round} is complete"
    if record is not None and record.complete and record.spares and record.round != last_round:
        return Step.STAND_BY, f"round {record.round} has no place for the node"
    if late:
        return Step.ERROR_TIMEOUT, "the time to join is up"
    if record is None:
        return Step.WAIT, "no round has begun"
    if record.complete:
        return Step.WAIT, f"round {record.round} is not over yet"
    return Step.WAIT, f"round {record.round}: {record.joined} of at least {record.min_nodes} nodes joined"


def blame(record: RoundRecord | None, own_min_nodes: int) -> str:
    """Return who came, how many are needed, and who has not come back, for the message of a time-out."""
    if record is None:
        return f"no coordinator has said anything yet; at least {own_min_nodes} nodes are needed"
    if record.complete:
        return f"round {record.round} of {record.world_size} nodes is complete without this node and is not over"
    came = f"{record.joined} of at least {record.min_nodes} nodes joined round {record.round}"
    if not record.missing:
        return came
    return f"{came}; missing since round {record.round - 1}: {listed(record.missing, record.missing_count)}"
