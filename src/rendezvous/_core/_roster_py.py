"""The roster of a complete round: its nodes and their ranks, and the bytes of its shards.

The pure twin of ``src/_core/roster.pyx``. A node is named by its id, the number of its lease. A roster is stored in
shards, so that a node reads only the shard that it is in: the one with the number ``id % number of shards``.

Bytes of a shard, version 1 (all varints are LEB128 of at most nine bytes):

    "RR"  u8 version  varint world size  varint number of shards  varint number of this shard  varint nodes in it
    then each node in ascending order of id:  varint id - id of the node before  varint rank
    u32 CRC-32 of everything before it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from rendezvous._core._wire_py import CHECKSUM, checksum_holds, integer, read_varint, with_checksum, write_varint
from rendezvous.api import RendezvousStateError

__all__ = ["Roster"]

_VERSION = 1
_MIN_SHARD = 7 + CHECKSUM
_MIN_NODE = 2
_MAX_NODES = 131072
_MAX_SHARDS = 4096
_MAX_ID = 2**63 - 1


@final
class Roster:
    """The nodes of a complete round, by id, in the order of their ranks. It never changes.

    Args:
        nodes: the ids, each once, in the order of the ranks.

    Raises:
        TypeError: ``nodes`` is not a list of integers.
        ValueError: an id is out of range or occurs twice, or there are more than 131,072.
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
        """Return the rank of the node with the id ``node``, or None if it is not in the roster."""
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
        return with_checksum(out)

    @classmethod
    def decode(cls, shards: Sequence[bytes]) -> Roster:
        """Return the roster that ``shards``, all of them in their order, hold.

        Raises:
            RendezvousStateError: they are not the shards of one roster; the message says why.
        """
        parts = tuple(shards)
        nodes: dict[int, int] = {}
        world_size = 0
        for number, data in enumerate(parts):
            shard = _Shard(data)
            if (shard.number, shard.shards) != (number, len(parts)):
                raise RendezvousStateError(
                    f"the roster's shard {number} of {len(parts)} is shard {shard.number} of {shard.shards}"
                )
            if number == 0:
                world_size = shard.world_size
            elif shard.world_size != world_size:
                raise RendezvousStateError(f"the roster's shards name world sizes {world_size} and {shard.world_size}")
            for node, rank in shard.nodes():
                if rank in nodes:
                    raise RendezvousStateError(f"the roster gives rank {rank} twice")
                nodes[rank] = node
        if len(nodes) != world_size:
            raise RendezvousStateError(f"the roster has {len(nodes)} of {world_size} nodes")
        return cls([nodes[rank] for rank in range(world_size)])

    @staticmethod
    def find(data: bytes, node: int) -> tuple[int | None, int]:
        """Return the rank of ``node`` in the shard ``data`` (None if it is not there) and the world size.

        Raises:
            RendezvousStateError: ``data`` is not a shard that this version understands; the message says why.
        """
        integer(node, "a node's id", _MAX_ID, least=1)
        shard = _Shard(data)
        return dict(shard.nodes()).get(node), shard.world_size


class _Shard:
    """Reads one shard, front to back."""

    def __init__(self, data: bytes) -> None:
        if type(data) is not bytes:
            raise RendezvousStateError(f"a shard of the roster must be bytes, not {type(data).__name__}")
        if data[:2] != b"RR":
            raise RendezvousStateError("the roster does not begin with 'RR': something else wrote it")
        if len(data) < _MIN_SHARD:
            raise RendezvousStateError(f"the roster is truncated: it has only {len(data)} bytes")
        if data[2] != _VERSION:
            raise RendezvousStateError(
                f"the roster has format version {data[2]}, this etcd-rendezvous reads version {_VERSION}: "
                f"install the same release on all nodes of a job"
            )
        if not checksum_holds(data):
            raise RendezvousStateError("the roster's checksum is wrong: it is truncated or damaged")
        self._data = data
        self._at = 3
        self._end = len(data) - CHECKSUM
        self.world_size = self._varint(_MAX_NODES, "world size")
        self.shards = self._varint(_MAX_SHARDS, "number of shards")
        self.number = self._varint(_MAX_SHARDS, "shard number")
        self._count = self._varint(self.world_size, "number of nodes")
        if self.number >= self.shards:
            raise RendezvousStateError("the roster's shard number is out of range")
        if self._count * _MIN_NODE > self._end - self._at:
            raise RendezvousStateError(
                f"the roster claims {self._count} nodes, more than its {self._end - self._at} bytes can hold"
            )

    def _varint(self, largest: int, name: str) -> int:
        value, self._at = read_varint(self._data, self._at, self._end, largest, "roster", name)
        return value

    def nodes(self) -> Iterator[tuple[int, int]]:
        """Yield the id and the rank of each node, and check that nothing follows the last one."""
        node = 0
        for _ in range(self._count):
            step = self._varint(_MAX_ID, "node id")
            if step == 0 or node > _MAX_ID - step:
                raise RendezvousStateError("the roster's node id is out of range")
            node += step
            rank = self._varint(_MAX_NODES, "rank")
            if rank >= self.world_size:
                raise RendezvousStateError("the roster's rank is out of range")
            if node % self.shards != self.number:
                raise RendezvousStateError(
                    f"the roster has node {node} in shard {self.number} of {self.shards}, where it does not belong"
                )
            yield node, rank
        if self._at != self._end:
            raise RendezvousStateError(f"the roster has {self._end - self._at} bytes too many")
