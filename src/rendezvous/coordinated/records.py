"""The keys of a run and the records under them: JSON that a person can read with etcdctl.

    <prefix>/<run id>/ctl/coordinator     the coordinator's node id and a nonce; with its create revision the fence
    <prefix>/<run id>/ctl/round           the round record
    <prefix>/<run id>/ctl/bootstrap       the address and port of rank 0; deleted when a round completes
    <prefix>/<run id>/ctl/closed          exists once the rendezvous is closed
    <prefix>/<run id>/nodes/<node id>     one key for each node
    <prefix>/<run id>/roster/<round>/<attempt>/<k>        the shards of the roster, in the format of the core
    <prefix>/<run id>/roster/<round>/<attempt>/names/<k>  the names of its members, in the order of the ranks
    <prefix>/<run id>/store/<round>/...   the key-value store of the round
    <prefix>/<run id>/once/<round>/...    the idempotency keys of the store, by client and slot
    <prefix>/<run id>/state               the state blob of the dynamic protocol, if that uses this API

A node id is the number of the node's lease. In keys it is sixteen hexadecimal digits. So is an attempt id: a random
number that is drawn anew for each attempt to complete a round, and named by the record of the round. A round number is
ten decimal digits in keys, so that the keys sort by round. A run id is percent-encoded, so that it cannot name another
run's keys.

A record is decoded into a typed, immutable struct that checks every range. Unknown fields are ignored; if a coordinator
publishes a round record again, it keeps them. A field that has its default value is not written, except for the version
of the protocol: see :mod:`rendezvous.coordinated.versions`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from rendezvous import config
from rendezvous.api import RendezvousParameters, RendezvousStateError
from rendezvous.config.setting import unprintable
from rendezvous.coordinated.decoding import bad_record, decode_record, printable, problem_of
from rendezvous.coordinated.versions import VERSION, RunSettings, check_version
from rendezvous.etcd.v3.operations import KeyValue
from rendezvous.utils import run_root

__all__ = [
    "MAX_NODES",
    "MAX_ROUND",
    "Bootstrap",
    "Closed",
    "CoordinatorRecord",
    "Keys",
    "NodeName",
    "NodeRecord",
    "Phase",
    "RoundRecord",
    "new_id",
    "run_keys",
]

_T = TypeVar("_T")

_NODE_ID = re.compile(rb"[0-9a-f]{16}")

MAX_ROUND = 10**10 - 1
"""The greatest round number: ten decimal digits."""

MAX_NODES = 131072
"""How many nodes a roster holds at most."""

_MAX_COUNT = 2**31 - 1

_Round = Annotated[int, Meta(ge=0, le=MAX_ROUND)]
_Count = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
_Nodes = Annotated[int, Meta(ge=0, le=MAX_NODES)]
_Text = Annotated[str, Meta(max_length=1024)]
# No spaces or control characters.
_Address = Annotated[str, Meta(max_length=1024, pattern=r"\A[^\x00-\x20\x7f-\x9f]+\Z")]
NodeName = Annotated[str, Meta(max_length=2048)]  # an address and two numbers
_Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
_OptionalId = Annotated[str, Meta(pattern=r"\A([0-9a-f]{16})?\Z")]
_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Version = Annotated[int, Meta(ge=1, le=_MAX_COUNT)]


def _first_version() -> int:
    """Return the version of a record that does not say its version."""
    return 1  # with a default value instead of this function, version 1 would not be written


class Keys:
    """The keys of one run.

    Raises:
        ValueError: the run id or the prefix is not fit for a key.
    """

    def __init__(self, prefix: str, run_id: str) -> None:
        if not run_id:
            raise ValueError("The run id must not be empty.")
        for what, text in (("run id", run_id), ("prefix of the keys", prefix)):
            if (problem := unprintable(text)) is not None:
                raise ValueError(f"The {what} must not contain {problem}; it is {text!r}.")
        self.root = run_root(prefix, run_id)
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
        """Return the id of the node that owns ``key``: the reverse of :meth:`node`.

        Raises:
            RendezvousStateError: the name is not a node id.
        """
        name = key[len(self.nodes) :]
        if not _NODE_ID.fullmatch(name):
            raise RendezvousStateError(
                f"the etcd key '{printable(key)}' is not the key of a node: a node id has sixteen hexadecimal digits"
            )
        return int(name, 16)

    def of_round(self, kind: str, number: int) -> bytes:
        """Return the prefix of the keys of one round; ``kind`` is ``roster``, ``store`` or ``once``."""
        return self.root + f"{kind}/{number:010d}/".encode()

    def roster(self, number: int, attempt: str) -> bytes:
        """Return the prefix of the keys of one attempt's roster."""
        return self.of_round("roster", number) + attempt.encode() + b"/"

    def shard(self, number: int, attempt: str, shard: int) -> bytes:
        """Return the key of shard number ``shard`` of a roster."""
        return self.roster(number, attempt) + b"%04d" % shard

    def names(self, number: int, attempt: str, part: int) -> bytes:
        """Return the key of part number ``part`` of the names of a roster's members."""
        return self.roster(number, attempt) + b"names/%04d" % part

    def before_round(self, kind: str, number: int) -> tuple[bytes, bytes]:
        """Return the range of the keys of all rounds before ``number``."""
        return self.root + f"{kind}/".encode(), self.of_round(kind, number)


def run_keys(params: RendezvousParameters) -> Keys:
    """Return the keys of the run that ``params`` name. They begin with the configuration option ``prefix``.

    Raises:
        ValueError: the run id or the prefix is not fit for a key.
    """
    return Keys(config.PREFIX.read(params), params.run_id)


def new_id(random: random.Random) -> str:
    """Return an attempt id or a nonce: sixteen random hexadecimal digits."""
    return f"{random.getrandbits(64):016x}"


def _decode_versioned(key: bytes, data: bytes, decode: Callable[[bytes], _T]) -> _T:
    """Decode a record that has a version. If that is newer than this package speaks, no other error is raised."""
    try:
        return decode_record(key, data, decode)
    except RendezvousStateError:
        check_version(key, data)
        raise


class NodeRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a node publishes about itself.

    Attributes:
        addr: its address.
        pid: its process id.
        local_id: its number within the process.
        last_round: the last round of which it was a member and that it has left; -1 if there is none.
        last_rank: its rank in that round; -1 if there is none.
        topology: its position in the network, from the widest part to the narrowest; empty if unknown.
        rank_hint: the number that orders ranks before all else, or None.
        settings: what the node is configured with; None if that is not known.
        version: the newest version of the protocol that the node can follow.
    """

    addr: _Address
    pid: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    local_id: Annotated[int, Meta(ge=0, le=2**63 - 1)] = field(name="local")
    last_round: Annotated[int, Meta(ge=-1, le=MAX_ROUND)] = field(default=-1, name="last")
    last_rank: Annotated[int, Meta(ge=-1, le=MAX_NODES)] = field(default=-1, name="rank")
    topology: _Text = ""
    rank_hint: _Int64 | None = field(default=None, name="hint")
    settings: RunSettings | None = field(default=None, name="set")
    version: _Version = field(default_factory=_first_version, name="v")

    @property
    def name(self) -> str:
        """The node's name in messages."""
        return f"{self.addr}_{self.pid}_{self.local_id}"

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _encode(self)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> NodeRecord:
        """Return the record that is stored under ``key``. Raises RendezvousStateError if it is not valid."""
        return _decode_versioned(key, data, _decode_node)

    def check(self) -> None:
        """Check that other nodes can read the record.

        Raises:
            ValueError: a value is out of range, too long or not valid Unicode.
        """
        try:
            _decode_node(_encode(self))
        except (msgspec.MsgspecError, ValueError, OverflowError) as exc:
            raise ValueError(f"The node {self.name[:80]!r} cannot be published: {problem_of(exc)}.") from None


class CoordinatorRecord(Struct, frozen=True, gc=False):
    """Which node coordinates.

    Attributes:
        node: its node id, in hexadecimal digits.
        nonce: a random number that each campaign draws anew: two coordinators never have the same record.
    """

    node: _Id
    nonce: _Id

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _encode(self)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> CoordinatorRecord:
        """Return the record that is stored under ``key``. Raises RendezvousStateError if it is not valid."""
        return decode_record(key, data, _decode_coordinator)

    @classmethod
    def check(cls, kv: KeyValue) -> None:
        """Check that a node wrote the key, and that it is bound to that node's lease. Raises RendezvousStateError."""
        if cls.decode(kv.key, kv.value).node != f"{kv.lease:016x}":
            lease = f"the lease {kv.lease:x}" if kv.lease else "no lease"
            raise bad_record(kv.key, kv.value, f"it is bound to {lease}, not to the lease of the node that it names")


class Phase(Enum):
    """The phases of a round."""

    FORMING = "forming"
    LAST_CALL = "last call"
    COMPLETE = "complete"


class RoundRecord(Struct, frozen=True, omit_defaults=True):
    """What the coordinator publishes about the round.

    Attributes:
        round: its number, from 0.
        phase: its phase.
        joined: while it forms: how many nodes have joined.
        min_nodes: the minimum number of nodes, as configured at the coordinator.
        max_nodes: the maximum number of nodes.
        attempt: the attempt id of the complete round, under which its roster is stored.
        first: the node id of rank 0 of the complete round, in hexadecimal digits.
        previous: while the round forms: the attempt id of the round before it; empty if that is not known.
        world_size: how many members the complete round has.
        shards: how many shards its roster has.
        waiting: how many nodes are a reason to form the next round.
        spares: how many nodes the complete round has no room for.
        lost: how many of its members are lost.
        missing_count: how many members of the last round are missing.
        roster: the roster itself, as one shard, if it is small; else None.
        rank_0_gone: whether the member of rank 0 has left or is lost.
        missing: the names of the first few that are missing.
        error: of a complete round: why its members are not known. All nodes leave the round, and the next one forms.
        settings: what the coordinator that wrote the record goes by; None if that is not known.
        by: the name of that coordinator.
        version: the version of the protocol that the run goes by.
    """

    round: _Round
    phase: Phase  # no default: it is always written
    joined: _Count = 0
    min_nodes: _Count = 0
    max_nodes: _Count = 0
    attempt: _OptionalId = ""
    first: _OptionalId = ""
    previous: _OptionalId = ""
    world_size: _Nodes = 0
    shards: _Nodes = 0
    waiting: _Count = 0
    spares: _Count = 0
    lost: _Count = 0
    missing_count: _Count = 0
    roster: Annotated[bytes, Meta(max_length=2**21)] | None = None
    rank_0_gone: bool = field(default=False, name="headless")
    missing: Annotated[tuple[NodeName, ...], Meta(max_length=1024)] = ()
    error: _Text = ""
    settings: RunSettings | None = None
    by: NodeName = ""
    version: _Version = field(default_factory=_first_version)

    @property
    def complete(self) -> bool:
        """Whether the round is complete."""
        return self.phase is Phase.COMPLETE

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _encode(self)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> RoundRecord:
        """Return the record that is stored under ``key``.

        Raises:
            RendezvousStateError: it is not valid.
            VersionError: it has a newer version of the protocol.
        """
        record = _decode_versioned(key, data, _decode_round)
        if record.version > VERSION:
            check_version(key, data)
        if record.complete and not record.world_size:
            raise bad_record(key, data, "field 'world_size': a complete round has members")
        if record.complete and not 1 <= record.shards <= record.world_size:
            raise bad_record(key, data, f"field 'shards': expected 1 to {record.world_size}, the world size")
        if record.complete and not (record.attempt and record.first):
            raise bad_record(key, data, "fields 'attempt' and 'first': a complete round has an attempt id and a rank 0")
        return record


class Bootstrap(Struct, frozen=True):
    """Where the workers of a round meet. It counts only with the attempt id and the rank 0 of the complete round.

    Attributes:
        round: the number of the round.
        attempt: the attempt id of the round.
        node: the node id of rank 0, in hexadecimal digits.
        addr: the address of rank 0.
        port: the port.
    """

    round: _Round
    attempt: _Id
    node: _Id
    addr: _Address
    port: Annotated[int, Meta(ge=1, le=65535)]

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _encode(self)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> Bootstrap:
        """Return the record that is stored under ``key``. Raises RendezvousStateError if it is not valid."""
        return decode_record(key, data, _decode_bootstrap)


class Closed(Struct, frozen=True):
    """Why the rendezvous is closed, and the name of the node that closed it."""

    reason: str
    by: NodeName

    @classmethod
    def of(cls, reason: str, node: NodeRecord) -> Closed:
        """Return the record that ``node`` writes. What is not valid Unicode in ``reason`` is escaped."""
        return cls(reason.encode("utf-8", "backslashreplace").decode(), node.name)

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return _encode(self)

    @classmethod
    def decode(cls, key: bytes, data: bytes) -> Closed:
        """Return the record that is stored under ``key``. Raises RendezvousStateError if it is not valid."""
        return decode_record(key, data, _decode_closed)


_encode = msgspec.json.Encoder().encode
_decode_coordinator = msgspec.json.Decoder(CoordinatorRecord).decode
_decode_node = msgspec.json.Decoder(NodeRecord).decode
_decode_round = msgspec.json.Decoder(RoundRecord).decode
_decode_bootstrap = msgspec.json.Decoder(Bootstrap).decode
_decode_closed = msgspec.json.Decoder(Closed).decode
