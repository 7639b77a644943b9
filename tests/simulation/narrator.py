"""Describes in plain English what is written to etcd: the lines of a transcript."""

from __future__ import annotations

from collections.abc import Iterable

from rendezvous._core import Roster
from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.records import Bootstrap, Closed, Keys, NodeRecord, RoundRecord
from rendezvous.utils import listed
from tests.simulation.etcd import Etcd

__all__ = ["FIRST_PID", "Narrator", "line", "short_name"]

FIRST_PID = 100
"""The process id of the first process on each host."""

Lines = list[tuple[str, str]]
"""Who, and what."""


def line(time: float, who: str, what: str) -> str:
    """Return one line of a transcript."""
    return f"{time:7.2f}  {who:<8}  {what}"


def short_name(name: str) -> str:
    """Return ``node-0`` for the name of the first process on a host, ``node-0.1`` for the second, and so on."""
    parts = name.rsplit("_", 2)
    if len(parts) < 3:
        return name  # the coordinator could not read the name
    addr, pid, _ = parts
    return addr if int(pid) == FIRST_PID else f"{addr}.{int(pid) - FIRST_PID}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Narrator:
    """Compares each write with what was in etcd before.

    Args:
        keys: the keys of the run.
        etcd: the cluster.
    """

    def __init__(self, keys: Keys, etcd: Etcd) -> None:
        self._keys = keys
        self._etcd = etcd
        self._nodes: dict[int, NodeRecord] = {}  # also those that are gone
        self._record: RoundRecord | None = None
        self._attempts: dict[str, list[str]] = {}  # the attempt ids of each round, in the order of their first use

    def describe(self, writer: str, changed: Iterable[bytes]) -> Lines:
        """Return the lines for one write.

        Args:
            writer: the name of the writer; "etcd" if a lease has ended.
            changed: the keys that were written or deleted.
        """
        keys, lines = self._keys, Lines()
        ordered = sorted(changed)
        for key in ordered:
            if key.startswith(keys.nodes):
                lines += self._node(writer, key)
        for key in ordered:
            if key == keys.coordinator:
                exists = key in self._etcd.current
                lines.append((writer, "is elected coordinator") if exists else ("etcd", "there is no coordinator now"))
        lines += self._shards(writer, ordered)
        for key in (keys.round, keys.bootstrap, keys.closed):
            if key in ordered:
                lines.append((writer, self._ctl(writer, key)))
        return lines

    def _node(self, writer: str, key: bytes) -> Lines:
        try:
            node_id, kv = self._keys.node_id(key), self._etcd.current.get(key)
        except RendezvousStateError:
            return [("etcd", f"{key.decode()} is deleted")]  # another program wrote it
        before = self._nodes.get(node_id)
        if kv is None:
            name = self._name(node_id)
            if writer == name:
                return [(name, "leaves the run: its lease is revoked")]
            return [(writer, f"the lease of {name} ends, and the node's key is deleted")]
        record = self._nodes[node_id] = NodeRecord.decode(key, kv.value)
        name = self._name(node_id)
        if before is not None and record.last_round > before.last_round:
            return [(name, f"leaves round {record.last_round} and joins again")]
        if before is not None:
            return [(name, "writes its key again")]
        if record.last_round >= 0:
            return [(name, f"joins again with a new lease (it was in round {record.last_round})")]
        return [(name, "joins")]

    def _name(self, node_id: int) -> str:
        record = self._nodes.get(node_id)
        return f"node {node_id:x}" if record is None else short_name(record.name)

    def _shards(self, writer: str, changed: list[bytes]) -> Lines:
        prefix = self._keys.root + b"roster/"
        written: dict[tuple[str, str], list[str]] = {}
        deleted: dict[tuple[str, str], list[str]] = {}
        for key in changed:
            if key.startswith(prefix):
                number, attempt, *rest = key[len(prefix) :].decode().split("/")
                if rest[0] != "names":  # the names of the members are stored beside the shards
                    chosen = written if key in self._etcd.current else deleted
                    chosen.setdefault((number, attempt), []).append(str(int(rest[0])))
        lines = Lines()
        for verb, rosters in (("writes", written), ("deletes", deleted)):
            for (number, attempt), shards in rosters.items():
                attempts = self._attempts.setdefault(number, [])
                if attempt not in attempts:
                    attempts.append(attempt)
                what = f"shard{'s' if len(shards) > 1 else ''} {', '.join(shards)} of the roster of round {int(number)}"
                lines.append((writer, f"{verb} {what} (attempt {attempts.index(attempt) + 1})"))
        return lines

    def _ctl(self, writer: str, key: bytes) -> str:
        kv = self._etcd.current.get(key)
        if kv is None:
            name = key[len(self._keys.root) :].decode()
            return f"the run lease ends, and {name} is deleted" if writer == "etcd" else f"deletes {name}"
        if key == self._keys.round:
            before, self._record = self._record, RoundRecord.decode(key, kv.value)
            return f"round {self._record.round}{self._round(self._record, before)}"
        if key == self._keys.bootstrap:
            bootstrap = Bootstrap.decode(key, kv.value)
            return f"round {bootstrap.round}: the workers meet at {bootstrap.addr}:{bootstrap.port}"
        return f"closes the rendezvous: {Closed.decode(key, kv.value).reason}"

    def _round(self, record: RoundRecord, before: RoundRecord | None) -> str:
        missing = listed([short_name(name) for name in record.missing], record.missing_count)
        if not record.complete:
            text = f": {record.phase.value}, {record.joined} of {_range(record)} nodes joined"
            return f"{text}; missing: {missing}" if missing else text
        if record.error:
            return f" is to end: {record.error}"
        if before is None or not before.complete or before.round != record.round:
            return f" is complete: ranks {', '.join(map(self._name, self._members(record)))}"
        parts = [
            f"{missing} {'is' if record.lost == 1 else 'are'} lost" if record.lost else "",
            "rank 0 is gone" if record.rank_0_gone else "",
            _plural(record.spares, "spare") if record.spares else "",
            f"{_plural(record.waiting, 'reason')} to form the next round" if record.waiting else "",
        ]
        return ": " + (", ".join(part for part in parts if part) or "no node waits")

    def _members(self, record: RoundRecord) -> list[int]:
        keys = [self._keys.shard(record.round, record.attempt, shard) for shard in range(record.shards)]
        shards = [self._etcd.current[key].value for key in keys]
        return Roster.decode(shards).nodes()


def _range(record: RoundRecord) -> str:
    least, most = record.min_nodes, record.max_nodes
    return str(least) if least == most else f"{least} to {most}"
