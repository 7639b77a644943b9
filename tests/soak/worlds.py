"""What is wrong in the reports of the handlers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class Worlds:
    """Follows the reports of all handlers.

    Args:
        size: how many handlers there are; each round needs all of them.

    Attributes:
        faults: what was wrong, a sentence each.
        round: the last round of which a member has reported.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.faults: list[str] = []
        self.round = -1
        self._attempts: dict[int, str] = {}
        self._worlds: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self._met: dict[str, set[str]] = defaultdict(set)
        self._rounds: dict[str, int] = {}
        self._in_round: dict[str, int] = {}

    @property
    def settled(self) -> bool:
        """Whether all handlers are in the last round, and have met there."""
        return len(self._met.get(self._attempts.get(self.round, ""), ())) == self._size == len(self._in_round)

    def take(self, report: dict[str, Any]) -> None:
        """Take in a report."""
        name, event = report["name"], report["event"]
        if event == "error":
            self.faults.append(f"{name} ended with an error: {report['error']}")
            return
        where = f"round {report['round']}"
        if event == "left":
            self._in_round.pop(name, None)
            self.faults += [f"{name} in {where}: {wrong}" for wrong in report["wrong"]]
            return
        if self._attempts.setdefault(report["round"], report["attempt"]) != report["attempt"]:
            self.faults.append(f"{name}: {where} was completed twice")
        if event == "world":
            self._check_world(name, where, report)
        else:
            self._check_meeting(name, where, report)

    def _check_world(self, name: str, where: str, report: dict[str, Any]) -> None:
        number, rank = report["round"], report["rank"]
        if number <= self._rounds.get(name, -1):
            self.faults.append(f"{name} was in round {self._rounds[name]} and then in {where}")
        if others := [other for other, round_ in self._in_round.items() if round_ < number]:
            self.faults.append(f"{name} is in {where}, and {others[0]} in an earlier one")
        if report["size"] != self._size or not 0 <= rank < self._size:
            self.faults.append(f"{name} has rank {rank} of {report['size']} in {where}, of {self._size} nodes")
        world = self._worlds[report["attempt"]]
        if rank in world:
            self.faults.append(f"{name} and {world[rank]['name']} both have rank {rank} in {where}")
        if any(other["bootstrap"] != report["bootstrap"] for other in list(world.values())[:1]):
            self.faults.append(f"{name} has the bootstrap {report['bootstrap']} in {where}, others have another")
        if rank == 0 and report["bootstrap"][0] != name:
            self.faults.append(f"{name} has rank 0 in {where}, and the bootstrap is {report['bootstrap']}")
        world[rank] = report
        self._rounds[name] = self._in_round[name] = number
        self.round = max(self.round, number)

    def _check_meeting(self, name: str, where: str, report: dict[str, Any]) -> None:
        world, members = self._worlds[report["attempt"]], report["members"]
        if len(members) != self._size or any(members[rank] != other["name"] for rank, other in world.items()):
            self.faults.append(f"{name} met others in {where} than its members")
        self._met[report["attempt"]].add(name)
