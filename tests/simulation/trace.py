"""Records what happens in one run of the simulation, for the specification in spec/: one line for each protocol step.

A line is what etcd applied, as etcd holds it afterwards, or what a join returned. spec/traces/Trace.tla says what each
kind of line means. Nodes (leases) and attempts are numbered in the order in which they appear, and rounds begin at 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rendezvous._core import Roster
from rendezvous.coordinated.coordinator import Coordinator
from rendezvous.coordinated.records import Bootstrap, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Assignment, Limits
from tests.simulation.etcd import Etcd

if TYPE_CHECKING:
    from tests.simulation.world import Node

__all__ = ["Line", "Trace", "recorded", "to_ndjson"]

Line = dict[str, Any]

_ABSENT = -1


def to_ndjson(lines: Iterable[Line]) -> str:
    """Return lines as NDJSON."""
    return "".join(json.dumps(line) + "\n" for line in lines)


class Trace:
    """The lines of one run.

    Args:
        keys: the keys of the run.
        etcd: the cluster.
        limits_of: returns what the rules of a host go by.

    Attributes:
        lines: the lines.
        seen: by node and bytes of a round record: the revision of the nodes' keys on which it was decided.
    """

    def __init__(self, keys: Keys, etcd: Etcd, limits_of: Callable[[int], Limits]) -> None:
        self._keys = keys
        self._etcd = etcd
        self._limits_of = limits_of
        self._numbers: dict[int, int] = {}
        self._attempts: dict[str, int] = {"": 0}
        self._last: dict[int, int] = {}  # what the node's keys say, by number
        self._tables: list[tuple[int, dict[int, int]]] = [(0, {})]
        self._owners: dict[int, Node] = {}
        self._record: RoundRecord | None = None
        self.lines: list[Line] = []
        self.seen: dict[tuple[str, bytes], int] = {}

    def _add(self, kind: str, **fields: Any) -> None:
        self.lines.append({"kind": kind, **fields})

    def _number(self, lease: int) -> int:
        return self._numbers.setdefault(lease, len(self._numbers) + 1)

    def _attempt(self, attempt: str) -> int:
        return self._attempts.setdefault(attempt, len(self._attempts))

    def returned(self, node: Node, place: Assignment, bootstrap: Bootstrap) -> None:
        """Add the line for a join that returned."""
        session = node.member._session
        assert session is not None
        self._add(
            "return",
            node=self._number(session.lease),
            attempt=self._attempt(place.attempt),
            size=place.world_size,
            is_first=place.rank == 0,
            met_attempt=self._attempt(bootstrap.attempt),
            met_node=self._number(int(bootstrap.node, 16)),
        )

    def write(self, writer: Node | None, changed: list[bytes]) -> None:
        """Add the lines for one write to etcd."""
        keys, current = self._keys, self._etcd.current
        coordinator = current.get(keys.coordinator) if keys.coordinator in changed else None
        for key in changed:
            if key.startswith(keys.nodes):
                self._node(writer, key, coordinator)
        if coordinator is not None and keys.node(coordinator.lease) not in changed:
            self._add("elect" if coordinator.lease in self._owners else "foreign", node=self._number(coordinator.lease))
        if keys.round in changed:
            self._round(writer, current.get(keys.round))
        if keys.bootstrap in changed and keys.bootstrap in current:
            bootstrap = Bootstrap.decode(keys.bootstrap, current[keys.bootstrap].value)
            known = bootstrap.attempt in self._attempts and int(bootstrap.node, 16) in self._owners
            node = self._number(int(bootstrap.node, 16))
            self._add("boot" if known else "foreign", node=node, attempt=self._attempt(bootstrap.attempt))
        if keys.closed in changed and keys.closed in current:
            self._add("close")

    def _node(self, writer: Node | None, key: bytes, coordinator: Any) -> None:
        lease, kv = self._keys.node_id(key), self._etcd.current.get(key)
        node = self._number(lease)
        if kv is None:
            self._last[node] = _ABSENT
            self._add("lose", node=node)
        else:
            if writer is not None:
                self._owners[lease] = writer
            last = NodeRecord.decode(key, kv.value).last_round + 1
            is_elected = coordinator is not None and coordinator.lease == lease
            if lease not in self._owners:
                self._add("foreign", node=node)
            elif self._last.get(node) != last:
                self._last[node] = last
                self._add("join", node=node, last=last, is_elected=is_elected)
            elif is_elected:
                self._add("elect", node=node)
        self._tables.append((self._etcd.revision, dict(self._last)))

    def _writer(self, writer: Node | None) -> int:
        """Return the number of the node that wrote as the coordinator."""
        kv = self._etcd.current.get(self._keys.coordinator)
        if kv is not None and self._owners.get(kv.lease) is writer:
            return self._number(kv.lease)
        return self._number(next((lease for lease, node in self._owners.items() if node is writer), 0))

    def _round(self, writer: Node | None, kv: Any) -> None:
        if kv is None:
            self._record = None
            self._add("damage", boot=self._keys.bootstrap not in self._etcd.current)
            return
        before, record = self._record, RoundRecord.decode(kv.key, kv.value)
        self._record = record
        step: Line = {"node": self._writer(writer), "round": record.round + 1}
        if before is not None and _same(before, record):
            self._add("edition", **step)
        elif record.error:
            self._add("error", **step, attempt=self._attempt(record.attempt))
        elif before is None and record.complete and record.attempt in self._attempts:
            self._add("restore", **step)
        else:
            limits = self._limits_of(0 if writer is None else writer.host)
            step |= {"min": limits.min_nodes, "max": limits.max_nodes, "unit": limits.node_unit}
            seen = self.seen.get((writer.name if writer is not None else "", kv.value), self._etcd.revision)
            table = next(table for revision, table in reversed(self._tables) if revision <= seen)
            self._add("observe", node=step["node"], table=[table.get(n + 1, _ABSENT) for n in range(len(self._last))])
            if record.complete:
                self._complete(step, record)
            else:
                self._add("publish", **step, phase=record.phase.value, joined=record.joined)

    def _complete(self, step: Line, record: RoundRecord) -> None:
        shards = [self._keys.shard(record.round, record.attempt, k) for k in range(record.shards)]
        found = [self._etcd.current[key].value for key in shards if key in self._etcd.current]
        members = Roster.decode(found).nodes() if len(found) == record.shards else []
        attempt, first = self._attempt(record.attempt), self._number(int(record.first, 16))
        numbers = sorted(map(self._number, members))
        self._add("choose", **step, attempt=attempt, members=numbers, first=first)
        self._add("complete", **step, attempt=attempt)


def _same(one: RoundRecord, other: RoundRecord) -> bool:
    """Return whether two round records differ only in what the specification leaves out."""
    return (one.round, one.phase, one.attempt, bool(one.error)) == (
        other.round,
        other.phase,
        other.attempt,
        bool(other.error),
    )


@contextmanager
def recorded(trace: Callable[[], Trace | None]) -> Iterator[None]:
    """Note, for each decision of a coordinator, up to which revision it has seen the nodes' keys."""
    complete, put_record = Coordinator._complete, Coordinator._put_record

    def seen(self: Any) -> int:
        return max([self._nodes._read_at, *self._nodes._revisions.values()])

    async def note_complete(self: Any) -> None:
        self.seen_at_decision = seen(self)
        try:
            await complete(self)
        finally:
            self.__dict__.pop("seen_at_decision", None)

    async def note_put_record(self: Any, record: RoundRecord, *arguments: Any, **options: Any) -> bool:
        revision = self.__dict__.pop("seen_at_decision", None) or seen(self)
        if (current := trace()) is not None:
            current.seen[self._client._owner.name, self._agreement.sign_round(record).encode()] = revision
        return await put_record(self, record, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "_complete", note_complete)
        patch.setattr(Coordinator, "_put_record", note_put_record)
        yield
