"""Every decision of the coordinated rendezvous: pure functions that return an action and a reason in words.

The coordinator decides for the run, in :func:`coordinate`:

    The round forms.       Each node with a key is a candidate. With ``max_nodes`` candidates the round completes. With
                           ``min_nodes`` the last call begins, and the round completes when it ends. If the number
                           falls below ``min_nodes``, the last call is cancelled. Only whole node units count.
                           If more members of the last round have returned than were lost, the last call is short: a
                           round forms only when every member has returned or is lost, so none can come any more.
    The round is complete. It stays complete while at least one member is in it. A member leaves by joining again, or
                           is lost when its lease ends. When no member is left, the next round forms.
    Closed.                A closed rendezvous stays closed.

Each node decides for itself, in :func:`follow`, how to react to the round record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from rendezvous.coordinated.records import MAX_NODES, Closed, RoundRecord
from rendezvous.utils import escaped, listed

__all__ = [
    "Assignment",
    "Counts",
    "Decision",
    "LastCall",
    "Limits",
    "Move",
    "RankPolicy",
    "Step",
    "campaign_spread",
    "closed_message",
    "coordinate",
    "follow",
    "has_place",
    "least",
    "progress",
    "publish_interval",
    "spares",
    "usable",
    "waiting",
]

# How many messages a second all watchers together may receive of urgent round records, and of others. As many campaigns
# may start in a second as urgent messages.
_URGENT_MESSAGES_PER_SECOND = 2000
_MESSAGES_PER_SECOND = 500
_REASON_LENGTH = 200
_ERROR_LENGTH = 500


class RankPolicy(str, Enum):
    """How members are ordered into ranks: by host, by their ranks in the last round, or by arrival."""

    HOST = "host"
    STABLE = "stable"
    ARRIVAL = "arrival"


@dataclass(frozen=True)
class Limits:
    """The configuration of the rules.

    Attributes:
        min_nodes: the minimum number of members of a round.
        max_nodes: the maximum number of members of a round.
        last_call: seconds that a round with enough nodes waits for more.
        node_unit: the world size is a multiple of this number.
        upscale: whether a newcomer is a reason to form a larger round.
        reform_on_loss: whether a lost member is a reason to form the next round.
        rank_policy: how members are ordered into ranks.
        rejoin_settle: seconds without another node after which a round that forms again after another one completes,
            if more members of that one have returned than were lost.

    Raises:
        ValueError: no multiple of ``node_unit`` is in the range from ``min_nodes`` to ``max_nodes``.
    """

    min_nodes: int
    max_nodes: int
    last_call: float = 30.0
    node_unit: int = 1
    upscale: bool = True
    reform_on_loss: bool = True
    rank_policy: RankPolicy = RankPolicy.HOST
    rejoin_settle: float = 1.0

    def __post_init__(self) -> None:
        if self.max_nodes - self.max_nodes % self.node_unit < self.min_nodes:
            raise ValueError(
                f"The rendezvous configuration option 'node_unit' ({self.node_unit}) has no multiple from "
                f"{self.min_nodes} to {self.max_nodes}, the minimum and maximum number of nodes."
            )


def least(limits: Limits) -> int:
    """Return the smallest world size: ``min_nodes``, rounded up to whole node units."""
    return limits.min_nodes + -limits.min_nodes % limits.node_unit


def usable(nodes: int, limits: Limits) -> int:
    """Return how many of ``nodes`` can be members: whole node units, at most ``max_nodes``; 0 if they are too few."""
    most = min(nodes, limits.max_nodes)
    most -= most % limits.node_unit
    return most if most >= limits.min_nodes else 0


# Decisions of the coordinator.


class Counts(NamedTuple):
    """How many nodes of each kind there are.

    Attributes:
        complete: whether the round is complete. While it forms, the members are those of the last round.
        present: members that are in the round; none while it forms.
        returned: members that have left the round and joined again.
        lost: members whose key is gone.
        newcomers: all other nodes.
        closed: whether the rendezvous is closed.
    """

    complete: bool
    present: int
    returned: int
    lost: int
    newcomers: int
    closed: bool = False

    @property
    def candidates(self) -> int:
        """How many nodes have joined the round that forms."""
        return self.returned + self.newcomers


class LastCall(NamedTuple):
    """The last call of a round that forms.

    Attributes:
        elapsed: seconds since it began.
        quiet: seconds since it began or since the last node joined, whichever is less.
        confirmed: whether etcd has no node that joined and of which the coordinator's watch has not reported yet.
    """

    elapsed: float
    quiet: float
    confirmed: bool = False


class Move(Enum):
    """What the coordinator does next.

    CONFIRM asks etcd whether a node has joined of which the coordinator's watch has not reported yet.
    """

    WAIT = auto()
    OPEN = auto()
    BEGIN_LAST_CALL = auto()
    END_LAST_CALL = auto()
    CONFIRM = auto()
    COMPLETE = auto()


class Decision(NamedTuple):
    """A move and its reason.

    Attributes:
        move: what the coordinator does.
        reason: why, in words.
        again: seconds after which the decision is another one although nothing happens.
    """

    move: Move
    reason: str
    again: float = math.inf


def coordinate(counts: Counts, limits: Limits, last_call: LastCall | None) -> Decision:
    """Decide the coordinator's next move.

    Args:
        counts: the nodes.
        limits: the configuration.
        last_call: the last call; None if there is none.
    """
    if counts.closed:
        return Decision(Move.WAIT, "the rendezvous is closed")
    if counts.complete:
        if counts.present:
            return Decision(Move.WAIT, f"members still in the round: {counts.present}")
        return Decision(Move.OPEN, "all members have left or are lost")
    size = usable(counts.candidates, limits)
    if size + limits.node_unit > limits.max_nodes:
        return Decision(Move.COMPLETE, f"{size} nodes joined, the maximum of a round")
    if not size:
        reason = f"{counts.candidates} of at least {least(limits)} nodes joined"
        return Decision(Move.WAIT if last_call is None else Move.END_LAST_CALL, reason)
    if last_call is None:
        return Decision(Move.BEGIN_LAST_CALL, f"{counts.candidates} nodes joined, enough for a round of {size}")
    return _answer_last_call(counts, limits, last_call)


def _answer_last_call(counts: Counts, limits: Limits, last_call: LastCall) -> Decision:
    """Decide whether the last call goes on.

    It is short only if more members of the last round have returned than were lost: after an outage of etcd, which ends
    all leases at once, the first nodes that return must not form a small round of their own.
    """
    joined = f"{counts.candidates} nodes joined"
    left = limits.last_call - last_call.elapsed
    if left <= 0:
        return Decision(Move.COMPLETE, f"the last call has ended: {joined}")
    if counts.returned <= counts.lost:
        return Decision(Move.WAIT, f"last call: {joined} so far", left)
    returned = f"{counts.returned} of {counts.returned + counts.lost} members of the last round returned"
    left = min(left, limits.rejoin_settle - last_call.quiet)
    if left > 0:
        return Decision(Move.WAIT, f"last call: {joined} so far, {returned}", left)
    reason = f"{joined}, {returned}, and no other node joined for {limits.rejoin_settle:g} s"
    return Decision(Move.COMPLETE if last_call.confirmed else Move.CONFIRM, reason)


def _room_for_newcomers(counts: Counts, limits: Limits) -> bool:
    members = counts.present + counts.returned
    size = members + counts.newcomers
    if not limits.upscale:
        size = min(size, max(members + counts.lost, least(limits)))
    return usable(size, limits) > members


def waiting(counts: Counts, limits: Limits) -> int:
    """Return how many nodes are a reason to leave the complete round and to form the next."""
    if not counts.complete or counts.closed:
        return 0
    number = counts.returned
    if limits.reform_on_loss:
        number += counts.lost
    if _room_for_newcomers(counts, limits):
        number += counts.newcomers
    return number


def spares(counts: Counts, limits: Limits) -> int:
    """Return how many nodes the complete round has no room for."""
    return 0 if not counts.complete or _room_for_newcomers(counts, limits) else counts.newcomers


def publish_interval(watchers: int, urgent: bool) -> float:
    """Return the minimum number of seconds between two round records, so that etcd can send each to all watchers.

    A record is urgent if it makes a running job stop and form the next round. The progress of a round is not urgent.
    """
    if urgent:
        return max(0.1, watchers / _URGENT_MESSAGES_PER_SECOND)
    return max(1.0, watchers / _MESSAGES_PER_SECOND)


def campaign_spread(record: RoundRecord | None, min_nodes: int) -> float:
    """Return over how many seconds the campaigns of all nodes are spread, so that etcd can process them.

    A node that learns of the winner in that time does not campaign.

    Args:
        record: the last round record that the node received.
        min_nodes: the minimum number of nodes: nodes may watch that no record counts yet.
    """
    nodes = min_nodes
    if record is not None:
        nodes = max(nodes, record.joined, record.world_size + max(record.waiting, record.spares))
    return publish_interval(min(nodes, MAX_NODES), urgent=True)


# Decisions of a node.


class Assignment(NamedTuple):
    """What a member gets from a complete round.

    Attributes:
        round: the number of the round.
        rank: the node's rank.
        world_size: how many members the round has.
        since: a revision at which the round's store was empty; 0 if it is not known.
        run_lease: the lease to which the records of the run are bound.
        attempt: the attempt id of the round.
        first: the node id of rank 0, in hexadecimal digits.
    """

    round: int
    rank: int
    world_size: int
    since: int
    run_lease: int
    attempt: str
    first: str


class Step(Enum):
    """What a node that has joined does next."""

    WAIT = auto()
    STAND_BY = auto()
    SKIP = auto()
    LOOK_UP = auto()
    ERROR_CLOSED = auto()
    EXIT_GRACEFULLY = auto()
    ERROR_TIMEOUT = auto()


def follow(
    record: RoundRecord | None,
    looked_up: str,
    last_round: int,
    stands_by: bool,
    closed: bool,
    late: bool,
    returned: bool = True,
) -> tuple[Step, str]:
    """Decide the next step of a node that has joined and has no rank yet.

    Args:
        record: the last round record that the node received.
        looked_up: the attempt id of the last complete round in whose roster the node has looked for its rank; empty if
            there is none. The number does not tell: it may be used again if etcd was restored from a snapshot.
        last_round: the last round of which the node was a member; -1 if there is none.
        stands_by: whether the node is a spare, so that its join timeout does not run.
        closed: whether the rendezvous is closed.
        late: whether the join timeout has passed.
        returned: whether the node still has the lease with which it was a member of the last round. Otherwise it was
            lost, or it left, and is a newcomer.
    """
    if closed:
        if stands_by:
            return Step.EXIT_GRACEFULLY, "the rendezvous was closed while the node was a spare"
        return Step.ERROR_CLOSED, "the rendezvous is closed"
    if record is not None and record.complete and record.error and record.round > last_round:
        return Step.SKIP, f"the members of round {record.round} are not known: {escaped(record.error, _ERROR_LENGTH)}"
    if record is not None and record.complete and record.round > last_round and record.attempt != looked_up:
        return Step.LOOK_UP, f"round {record.round} is complete"
    member = returned and record is not None and record.round == last_round
    if record is not None and record.complete and record.spares and not member:
        return Step.STAND_BY, f"round {record.round} has no room for the node"
    if late:
        return Step.ERROR_TIMEOUT, "the join timeout has passed"
    if record is None:
        return Step.WAIT, "no round has begun"
    if record.complete:
        return Step.WAIT, f"round {record.round} has not ended"
    return Step.WAIT, f"round {record.round}: {record.joined} of at least {record.min_nodes} nodes joined"


def has_place(record: RoundRecord | None, attempt: str) -> bool:
    """Return whether a node is a member of the latest complete round.

    Args:
        record: the last round record that the node received.
        attempt: the attempt id of the last round of which the node was a member; empty if there is none.
    """
    if record is None or not attempt:
        return bool(attempt)
    return attempt == (record.attempt if record.complete else record.previous)


def progress(record: RoundRecord | None, own_min_nodes: int) -> str:
    """Return how many nodes joined, how many are needed and which are missing, for the message of a timeout."""
    if record is None:
        return f"no coordinator has published a round; at least {own_min_nodes} nodes are needed"
    if record.complete:
        return (
            f"round {record.round} with {record.world_size} members is complete, does not include this node and has "
            f"not ended"
        )
    joined = f"{record.joined} of at least {record.min_nodes} nodes joined round {record.round}"
    if not record.missing:
        return joined
    missing = listed([escaped(name) for name in record.missing], record.missing_count)
    return f"{joined}; missing since round {record.round - 1}: {missing}"


def closed_message(run_id: str, closed: Closed | None) -> str:
    """Return the message of the error that a closed rendezvous raises."""
    by = "" if closed is None else f" ({escaped(closed.reason, _REASON_LENGTH)}, by {escaped(closed.by)})"
    return f"The rendezvous '{run_id}' is closed{by}."
