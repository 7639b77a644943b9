"""The table of nodes behind ``State``, in natural order of address, pid and local id.

The pure twin of ``src/_core/nodes.pxd``.
"""

from __future__ import annotations

from typing import NamedTuple

from rendezvous._core._wire_py import integer
from rendezvous.utils import natural_key

__all__ = [
    "MAX_ADDR",
    "MAX_ID",
    "MAX_NODES",
    "MAX_TIME",
    "MISSING",
    "PARTICIPANT",
    "REDUNDANT",
    "WAITING",
    "Key",
    "Node",
    "NodeTuple",
    "Table",
    "key_of",
]

NodeTuple = tuple[str, int, int]
"""How callers name a node: address, pid and local id."""

PARTICIPANT, WAITING, REDUNDANT, MISSING = range(4)

MAX_ADDR = 255
MAX_NODES = 131072
MAX_ID = 2**32 - 1
MAX_TIME = 2**53 - 1


class Key(NamedTuple):
    """What identifies a node, and orders it."""

    natural: tuple[bytes | int, ...]
    raw: bytes
    pid: int
    local_id: int

    @property
    def node(self) -> NodeTuple:
        """The node as callers name it."""
        return self.raw.decode(), self.pid, self.local_id


def key_of(node: object) -> Key:
    """Return the key of a node that a caller named; raise TypeError or ValueError if it is not a node."""
    if not isinstance(node, tuple) or len(node) != 3:
        raise TypeError("a node must be a tuple of address, pid and local id")
    addr, pid, local_id = node
    if type(addr) is not str:
        raise TypeError(f"a node's address must be a str, not {type(addr).__name__}")
    try:
        raw = addr.encode()
    except UnicodeEncodeError:
        raise ValueError("a node's address must be encodable as UTF-8") from None
    if not 1 <= len(raw) <= MAX_ADDR:
        raise ValueError(f"a node's address must take from 1 to {MAX_ADDR} bytes, not {len(raw)}")
    return Key(
        natural_key(addr),
        raw,
        integer(pid, "a node's pid", MAX_ID),
        integer(local_id, "a node's local id", MAX_ID),
    )


class Node:
    """A node of the table."""

    __slots__ = ("heartbeat", "key", "member", "name", "rank", "role")

    def __init__(self, key: Key, role: int, member: bool, heartbeat: int, rank: int = 0) -> None:
        self.name = key.node
        self.key = key
        self.role = role
        self.member = member
        self.heartbeat = heartbeat
        self.rank = rank


class Table:
    """The nodes, each once, and how many have each role."""

    def __init__(self) -> None:
        self.nodes: dict[NodeTuple, Node] = {}
        self.counts = [0, 0, 0, 0]
        self._sorted = True

    def in_order(self) -> list[Node]:
        """Return all nodes in their order."""
        if not self._sorted:
            ordered = sorted(self.nodes.values(), key=lambda node: node.key)
            self.nodes = {node.name: node for node in ordered}
            self._sorted = True
        return list(self.nodes.values())

    def append(self, node: Node) -> None:
        """Add a node that comes after all others in the order."""
        self.nodes[node.name] = node
        self.counts[node.role] += 1

    def put(self, key: Key, role: int, heartbeat: int) -> None:
        """Give ``key`` a role and a heartbeat; insert it if it is new."""
        name = key.node
        node = self.nodes.get(name)
        if node is None:
            if len(self.nodes) >= MAX_NODES:
                raise ValueError(f"a state holds at most {MAX_NODES} nodes")
            # A process that starts again on its host replaces the one that is missing there.
            lost = self._missing_at(key)
            if lost is not None:
                self.remove(lost)
            self.nodes[name] = Node(key, role, lost is not None, heartbeat)
            self._sorted = False
        else:
            self.counts[node.role] -= 1
            node.role = role
            node.heartbeat = heartbeat
            node.rank = 0
        self.counts[role] += 1

    def _missing_at(self, key: Key) -> Node | None:
        """Return the first missing node with the address of ``key``."""
        if self.counts[MISSING] == 0:
            return None
        same = (node for node in self.nodes.values() if node.role == MISSING and node.key.raw == key.raw)
        return min(same, key=lambda node: node.key, default=None)

    def drop(self, node: Node) -> None:
        """Remove ``node``; if it is a member of the last complete round, it becomes missing instead."""
        if node.member:
            self.counts[node.role] -= 1
            self.counts[MISSING] += 1
            node.role = MISSING
            node.rank = 0
        else:
            self.remove(node)

    def remove(self, node: Node) -> None:
        """Remove ``node``."""
        self.counts[node.role] -= 1
        del self.nodes[node.name]

    def give_ranks(self) -> int:
        """Give ranks from 0 on to the participants, remove the missing, and return the number of participants."""
        for node in [node for node in self.nodes.values() if node.role == MISSING]:
            self.remove(node)
        rank = 0
        for node in self.in_order():
            node.member = node.role == PARTICIPANT
            if node.member:
                node.rank = rank
                rank += 1
        return rank
