"""The bytes of a state: encoding and decoding. The pure twin of ``src/_core/state_encoder.pxd`` and its decoder.

Version 1 (all varints are LEB128 of at most nine bytes, all times milliseconds since the epoch):

    "RZ"  u8 version  u8 flags  u32 length of the whole  varint round  varint started  [varint deadline]
    [varint world size]  varint latest heartbeat  varint number of nodes
    then each node in natural order of address, pid, local id:
        u8 tag: role, member of the last complete round, and which of the optional fields follow
        varint bytes shared with the address before at its front  [varint at its back]  varint length of the middle
        the middle  varint pid  [varint local id]  varint latest heartbeat - heartbeat  [varint rank]
    u32 CRC-32 of everything before it

``started`` is when the state was first written, 0 before that. It tells a rendezvous from an older one of the same
run id, whose state etcd has deleted, but not yet its stores.

These fields are left out: the bytes shared at the back, if they are as many as for the node before; a local id of 0;
and a rank that is one more than the rank before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rendezvous._core._nodes_py import MAX_ADDR, MAX_ID, MAX_NODES, MAX_TIME, PARTICIPANT, Key, Node, Table
from rendezvous._core._wire_py import CHECKSUM, checksum_holds, read_varint, with_checksum, write_varint
from rendezvous.api import RendezvousStateError
from rendezvous.utils import natural_key

__all__ = ["Round", "decode", "encode"]

_VERSION = 1
_COMPLETE, _CLOSED, _DEADLINE = 1, 2, 4
_ROLE, _MEMBER, _LOCAL_ID, _RANK, _BACK = 3, 4, 8, 16, 32
_HEADER = 8
_MIN_NODE = 5


@dataclass
class Round:
    """What a state holds besides its nodes."""

    number: int = 0
    started: int = 0
    deadline: int | None = None
    world_size: int = 0
    complete: bool = False
    closed: bool = False


def encode(current: Round, table: Table) -> bytes:
    """Return the bytes of a state: the same state always gives the same bytes."""
    flags = current.complete * _COMPLETE | current.closed * _CLOSED | (current.deadline is not None) * _DEADLINE
    out = bytearray((0x52, 0x5A, _VERSION, flags, 0, 0, 0, 0))
    write_varint(out, current.number)
    write_varint(out, current.started)
    if current.deadline is not None:
        write_varint(out, current.deadline)
    if current.complete:
        write_varint(out, current.world_size)
    nodes = table.in_order()
    latest = max((node.heartbeat for node in nodes), default=0)
    write_varint(out, latest)
    write_varint(out, len(nodes))
    before, back, next_rank = b"", 0, 0
    for node in nodes:
        rank = node.rank if current.complete and node.role == PARTICIPANT else None
        back = _encode_node(out, node, before, back, latest, None if rank == next_rank else rank)
        before = node.key.raw
        if rank is not None:
            next_rank = rank + 1
    out[4:8] = (len(out) + CHECKSUM).to_bytes(4, "little")
    return with_checksum(out)


def _encode_node(out: bytearray, node: Node, before: bytes, before_back: int, latest: int, rank: int | None) -> int:
    """Append one node, and its rank if that is not None; return how many bytes it shares at the back."""
    raw, local_id = node.key.raw, node.key.local_id
    most = min(len(raw), len(before))
    front = _shared(raw, before, most)
    back = _shared(raw[::-1], before[::-1], most - front)
    tag = node.role | node.member * _MEMBER | (local_id != 0) * _LOCAL_ID | (rank is not None) * _RANK
    out.append(tag | (back != before_back) * _BACK)
    write_varint(out, front)
    if back != before_back:
        write_varint(out, back)
    write_varint(out, len(raw) - front - back)
    out += raw[front : len(raw) - back]
    write_varint(out, node.key.pid)
    if local_id != 0:
        write_varint(out, local_id)
    write_varint(out, latest - node.heartbeat)
    if rank is not None:
        write_varint(out, rank)
    return back


def _shared(one: bytes, other: bytes, most: int) -> int:
    """Return how many bytes, at most ``most``, are the same at the front."""
    if one[:most] == other[:most]:
        return most
    count = 0
    while one[count] == other[count]:
        count += 1
    return count


def decode(data: bytes) -> tuple[Round, Table]:
    """Return what was encoded as ``data``.

    Raises:
        RendezvousStateError: ``data`` is not a state that this version can read; the message says why.
    """
    if type(data) is not bytes:
        raise RendezvousStateError(f"the state must be bytes, not {type(data).__name__}")
    return _Decoder(data).read()


class _Decoder:
    """Decodes one state, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _HEADER
        self._end = len(data) - CHECKSUM
        self._latest = 0
        self._back = 0
        self._next_rank = 0
        self._ranks: set[int] = set()
        self._round = Round()
        self._table = Table()

    def read(self) -> tuple[Round, Table]:
        current = self._round
        flags = self._header()
        current.number = self._varint(MAX_TIME, "round")
        current.started = self._varint(MAX_TIME, "start")
        if flags & _DEADLINE:
            current.deadline = self._varint(MAX_TIME, "deadline")
        current.closed = bool(flags & _CLOSED)
        current.complete = bool(flags & _COMPLETE)
        if current.complete:
            current.world_size = self._varint(MAX_ID, "world size")
        self._latest = self._varint(MAX_TIME, "latest heartbeat")
        before: Key | None = None
        for _ in range(self._count()):
            before = self._node(before)
        if self._at != self._end:
            raise RendezvousStateError(
                f"the state has {self._end - self._at} bytes after its last node: it is malformed"
            )
        return current, self._table

    def _header(self) -> int:
        data = self._data
        if data[:1] == b"\x80":
            raise RendezvousStateError(
                "the state is a pickle: a node with torch's own rendezvous uses the same key; give all nodes of a "
                "job the same backend, or this job another run id"
            )
        if not b"RZ".startswith(data[:2]):
            raise RendezvousStateError(
                f"the state was not written by etcd-rendezvous: it starts with {data[:4].hex(' ')}"
            )
        if len(data) < _HEADER:
            raise RendezvousStateError(f"the state is truncated: {len(data)} bytes are less than its header")
        if data[2] != _VERSION:
            raise RendezvousStateError(
                f"the state has format version {data[2]}, this etcd-rendezvous reads version {_VERSION}: "
                f"install the same release on all nodes of a job"
            )
        length = int.from_bytes(data[4:8], "little")
        if len(data) < length:
            raise RendezvousStateError(f"the state is truncated: {len(data)} of {length} bytes are there")
        if len(data) > length or length < _HEADER + CHECKSUM:
            raise RendezvousStateError(f"the state gives its length as {length} bytes, but has {len(data)}")
        if not checksum_holds(data):
            raise RendezvousStateError("the state's checksum is wrong: it was damaged in etcd or on the way")
        if data[3] & ~(_COMPLETE | _CLOSED | _DEADLINE):
            raise RendezvousStateError(f"the state has unknown flags {data[3]:#04x}")
        return data[3]

    def _count(self) -> int:
        """Read the number of nodes, and check it against the bytes that are left and the world size."""
        count = self._varint(MAX_TIME, "number of nodes")
        left, world_size = self._end - self._at, self._round.world_size
        if count > MAX_NODES:
            raise RendezvousStateError(f"the state claims {count} nodes, more than {MAX_NODES}")
        if count > left // _MIN_NODE:
            raise RendezvousStateError(f"the state claims {count} nodes in {left} bytes: it is malformed")
        if world_size > count:
            raise RendezvousStateError(
                f"the state has a world of {world_size}, but only {count} nodes: it is malformed"
            )
        return count

    def _varint(self, largest: int, name: str) -> int:
        value, self._at = read_varint(self._data, self._at, self._end, largest, "state", name)
        return value

    def _node(self, before: Key | None) -> Key:
        """Read the next node, check that it comes after the one before, and append it."""
        if self._at >= self._end:
            raise RendezvousStateError("the state ends within its node: it is malformed")
        tag = self._data[self._at]
        self._at += 1
        if tag & ~(_ROLE | _MEMBER | _LOCAL_ID | _RANK | _BACK):
            raise RendezvousStateError(f"the state has a node with unknown tag {tag:#04x}")
        role, member = tag & _ROLE, bool(tag & _MEMBER)
        raw = self._address(before.raw if before else b"", bool(tag & _BACK))
        pid = self._varint(MAX_ID, "pid")
        local_id = self._varint(MAX_ID, "local id") if tag & _LOCAL_ID else 0
        age = self._varint(MAX_TIME, "heartbeat")
        if age > self._latest:
            raise RendezvousStateError("the state has a heartbeat before the epoch")
        rank = self._rank(bool(tag & _RANK), role)
        natural = before.natural if before is not None and raw == before.raw else natural_key(raw.decode())
        key = Key(natural, raw, pid, local_id)
        if before is not None and not before < key:
            name = f"{raw.decode()}_{pid}_{local_id}"
            raise RendezvousStateError(
                f"the state has the node {name!r} {'twice' if before == key else 'out of order'}"
            )
        self._table.append(Node(key, role, member, self._latest - age, rank))
        return key

    def _address(self, before: bytes, explicit: bool) -> bytes:
        front = self._varint(MAX_ADDR, "address")
        back = self._varint(MAX_ADDR, "address") if explicit else self._back
        middle = self._varint(MAX_ADDR, "address")
        if front + back > len(before) or not 1 <= front + back + middle <= MAX_ADDR:
            raise RendezvousStateError("the state has an address of impossible length")
        if middle > self._end - self._at:
            raise RendezvousStateError("the state ends within its address: it is malformed")
        raw = before[:front] + self._data[self._at : self._at + middle] + before[len(before) - back :]
        self._at += middle
        self._back = back
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise RendezvousStateError("the state has an address that is not UTF-8") from None
        return raw

    def _rank(self, explicit: bool, role: int) -> int:
        """Return the rank of a node, if it has one, else 0; ``explicit`` means that it is in the bytes."""
        if not self._round.complete or role != PARTICIPANT:
            if explicit:
                raise RendezvousStateError("the state has a rank for a node that takes no part")
            return 0
        rank = self._varint(MAX_ID, "rank") if explicit else self._next_rank
        if rank >= self._round.world_size:
            raise RendezvousStateError(f"the state has rank {rank} in a world of {self._round.world_size}")
        if rank in self._ranks:
            raise RendezvousStateError(f"the state has rank {rank} twice")
        self._ranks.add(rank)
        self._next_rank = rank + 1
        return rank
