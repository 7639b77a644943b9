"""The keys of a run, and what stands under them: JSON that a person can read with etcdctl.

    <prefix>/<run id>/ctl/coordinator     the coordinator's node id; its create revision is the fencing token
    <prefix>/<run id>/ctl/round           the round record
    <prefix>/<run id>/ctl/bootstrap       where the workers of the round meet
    <prefix>/<run id>/ctl/closed          present once closed
    <prefix>/<run id>/nodes/<node id>     one a node
    <prefix>/<run id>/roster/<round>/<k>  shards of the roster, in the core's bytes
    <prefix>/<run id>/store/<round>/...   the round's key-value store
    <prefix>/<run id>/once/<round>/...    the idempotency keys of the store, by client and slot
    <prefix>/<run id>/state               the state of the blob protocol, where that runs on this API (``backend``)

A node's id is the number of its lease, in keys as sixteen hexadecimal digits. Rounds are ten decimal digits in keys,
so that they sort. A run id is percent-encoded: none reaches into another's keys.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from rendezvous import config
from rendezvous.api import RendezvousParameters, RendezvousStateError
from rendezvous.etcd.v3.operations import prefix_end

__all__ = ["Bootstrap", "Closed", "Keys", "NodeRecord", "Phase", "RoundRecord", "run_keys"]

_T = TypeVar("_T")


class Keys:
    """The keys of one run.

    Raises:
        ValueError: the run id is empty.
    """

    def __init__(self, prefix: str, run_id: str) -> None:
        if not run_id:
            raise ValueError("The run id must not be empty.")
        self.root = f"{prefix.rstrip('/')}/{quote(run_id, safe='')}/".encode()
        self.ctl = self.root + b"ctl/"
        self.coordinator = self.ctl + b"coordinator"
        self.round = self.ctl + b"round"
        self.bootstrap = self.ctl + b"bootstrap"
        self.closed = self.ctl + b"closed"
        self.nodes = self.root + b"nodes/"

    def node(self, node_id: int) -> bytes:
        """Return the key of a node."""
        return self.nodes + b"%016x" % node_id

    def node_id(self, key: bytes) -> int:
        """Return whose key it is, the reverse of :meth:`node`."""
        return int(key[len(self.nodes) :], 16)

    def of_round(self, kind: str, number: int) -> bytes:
        """Return the prefix of the keys of one round: of its ``roster``, ``store`` or ``once``."""
        return self.root + f"{kind}/{number:010d}/".encode()

    def shard(self, number: int, shard: int) -> bytes:
        """Return the key of one shard of a round's roster."""
        return self.of_round("roster", number) + b"%04d" % shard

    def before_round(self, kind: str, number: int) -> tuple[bytes, bytes]:
        """Return the range of the keys of all rounds before ``number``."""
        return self.root + f"{kind}/".encode(), self.of_round(kind, number)

    def from_round(self, kind: str, number: int) -> tuple[bytes, bytes]:
        """Return the range of the keys of all rounds from ``number``."""
        return self.of_round(kind, number), prefix_end(self.root + f"{kind}/".encode())


def run_keys(params: RendezvousParameters) -> Keys:
    """Return the keys of the run that ``params`` name. They begin with the configuration option ``prefix``.

    Raises:
        ValueError: the run id is empty.
    """
    return Keys(config.PREFIX.read(params), params.run_id)


def _pack(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def _unpack(key: bytes, data: bytes, make: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        return make(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise RendezvousStateError(
            f"the etcd key '{key.decode(errors='replace')}' holds {data[:60]!r}, which is not a record of this "
            f"rendezvous: something else wrote it, or another release ({exc!r})"
        ) from exc


def _check(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


class NodeRecord(NamedTuple):
    """What a node says of itself.

    Attributes:
        addr: its address.
        pid: its process.
        local_id: its number within the process.
        last_round: the last round that it was in and has left; -1 for none.
        last_rank: its rank in that round.
        topology: where it is in the network, from the widest part to the narrowest; empty where unknown.
        rank_hint: what it is to be ranked by before all else, or None.
    """

    addr: str
    pid: int
    local_id: int
    last_round: int = -1
    last_rank: int = 0
    topology: str = ""
    rank_hint: int | None = None

    @property
    def name(self) -> str:
        """What the node is called in messages."""
        return f"{self.addr}_{self.pid}_{self.local_id}"

    def encode(self) -> bytes:
        """Return the record's bytes."""
        values: dict[str, Any] = {"addr": self.addr, "pid": self.pid, "local": self.local_id}
        if self.last_round >= 0:
            values.update(last=self.last_round, rank=self.last_rank)
        if self.topology:
            values["topology"] = self.topology
        if self.rank_hint is not None:
            values["hint"] = self.rank_hint
        return _pack(values)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> NodeRecord:
        """Return the record that stands under ``key``. Raises RendezvousStateError where it is none."""

        def make(values: dict[str, Any]) -> NodeRecord:
            hint = values.get("hint")
            return cls(
                _check(values["addr"], str),
                _check(values["pid"], int),
                _check(values["local"], int),
                _check(values.get("last", -1), int),
                _check(values.get("rank", 0), int),
                _check(values.get("topology", ""), str),
                None if hint is None else _check(hint, int),
            )

        return _unpack(key, data, make)


class Phase:
    """The phases of a round."""

    FORMING = "forming"
    LAST_CALL = "last call"
    COMPLETE = "complete"
    ALL = (FORMING, LAST_CALL, COMPLETE)


@dataclass(frozen=True)
class RoundRecord:
    """What the coordinator says of the round.

    Attributes:
        round: its number, from 0.
        phase: one of :class:`Phase`.
        joined: how many nodes have joined, while it forms.
        min_nodes: the least number of nodes, as the coordinator was told.
        max_nodes: the greatest.
        world_size: how many nodes the complete round has.
        shards: in how many shards its roster stands.
        roster: the one shard itself, where it is small; else None.
        waiting: how many nodes are a reason to form the next round.
        spares: how many nodes the complete round has no place for.
        lost: how many of its members are gone without having left.
        headless: whether rank 0 is among them, or has left.
        missing: names of nodes of the last round that are gone and have not come back, the first few.
        missing_count: how many they are.
    """

    round: int
    phase: str = Phase.FORMING
    joined: int = 0
    min_nodes: int = 0
    max_nodes: int = 0
    world_size: int = 0
    shards: int = 0
    roster: bytes | None = None
    waiting: int = 0
    spares: int = 0
    lost: int = 0
    headless: bool = False
    missing: tuple[str, ...] = field(default=())
    missing_count: int = 0

    @property
    def complete(self) -> bool:
        """Whether the round is complete."""
        return self.phase == Phase.COMPLETE

    def encode(self) -> bytes:
        """Return the record's bytes; what has its default is left out."""
        values: dict[str, Any] = {"round": self.round, "phase": self.phase}
        for name in _COUNTS:
            if number := getattr(self, name):
                values[name] = number
        if self.roster is not None:
            values["roster"] = b64encode(self.roster).decode()
        if self.headless:
            values["headless"] = True
        if self.missing:
            values["missing"] = self.missing
        return _pack(values)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> RoundRecord:
        """Return the record that stands under ``key``. Raises RendezvousStateError where it is none."""

        def make(values: dict[str, Any]) -> RoundRecord:
            roster = values.get("roster")
            if values["phase"] not in Phase.ALL:
                raise ValueError(f"unknown phase {values['phase']!r}")
            return cls(
                round=_check(values["round"], int),
                phase=values["phase"],
                roster=None if roster is None else b64decode(roster, validate=True),
                headless=bool(values.get("headless")),
                missing=tuple(_check(name, str) for name in values.get("missing", ())),
                **{name: _check(values.get(name, 0), int) for name in _COUNTS},
            )

        return _unpack(key, data, make)


_COUNTS = (
    "joined",
    "min_nodes",
    "max_nodes",
    "world_size",
    "shards",
    "waiting",
    "spares",
    "lost",
    "missing_count",
)


class Bootstrap(NamedTuple):
    """Where the workers of a round meet."""

    round: int
    addr: str
    port: int

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _pack(self._asdict())

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> Bootstrap:
        """Return the record that stands under ``key``. Raises RendezvousStateError where it is none."""
        return _unpack(
            key,
            data,
            lambda values: cls(_check(values["round"], int), _check(values["addr"], str), _check(values["port"], int)),
        )


class Closed(NamedTuple):
    """Why the rendezvous is closed, and which node closed it."""

    reason: str
    by: str

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _pack(self._asdict())

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> Closed:
        """Return the record that stands under ``key``. Raises RendezvousStateError where it is none."""
        return _unpack(key, data, lambda values: cls(_check(values["reason"], str), _check(values["by"], str)))
