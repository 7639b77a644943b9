"""The round's state: a table of nodes, and its bytes. The pure twin of ``src/_core/state.pyx``.

The table holds each node once, in one of four roles. What a role means, and when a node changes it, is decided
in ``rendezvous.dynamic.rules``; the table only keeps it.

    participant  takes part in the round that forms, or took part in the one that is complete
    waiting      waits for the next round (torch: wait list)
    redundant    came to a full round (torch: redundancy list)
    missing      took part in the last complete round, went away, and has not come back

Bytes, version 1 (all varints are LEB128 of at most nine bytes, all times milliseconds since the epoch):

    "RZ"  u8 version  u8 flags  u32 length of the whole  varint round  varint started  [varint deadline]
    [varint world size]  varint latest heartbeat  varint number of nodes
    then each node in natural order of address, pid, local id:
        u8 tag: role, member of the last complete round, and which of the optional fields follow
        varint bytes shared with the address before at its front  [varint at its back]  varint length of the middle
        the middle  varint pid  [varint local id]  varint latest heartbeat - heartbeat  [varint rank]
    u32 CRC-32 of all before

``started`` is when the state was first written, 0 before that. It tells a rendezvous from an older one of the same
run id, whose state etcd has deleted, but whose stores it has not.

Left out are: the bytes shared at the back where they are as many as for the node before, a local id of 0, and a
rank that is one more than the rank before it.
"""

from __future__ import annotations

from typing import NamedTuple, final
from zlib import crc32

from rendezvous._core._wire_py import integer, write_varint
from rendezvous.api import RendezvousStateError
from rendezvous.utils import natural_key

__all__ = ["State"]

NodeTuple = tuple[str, int, int]

_PARTICIPANT, _WAITING, _REDUNDANT, _MISSING = range(4)

_VERSION = 1
_COMPLETE, _CLOSED, _DEADLINE = 1, 2, 4
_MEMBER, _LOCAL_ID, _RANK, _BACK = 4, 8, 16, 32
_HEADER = 8
_CHECKSUM = 4
_MIN_NODE = 5
_MAX_ADDR = 255
_MAX_NODES = 131072
_MAX_ID = 2**32 - 1
_MAX_TIME = 2**53 - 1


class _Place(NamedTuple):
    """Where a node stands in the table."""

    natural: tuple[bytes | int, ...]
    raw: bytes
    pid: int
    local_id: int

    @property
    def node(self) -> NodeTuple:
        return self.raw.decode(), self.pid, self.local_id


class _Entry:
    __slots__ = ("heartbeat", "member", "node", "place", "rank", "role")

    def __init__(self, node: NodeTuple, place: _Place, role: int, member: bool, heartbeat: int) -> None:
        self.node = node
        self.place = place
        self.role = role
        self.member = member
        self.heartbeat = heartbeat
        self.rank = 0


def _role_of(role: object) -> int:
    return integer(int(role) if isinstance(role, int) else role, "role", _MISSING)


def _place_of(node: object) -> _Place:
    if not isinstance(node, tuple) or len(node) != 3:
        raise TypeError("a node must be a tuple of address, pid and local id")
    addr, pid, local_id = node
    if type(addr) is not str:
        raise TypeError(f"a node's address must be a str, not {type(addr).__name__}")
    try:
        raw = addr.encode()
    except UnicodeEncodeError:
        raise ValueError("a node's address must be encodable as UTF-8") from None
    if not 1 <= len(raw) <= _MAX_ADDR:
        raise ValueError(f"a node's address must take from 1 to {_MAX_ADDR} bytes, not {len(raw)}")
    return _Place(
        natural_key(addr),
        raw,
        integer(pid, "a node's pid", _MAX_ID),
        integer(local_id, "a node's local id", _MAX_ID),
    )


@final
class State:
    """The state of one rendezvous. Times are milliseconds since the epoch; a node is (address, pid, local id)."""

    def __init__(self) -> None:
        self._round = 0
        self._started = 0
        self._complete = False
        self._deadline: int | None = None
        self._world_size = 0
        self._closed = False
        self._entries: dict[NodeTuple, _Entry] = {}
        self._counts = [0, 0, 0, 0]
        self._sorted = True

    # The round.

    @property
    def round(self) -> int:
        """The number of the round that forms or is complete, from 0."""
        return self._round

    @round.setter
    def round(self, value: int) -> None:
        self._round = integer(value, "round", _MAX_TIME)

    @property
    def started(self) -> int:
        """When the rendezvous began: when its state was first written; 0 before that."""
        return self._started

    @started.setter
    def started(self, value: int) -> None:
        self._started = integer(value, "started", _MAX_TIME)

    @property
    def deadline(self) -> int | None:
        """When the last call ends, or None while there is none."""
        return self._deadline

    @deadline.setter
    def deadline(self, value: int | None) -> None:
        self._deadline = None if value is None else integer(value, "deadline", _MAX_TIME)

    @property
    def closed(self) -> bool:
        """Whether the rendezvous is closed."""
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = bool(value)

    @property
    def complete(self) -> bool:
        """Whether the round is complete."""
        return self._complete

    @property
    def world_size(self) -> int:
        """The number of participants at the moment the round became complete; 0 while it forms."""
        return self._world_size

    def complete_round(self) -> None:
        """Give ranks 0..n-1 in natural order of address to the participants, and forget who was missing.

        Raises:
            ValueError: the round is complete already.
        """
        if self._complete:
            raise ValueError(f"round {self._round} is complete already")
        for node in [entry.node for entry in self._entries.values() if entry.role == _MISSING]:
            self._remove(self._entries[node])
        rank = 0
        for entry in self._in_order():
            entry.member = entry.role == _PARTICIPANT
            if entry.member:
                entry.rank = rank
                rank += 1
        self._complete = True
        self._deadline = None
        self._world_size = rank

    def open_round(self) -> None:
        """Begin the next round: one more, not complete, no deadline."""
        self.round = self._round + 1
        self._complete = False
        self._deadline = None
        self._world_size = 0

    # The nodes.

    def __len__(self) -> int:
        return len(self._entries)

    def count(self, role: int) -> int:
        """Return how many nodes have ``role``."""
        return self._counts[_role_of(role)]

    def nodes(self, role: int) -> list[NodeTuple]:
        """Return the nodes that have ``role``, in natural order of address."""
        wanted = _role_of(role)
        return [entry.node for entry in self._in_order() if entry.role == wanted]

    def role(self, node: NodeTuple) -> int | None:
        """Return the role of ``node``, or None where the table has no such node."""
        entry = self._find(node)
        return None if entry is None else entry.role

    def rank(self, node: NodeTuple) -> int | None:
        """Return the rank of ``node``, or None unless it is a participant of a complete round."""
        entry = self._find(node)
        return entry.rank if entry is not None and self._complete and entry.role == _PARTICIPANT else None

    def node_of_rank(self, rank: int) -> NodeTuple | None:
        """Return the participant of a complete round that has ``rank``, or None."""
        integer(rank, "rank", _MAX_ID)
        if self._complete:
            for entry in self._entries.values():
                if entry.role == _PARTICIPANT and entry.rank == rank:
                    return entry.node
        return None

    def heartbeat(self, node: NodeTuple) -> int | None:
        """Return when ``node`` was last heard of, or None where the table has no such node."""
        entry = self._find(node)
        return None if entry is None else entry.heartbeat

    def oldest_heartbeat(self) -> int | None:
        """Return the oldest heartbeat of the nodes that are not missing, or None where there is none."""
        return min((e.heartbeat for e in self._entries.values() if e.role != _MISSING), default=None)

    def join(self, node: NodeTuple, now: int) -> None:
        """Make ``node`` a participant of the round that forms, heard of at ``now``.

        Raises:
            ValueError: the round is complete.
        """
        if self._complete:
            raise ValueError(f"no node can join round {self._round}: it is complete")
        self._put(node, _PARTICIPANT, now)

    def wait(self, node: NodeTuple, now: int) -> None:
        """Put ``node`` on the wait list, heard of at ``now``."""
        self._put(node, _WAITING, now)

    def stand_by(self, node: NodeTuple, now: int) -> None:
        """Put ``node`` on the redundancy list, heard of at ``now``."""
        self._put(node, _REDUNDANT, now)

    def touch(self, node: NodeTuple, now: int) -> bool:
        """Record that ``node`` was heard of at ``now``; False where it is absent or missing."""
        integer(now, "now", _MAX_TIME)
        entry = self._find(node)
        if entry is None or entry.role == _MISSING:
            return False
        entry.heartbeat = now
        return True

    def leave(self, node: NodeTuple) -> bool:
        """Take ``node`` out: a member of the last complete round is then missing. False where it is not in."""
        entry = self._find(node)
        if entry is None or entry.role == _MISSING:
            return False
        self._drop(entry)
        return True

    def expire(self, before: int) -> list[NodeTuple]:
        """Take out, and return, all nodes that are not missing and were last heard of before ``before``."""
        integer(before, "before", _MAX_TIME)
        late = [e for e in self._entries.values() if e.role != _MISSING and e.heartbeat < before]
        late.sort(key=lambda entry: entry.place)
        for entry in late:
            self._drop(entry)
        return [entry.node for entry in late]

    def _find(self, node: NodeTuple) -> _Entry | None:
        place = _place_of(node)
        return self._entries.get(place.node)

    def _put(self, node: NodeTuple, role: int, now: int) -> None:
        place = _place_of(node)
        integer(now, "now", _MAX_TIME)
        key = place.node
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= _MAX_NODES:
                raise ValueError(f"a state holds at most {_MAX_NODES} nodes")
            # A process that starts again on the same host comes back for the one that is missed there.
            lost = min(
                (e for e in self._entries.values() if e.role == _MISSING and e.node[0] == key[0]),
                key=lambda e: e.place,
                default=None,
            )
            if lost is not None:
                self._remove(lost)
            self._entries[key] = _Entry(key, place, role, lost is not None, now)
            self._sorted = False
        else:
            self._counts[entry.role] -= 1
            entry.role = role
            entry.heartbeat = now
        self._entries[key].rank = 0
        self._counts[role] += 1

    def _drop(self, entry: _Entry) -> None:
        if entry.member:
            self._counts[entry.role] -= 1
            self._counts[_MISSING] += 1
            entry.role = _MISSING
            entry.rank = 0
        else:
            self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        self._counts[entry.role] -= 1
        del self._entries[entry.node]

    def _in_order(self) -> list[_Entry]:
        if not self._sorted:
            ordered = sorted(self._entries.values(), key=lambda entry: entry.place)
            self._entries = {entry.node: entry for entry in ordered}
            self._sorted = True
        return list(self._entries.values())

    # The bytes.

    def encode(self) -> bytes:
        """Return the bytes of the state: the same state always gives the same bytes."""
        flags = self._complete * _COMPLETE | self._closed * _CLOSED | (self._deadline is not None) * _DEADLINE
        out = bytearray((0x52, 0x5A, _VERSION, flags, 0, 0, 0, 0))
        write_varint(out, self._round)
        write_varint(out, self._started)
        if self._deadline is not None:
            write_varint(out, self._deadline)
        if self._complete:
            write_varint(out, self._world_size)
        entries = self._in_order()
        latest = max((entry.heartbeat for entry in entries), default=0)
        write_varint(out, latest)
        write_varint(out, len(entries))
        before, back, next_rank = b"", 0, 0
        for entry in entries:
            back, next_rank = self._encode_entry(out, entry, before, latest, back, next_rank)
            before = entry.place.raw
        out[4:8] = (len(out) + _CHECKSUM).to_bytes(4, "little")
        out += crc32(out).to_bytes(4, "little")
        return bytes(out)

    def _encode_entry(
        self, out: bytearray, entry: _Entry, before: bytes, latest: int, before_back: int, next_rank: int
    ) -> tuple[int, int]:
        """Write one node; return how many bytes it shares at the back, and the rank expected next."""
        raw = entry.place.raw
        most = min(len(raw), len(before))
        front = _shared(raw, before, most)
        back = _shared(raw[::-1], before[::-1], most - front)
        local = entry.place.local_id != 0
        ranked = self._complete and entry.role == _PARTICIPANT
        explicit = ranked and entry.rank != next_rank
        tag = entry.role | entry.member * _MEMBER | local * _LOCAL_ID | explicit * _RANK
        out.append(tag | (back != before_back) * _BACK)
        write_varint(out, front)
        if back != before_back:
            write_varint(out, back)
        write_varint(out, len(raw) - front - back)
        out += raw[front : len(raw) - back]
        write_varint(out, entry.place.pid)
        if local:
            write_varint(out, entry.place.local_id)
        write_varint(out, latest - entry.heartbeat)
        if explicit:
            write_varint(out, entry.rank)
        return back, entry.rank + 1 if ranked else next_rank

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Return the state that ``data`` holds.

        Raises:
            RendezvousStateError: ``data`` is not a state that this version understands; the message says why.
        """
        if type(data) is not bytes:
            raise RendezvousStateError(f"the state must be bytes, not {type(data).__name__}")
        return _Reader(data).state(cls())

    def _add(self, place: _Place, role: int, member: bool, heartbeat: int, rank: int) -> None:
        """Append a decoded node, which the reader has found to be in order."""
        node = place.node
        entry = self._entries[node] = _Entry(node, place, role, member, heartbeat)
        entry.rank = rank
        self._counts[role] += 1


def _shared(one: bytes, other: bytes, most: int) -> int:
    """Return how many leading bytes, at most ``most``, are the same."""
    if one[:most] == other[:most]:
        return most
    count = 0
    while one[count] == other[count]:
        count += 1
    return count


class _Reader:
    """Reads a state's bytes, once, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _HEADER
        self._end = 0
        self._back = 0
        self._next_rank = 0
        self._ranks: set[int] = set()

    def state(self, state: State) -> State:
        flags = self._header()
        state.round = self._varint(_MAX_TIME, "round")
        state.started = self._varint(_MAX_TIME, "start")
        if flags & _DEADLINE:
            state.deadline = self._varint(_MAX_TIME, "deadline")
        state.closed = bool(flags & _CLOSED)
        state._complete = bool(flags & _COMPLETE)
        if state._complete:
            state._world_size = self._varint(_MAX_ID, "world size")
        latest = self._varint(_MAX_TIME, "latest heartbeat")
        count = self._varint(_MAX_TIME, "number of nodes")
        if count > _MAX_NODES:
            raise RendezvousStateError(f"the state claims {count} nodes, more than {_MAX_NODES}")
        if count * _MIN_NODE > self._end - self._at:
            raise RendezvousStateError(
                f"the state claims {count} nodes in {self._end - self._at} bytes: it is malformed"
            )
        if state._world_size > count:
            raise RendezvousStateError(
                f"the state has a world of {state._world_size}, but knows {count} nodes: it is malformed"
            )
        before: _Place | None = None
        for _ in range(count):
            before = self._node(state, latest, before)
        if self._at != self._end:
            raise RendezvousStateError(
                f"the state has {self._end - self._at} bytes after its last node: it is malformed"
            )
        return state

    def _header(self) -> int:
        data = self._data
        if data[:1] == b"\x80":
            raise RendezvousStateError(
                "the state is a pickle: a node with torch's own rendezvous shares the key; give all nodes of a "
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
                f"give all nodes of a job the same release"
            )
        length = int.from_bytes(data[4:8], "little")
        if len(data) < length:
            raise RendezvousStateError(f"the state is truncated: {len(data)} of {length} bytes are there")
        if len(data) > length or length < _HEADER + _CHECKSUM:
            raise RendezvousStateError(f"the state gives its length as {length} bytes, but has {len(data)}")
        self._end = length - _CHECKSUM
        if crc32(data[: self._end]) != int.from_bytes(data[self._end :], "little"):
            raise RendezvousStateError("the state fails its checksum: it was damaged in etcd or on the way")
        if data[3] & ~(_COMPLETE | _CLOSED | _DEADLINE):
            raise RendezvousStateError(f"the state has unknown flags {data[3]:#04x}")
        return data[3]

    def _byte(self, name: str) -> int:
        if self._at >= self._end:
            raise RendezvousStateError(f"the state ends within its {name}: it is malformed")
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self, largest: int, name: str) -> int:
        value = shift = 0
        while True:
            byte = self._byte(name)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 56:
                raise RendezvousStateError(f"the state has an overlong {name}")
        if value > largest:
            raise RendezvousStateError(f"the state has a {name} of {value}, more than {largest}")
        return value

    def _node(self, state: State, latest: int, before: _Place | None) -> _Place:
        tag = self._byte("node")
        if tag & ~(3 | _MEMBER | _LOCAL_ID | _RANK | _BACK):
            raise RendezvousStateError(f"the state has a node with unknown tag {tag:#04x}")
        role, member = tag & 3, bool(tag & _MEMBER)
        raw = self._address(before.raw if before else b"", bool(tag & _BACK))
        pid = self._varint(_MAX_ID, "pid")
        local_id = self._varint(_MAX_ID, "local id") if tag & _LOCAL_ID else 0
        age = self._varint(_MAX_TIME, "heartbeat")
        if age > latest:
            raise RendezvousStateError("the state has a heartbeat before the epoch")
        rank = self._rank(state, bool(tag & _RANK), role)
        natural = before.natural if before is not None and raw == before.raw else natural_key(raw.decode())
        place = _Place(natural, raw, pid, local_id)
        if before is not None and not before < place:
            name = f"{raw.decode()}_{pid}_{local_id}"
            if before == place:
                raise RendezvousStateError(f"the state has the node {name!r} twice")
            raise RendezvousStateError(f"the state has the node {name!r} out of order")
        state._add(place, role, member, latest - age, rank)
        return place

    def _address(self, before: bytes, explicit: bool) -> bytes:
        front = self._varint(_MAX_ADDR, "address")
        back = self._varint(_MAX_ADDR, "address") if explicit else self._back
        middle = self._varint(_MAX_ADDR, "address")
        if front + back > len(before) or not 1 <= front + back + middle <= _MAX_ADDR:
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

    def _rank(self, state: State, explicit: bool, role: int) -> int:
        if not state._complete or role != _PARTICIPANT:
            if explicit:
                raise RendezvousStateError("the state has a rank for a node that takes no part")
            return 0
        rank = self._varint(_MAX_ID, "rank") if explicit else self._next_rank
        if rank >= state._world_size:
            raise RendezvousStateError(f"the state has rank {rank} in a world of {state._world_size}")
        if rank in self._ranks:
            raise RendezvousStateError(f"the state has rank {rank} twice")
        self._ranks.add(rank)
        self._next_rank = rank + 1
        return rank
