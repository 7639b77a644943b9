"""What is wrong in the reports of an experiment's nodes.

A node's own reports are believed, for example that its lease has ended; the simulation and the specification judge by
what etcd holds. The reports of one machine have one clock, so their order is known.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["History", "ended", "lost_leases", "wrong_worlds"]


@dataclass
class History:
    """What one node has reported, and what was done to it.

    Attributes:
        name: its name, and its address.
        started: when its process was started.
        events: its reports, in their order.
        freezes: when it was suspended, from and until.
        killed: when it was killed; None if it was not.
    """

    name: str
    started: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    freezes: list[tuple[float, float]] = field(default_factory=list)
    killed: float | None = None

    def is_frozen(self, time: float) -> bool:
        return any(begin <= time < end for begin, end in self.freezes)

    @property
    def healthy_until(self) -> float:
        """When something was done to the node itself, first."""
        return min([begin for begin, _ in self.freezes] + [float("inf") if self.killed is None else self.killed])


def wrong_worlds(histories: Sequence[History]) -> list[str]:
    """Return what is wrong with the worlds that the nodes have reported: a sentence for each fault."""
    rounds: dict[int, list[tuple[History, dict[str, Any]]]] = defaultdict(list)
    meetings: dict[int, list[tuple[History, dict[str, Any]]]] = defaultdict(list)
    for history in histories:
        for event in history.events:
            if event["event"] == "world":
                rounds[event["round"]].append((history, event))
            elif event["event"] == "members":
                meetings[event["round"]].append((history, event))
    found = [fault for number, worlds in sorted(rounds.items()) for fault in _round_faults(number, worlds)]
    found += [fault for number, met in sorted(meetings.items()) for fault in _meeting_faults(number, met)]
    return found + _order_faults(histories) + _overlaps(histories)


def _round_faults(number: int, worlds: Sequence[tuple[History, dict[str, Any]]]) -> list[str]:
    """All members of a round have one size, one attempt and one bootstrap; their ranks are distinct, 0 to n-1."""
    found = []
    for what in ("size", "attempt", "bootstrap"):
        values = {str(event[what]): history.name for history, event in worlds}
        if len(values) > 1:
            found.append(f"round {number}: its members have {len(values)} values of {what}: {values}")
    ranks: dict[int, str] = {}
    for history, event in worlds:
        rank, size = event["rank"], event["size"]
        if not 0 <= rank < size:
            found.append(f"round {number}: {history.name} has rank {rank} of {size}")
        if rank in ranks:
            found.append(f"round {number}: {ranks[rank]} and {history.name} both have rank {rank}")
        ranks[rank] = history.name
        if rank == 0 and event["bootstrap"][0] != history.name:
            found.append(f"round {number}: {history.name} has rank 0, and the bootstrap is {event['bootstrap']}")
    return found


def _meeting_faults(number: int, met: Sequence[tuple[History, dict[str, Any]]]) -> list[str]:
    """All members of a round find the same token and names in its store, and each arrival is counted once."""
    found = []
    for what in ("token", "members"):
        values = {str(event[what]) for _, event in met}
        if len(values) > 1:
            found.append(f"round {number}: its members read {len(values)} values of {what} in the store: {values}")
    arrivals = [event["arrived"] for _, event in met]
    size = len(met[0][1]["members"])
    if len(set(arrivals)) < len(arrivals) or not all(1 <= arrived <= size for arrived in arrivals):
        found.append(f"round {number}: the store counted the arrivals of {size} members as {sorted(arrivals)}")
    return found


def _order_faults(histories: Sequence[History]) -> list[str]:
    """The rounds of a node only grow."""
    found = []
    for history in histories:
        numbers = [event["round"] for event in history.events if event["event"] == "world"]
        found += [
            f"{history.name} was in round {last} and then in round {number}"
            for last, number in itertools.pairwise(numbers)
            if number <= last
        ]
    return found


def _overlaps(histories: Sequence[History]) -> list[str]:
    """No node is in a round while a member of an earlier one has neither left it nor lost its lease."""
    begins = [
        (event["time"], event["round"], history.name)
        for history in histories
        for event in history.events
        if event["event"] == "world"
    ]
    found = []
    for history in histories:
        for number, since, until in _stays(history):
            for time, later, name in begins:
                gone = (history.killed is not None and history.killed <= time) or history.is_frozen(time)
                if later > number and since < time < until and not gone:
                    found.append(f"{name} was in round {later} while {history.name} was still in round {number}")
    return found


def _stays(history: History) -> list[tuple[int, float, float]]:
    """Return the rounds in which a node was, and from when until when; not those in which it lost its lease."""
    found = []
    begin: dict[str, Any] | None = None
    for event in history.events:
        if event["event"] == "world":
            begin = event
        elif event["event"] == "leaves" and begin is not None:
            if not _has_lost(begin, event):
                found.append((begin["round"], begin["time"], event["time"]))
            begin = None
    if begin is not None and not history.freezes:
        found.append((begin["round"], begin["time"], float("inf")))
    return found


def _has_lost(world: dict[str, Any], leaves: dict[str, Any]) -> bool:
    return bool(leaves["lost"]) or leaves["node"] != world["node"] or world["node"] is None


def lost_leases(histories: Sequence[History]) -> list[tuple[float, str]]:
    """Return when healthy nodes noticed that they had lost their leases: the time, and a sentence."""
    found = []
    for history in histories:
        world: dict[str, Any] | None = None
        for event in _healthy(history):
            if event["event"] == "world":
                if world is not None and world["node"] != event["node"]:
                    what = f"{history.name} lost its lease between the rounds {world['round']} and {event['round']}"
                    found.append((event["time"], what))
                world = event
            elif event["event"] == "leaves" and world is not None and _has_lost(world, event):
                found.append((event["time"], f"{history.name} lost its lease in round {event['round']}"))
                world = None
    return found


def ended(histories: Sequence[History]) -> list[str]:
    """Return which healthy nodes ended with an error: a sentence for each."""
    return [
        f"{history.name} ended: {event['error']}"
        for history in histories
        for event in _healthy(history)
        if event["event"] == "error"
    ]


def _healthy(history: History) -> list[dict[str, Any]]:
    """Return what a node reported before something was done to it."""
    return [event for event in history.events if event["time"] < history.healthy_until]
