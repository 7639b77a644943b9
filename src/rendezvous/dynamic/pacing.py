"""How fast a node reads and writes the shared state: pure functions of times and counts.

All nodes share one key, so that the cost of an exchange grows with the number of nodes. These heuristics keep the
total load on etcd roughly constant. They never change what a node does, only when; ``rules`` decides what it does.

Times are in seconds. ``read_cost`` is the estimated cost of one read of the state, over the node and etcd together.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "MIN_READ_COST",
    "Pause",
    "Progress",
    "Range",
    "expiry_grace",
    "first_join",
    "outage_backoff",
    "peek_age",
    "read_cost",
    "settle",
    "swap_backoff",
    "wait",
]

MIN_READ_COST = 0.002
"""The lowest estimate of what one read of the state costs."""

_MIN_WAIT = 0.25
_MAX_FIRST_JOIN = 2.0


class Pause(NamedTuple):
    """How long to wait, and why."""

    seconds: float
    reason: str


class Progress(NamedTuple):
    """How many participants a round had, and when."""

    participants: int
    at: float


class Range(NamedTuple):
    """The shortest and the longest delay of a backoff."""

    base: float
    cap: float


def read_cost(cpu_time: float) -> float:
    """Return the cost of one read from the CPU time of this thread: etcd is assumed to need as much again."""
    return max(MIN_READ_COST, 2 * cpu_time)


def first_join(min_nodes: int) -> float:
    """Return the longest delay before a node joins for the first time.

    The nodes of a run start together. Spread over the time that their writes take anyway, fewer of them collide.
    """
    return min(_MAX_FIRST_JOIN, min_nodes * 0.005)


def swap_backoff(nodes: int, min_nodes: int, read_cost: float) -> Range:
    """Return the delays after a lost compare-and-swap: long enough for the swaps of all nodes to take turns.

    Args:
        nodes: how many nodes the state has.
        min_nodes: how many it must have at least: all of these may want to swap at the same time.
        read_cost: the cost of one read.
    """
    return Range(min(max(0.01, max(min_nodes, nodes) * read_cost / 4), 1.0), 2.0)


def outage_backoff(interval: float) -> Range:
    """Return the delays between attempts to reach etcd.

    At most half a keep-alive interval, so that after an outage a node sends its heartbeat again well before other
    nodes may expire it.
    """
    return Range(0.02, max(0.02, min(2.0, interval / 2)))


def expiry_grace(silence: float, interval: float, expiry: float) -> Pause:
    """Return how long no node may be taken for dead after etcd has answered.

    After an outage the heartbeats of all nodes are old, because none could be sent. Not every outage raises an error:
    a stalled endpoint, a failover to the next one, and a suspended process only show as a late answer. The first
    answer of all may also be the end of an outage.

    Args:
        silence: the time since etcd's last answer; infinite if this is the first answer.
        interval: the keep-alive interval. A node that only waits receives an answer this often.
        expiry: the age of a heartbeat at which its node is taken for dead.
    """
    usual = interval + min(1.0, interval / 2)
    if silence <= usual:
        return Pause(0.0, f"etcd answered within {usual:g} s")
    since = "this is its first answer" if silence == float("inf") else f"it did not answer for {silence:.3g} s"
    return Pause(expiry, f"etcd may have been unreachable ({since}): other nodes could not send heartbeats")


def wait(until_event: float, until_deadline: float) -> Pause:
    """Return how long to wait for a change of the state.

    Args:
        until_event: the time until this node has something to do even without a change; negative if it is in the past.
        until_deadline: the time until the node gives up.
    """
    if until_deadline <= max(until_event, _MIN_WAIT):
        return Pause(max(0.0, until_deadline), "the deadline comes first")
    if until_event < _MIN_WAIT:
        # An event in the past gave this node nothing to do: without a minimum, it would read again and again.
        return Pause(_MIN_WAIT, "the next event is due, or was in the past")
    return Pause(until_event, "until a heartbeat, an expiry or the end of the last call is due")


def settle(before: Progress | None, now: Progress, waiting: int, min_nodes: int, read_cost: float) -> Pause:
    """Return how long to let changes accumulate before reading a state that changes.

    Long enough for every node to read once, so that on average one node reads at a time and the nodes that still
    join have room. While nodes keep joining, longer: until about half of the missing nodes should have joined at the
    current rate, but at most four times as long.

    Args:
        before: the participants when the node last paused; None if this is the first pause.
        now: the participants now.
        waiting: how many nodes are on the wait list.
        min_nodes: how many participants the round needs.
        read_cost: the cost of one read.
    """
    nodes = now.participants + waiting
    pause = nodes * read_cost
    missing = min_nodes - now.participants
    if before is not None and now.participants > before.participants:
        half = missing / (now.participants - before.participants) * (now.at - before.at) / 2
        if half > 4 * pause:
            return Pause(
                4 * pause, f"{missing} nodes are missing and join slowly: time for {nodes} nodes to read 4 times"
            )
        if half > pause:
            return Pause(half, f"about half of the {missing} missing nodes should have joined by then")
    return Pause(pause, f"time for {nodes} nodes to read once")


def peek_age(max_age: float, nodes: int, read_cost: float) -> float:
    """Return how old a state may be that answers the launcher: ``max_age``, or the time for all nodes to read once."""
    return max(max_age, nodes * read_cost)
