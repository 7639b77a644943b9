"""The roster of a complete round: its nodes and their ranks, and the bytes of its shards.

The pure twin of ``src/_core/roster.pyx``. A node goes by its id, the number of its lease. A roster is kept in shards,
so that a node reads the one that it is in and not all of them; it is in shard ``id % number of shards``.

Bytes of a shard, version 1 (all varints are LEB128 of at most nine bytes):

    "RR"  u8 version  varint world size  varint number of shards  varint number of this shard  varint nodes in it
    then each node in ascending order of id:  varint id - id before it  varint rank
    u32 CRC-32 of all before
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final
from zlib import crc32

from rendezvous._core._bytes_py import integer, write_varint
from rendezvous.api import RendezvousStateError

__all__ = ["Roster"]

_VERSION = 1
_CHECKSUM = 4
_MIN_SHARD = 7 + _CHECKSUM
_MIN_NODE = 2
_MAX_NODES = 131072
_MAX_SHARDS = 4096
_MAX_ID = 2**63 - 1


class _Shard(NamedTuple):
    world_size: int
    shards: int
    number: int
    nodes: list[tuple[int, int]]
    """Ids and ranks."""


@final
class Roster:
    """The nodes of a complete round, by id, in the order of their ranks.

    Args:
        nodes: the ids; each once.

    Raises:
        TypeError: ``nodes`` is not a list of integers.
        ValueError: an id is out of range or comes twice, or there are too many.
    """

    def __init__(self, nodes: list[int]) -> None:
        if type(nodes) is not list:
            raise TypeError(f"the nodes of a roster must be a list, not {type(nodes).__name__}")
        if len(nodes) > _MAX_NODES:
            raise ValueError(f"a roster holds at most {_MAX_NODES} nodes")
        self._ranks = {integer(node, "a node's id", _MAX_ID, least=1): rank for rank, node in enumerate(nodes)}
        if len(self._ranks) != len(nodes):
            raise ValueError("a node is in the roster twice")

    def __len__(self) -> int:
        return len(self._ranks)

    def nodes(self) -> list[int]:
        """Return the ids in the order of the ranks."""
        return sorted(self._ranks, key=self._ranks.__getitem__)

    def rank(self, node: int) -> int | None:
        """Return the rank of the node with the id ``node``, or None where it is not in the roster."""
        return self._ranks.get(integer(node, "a node's id", _MAX_ID, least=1))

    def encode(self, shards: int) -> list[bytes]:
        """Return the bytes of each of ``shards`` shards: the same roster always gives the same bytes."""
        integer(shards, "the number of shards", _MAX_SHARDS, least=1)
        parts: list[list[tuple[int, int]]] = [[] for _ in range(shards)]
        for node, rank in sorted(self._ranks.items()):
            parts[node % shards].append((node, rank))
        return [self._shard(part, number, shards) for number, part in enumerate(parts)]

    def _shard(self, nodes: list[tuple[int, int]], number: int, shards: int) -> bytes:
        out = bytearray((0x52, 0x52, _VERSION))
        for value in (len(self._ranks), shards, number, len(nodes)):
            write_varint(out, value)
        before = 0
        for node, rank in nodes:
            write_varint(out, node - before)
            write_varint(out, rank)
            before = node
        out += crc32(out).to_bytes(_CHECKSUM, "little")
        return bytes(out)

    @classmethod
    def decode(cls, shards: Sequence[bytes]) -> Roster:
        """Return the roster that ``shards``, all of them in their order, hold.

        Raises:
            RendezvousStateError: they are not the shards of one roster; the message says why.
        """
        nodes: dict[int, int] = {}
        world_size = 0
        for number, data in enumerate(shards):
            shard = _read(data)
            if (shard.number, shard.shards) != (number, len(shards)):
                raise RendezvousStateError(
                    f"the roster's shard {number} of {len(shards)} is shard {shard.number} of {shard.shards}"
                )
            if number > 0 and shard.world_size != world_size:
                raise RendezvousStateError(f"the roster's shards name world sizes {world_size} and {shard.world_size}")
            world_size = shard.world_size
            for node, rank in shard.nodes:
                if rank in nodes:
                    raise RendezvousStateError(f"the roster gives rank {rank} twice")
                nodes[rank] = node
        if len(nodes) != world_size:
            raise RendezvousStateError(f"the roster has {len(nodes)} of {world_size} nodes")
        return cls([nodes[rank] for rank in range(world_size)])

    @staticmethod
    def find(data: bytes, node: int) -> tuple[int | None, int]:
        """Return the rank of ``node`` in the shard ``data``, None where it is not there, and the world size.

        Raises:
            RendezvousStateError: ``data`` is not a shard that this version understands; the message says why.
        """
        integer(node, "a node's id", _MAX_ID, least=1)
        shard = _read(data)
        return dict(shard.nodes).get(node), shard.world_size


def _read(data: bytes) -> _Shard:
    if type(data) is not bytes:
        raise RendezvousStateError(f"a shard of the roster must be bytes, not {type(data).__name__}")
    if data[:2] != b"RR":
        raise RendezvousStateError("the roster does not begin with 'RR': something else wrote it")
    if len(data) < _MIN_SHARD:
        raise RendezvousStateError(f"the roster is truncated: {len(data)} bytes")
    if data[2] != _VERSION:
        raise RendezvousStateError(f"the roster has format version {data[2]}; this release reads {_VERSION}")
    end = len(data) - _CHECKSUM
    if crc32(data[:end]) != int.from_bytes(data[end:], "little"):
        raise RendezvousStateError("the roster's checksum is wrong: it is truncated or damaged")
    at = 3

    def varint(largest: int, name: str) -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= end:
                raise RendezvousStateError(f"the roster ends within its {name}")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift == 63:
                raise RendezvousStateError(f"the roster's {name} is out of range")
        if value > largest:
            raise RendezvousStateError(f"the roster's {name} is out of range")
        return value

    world_size = varint(_MAX_NODES, "world size")
    shards = varint(_MAX_SHARDS, "number of shards")
    number = varint(_MAX_SHARDS, "number of the shard")
    count = varint(world_size, "number of nodes")
    if number >= shards:
        raise RendezvousStateError("the roster's number of the shard is out of range")
    if count * _MIN_NODE > end - at:
        raise RendezvousStateError(f"the roster claims {count} nodes, more than its {end - at} bytes can hold")
    nodes: list[tuple[int, int]] = []
    node = 0
    for _ in range(count):
        step = varint(_MAX_ID, "node id")
        if step == 0 or node > _MAX_ID - step:
            raise RendezvousStateError("the roster's node id is out of range")
        node += step
        rank = varint(_MAX_NODES, "rank")
        if rank >= world_size:
            raise RendezvousStateError("the roster's rank is out of range")
        if node % shards != number:
            raise RendezvousStateError(f"the roster's node {node} does not belong into shard {number} of {shards}")
        nodes.append((node, rank))
    if at != end:
        raise RendezvousStateError(f"the roster has {end - at} bytes too many")
    return _Shard(world_size, shards, number, nodes)
