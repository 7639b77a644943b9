"""The hostile matrix: what somebody else writes under which key, when, and what comes of it.

OUTCOMES is the one table of outcomes: for each key, and each content where that makes a difference, what happens at the
moments of MOMENTS. The outcomes are:

    ok       the nodes join, at this moment and in the next round
    error    each join fails at once, with a RendezvousError that names the key
    closed   each join fails at once, because the rendezvous is closed
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rendezvous.coordinated.records import MAX_ROUND, Bootstrap, Closed, CoordinatorRecord, Keys, NodeRecord
from rendezvous.etcd.v3.operations import KeyValue

__all__ = ["CONTENTS", "MOMENTS", "OUTCOMES", "Cell", "cells", "content"]

SOME_ID = "0123456789abcdef"
MOMENTS = ("before", "forming", "running", "take-over")
CONTENTS = ("garbage", "1 MB", "other version", "absurd", "foreign lease")

_ALL_OK = ("ok",) * 4
_ALL_ERRORS = ("error",) * 4

OUTCOMES: dict[tuple[str, str], tuple[str, str, str, str]] = {
    # The coordinator whose key is overwritten takes it back. If there is none, nobody knows whether the key may go.
    ("ctl/coordinator", ""): ("error", "ok", "ok", "error"),
    # The coordinator writes its own record again. If there is none, the record is all that a new one could go by.
    ("ctl/round", ""): ("error", "ok", "ok", "error"),
    # It is valid, and the number of the next round would have eleven digits: the coordinator closes the run.
    ("ctl/round", "absurd"): _ALL_ERRORS,
    # A record of a round that forms, or the one that was there, with another lease.
    ("ctl/round", "foreign lease"): _ALL_OK,
    # Rank 0 overwrites what does not belong to the round.
    ("ctl/bootstrap", ""): _ALL_OK,
    # The key closes the run, whatever it contains.
    ("ctl/closed", ""): _ALL_ERRORS,
    # It is valid.
    ("ctl/closed", "absurd"): ("closed",) * 4,
    ("ctl/closed", "foreign lease"): ("closed",) * 4,
    # The node writes its own key again. A running job counts it as lost, and forms the next round.
    ("nodes/<own>", ""): _ALL_OK,
    ("nodes/<other>", ""): _ALL_OK,
    # A new coordinator that cannot read the roster lets all nodes form the next round.
    ("roster/<k>", ""): _ALL_OK,
    ("roster/names/<k>", ""): _ALL_OK,
    # Only those who read the value get an error.
    ("store/<key>", ""): _ALL_ERRORS,
    # A value like those of the store itself.
    ("store/<key>", "foreign lease"): _ALL_OK,
    ("once/<slot>", ""): _ALL_ERRORS,
    # A number below that of the change.
    ("once/<slot>", "foreign lease"): _ALL_OK,
}


class Cell(NamedTuple):
    """One cell of the matrix."""

    key: str
    content: str
    moment: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.key} {self.content} {self.moment}"


def cells(*prefixes: str) -> Iterator[Cell]:
    """Return the cells of the keys that begin with one of ``prefixes``."""
    for key in dict.fromkeys(key for key, _ in OUTCOMES):
        if not key.startswith(prefixes):
            continue
        for content in CONTENTS:
            row = OUTCOMES.get((key, content)) or OUTCOMES[key, ""]
            for moment, outcome in zip(MOMENTS, row, strict=True):
                yield Cell(key, content, moment, outcome)


_OTHER_VERSION = {
    "roster/<k>": b"RR\x02" + bytes(20),
    "store/<key>": b"\x02value",
    "once/<slot>": b"v2:0000000000000001",
}
_ABSURD = {
    "ctl/coordinator": b'{"node":"ffffffffffffffff","nonce":"ffffffffffffffff"}',
    "ctl/round": b'{"round":%d,"phase":"complete","attempt":"%s","first":"%s","world_size":131072,"shards":131072,'
    b'"waiting":2147483647}' % (MAX_ROUND, SOME_ID.encode(), SOME_ID.encode()),
    "ctl/bootstrap": Bootstrap(MAX_ROUND, SOME_ID, SOME_ID, "x" * 1024, 65535).encode(),
    "ctl/closed": Closed("\x1b[2J" * 10_000, "x" * 2048).encode(),
    "nodes/<own>": NodeRecord("x" * 1024, 2**63 - 1, 2**63 - 1, MAX_ROUND, 131072).encode(),
    "nodes/<other>": NodeRecord("x" * 1024, 2**63 - 1, 2**63 - 1, MAX_ROUND, 131072).encode(),
    "roster/<k>": b"RR\x01\xff\xff\x07\xff\x1f\x00\xff\xff\x07",
    "roster/names/<k>": b'["' + b"x" * 5000 + b'\\n"]',
    "store/<key>": b"+" + b"9" * 64,
    "once/<slot>": b"\xff" * 16,
}


def content(cell: Cell, keys: Keys, current: KeyValue | None, lease: int) -> bytes:
    """Return what is written.

    Args:
        cell: the cell.
        keys: the keys of the run.
        current: what is stored under the key; None for nothing.
        lease: the lease to which the value will be bound; 0 for none.
    """
    if cell.content == "garbage":
        return b"\x80\x04 pickle"
    if cell.content == "1 MB":
        return b'{"x":"' + b"x" * (1 << 20) + b'"}'
    if cell.content == "other version":
        return _OTHER_VERSION.get(cell.key, b'{"version":99,"members":{"count":3}}')
    if cell.content == "absurd":
        return _ABSURD[cell.key]
    if cell.key == "ctl/coordinator":
        return CoordinatorRecord(f"{lease:016x}", SOME_ID).encode()
    if current is not None:
        return bytes(current.value)
    return {
        "ctl/round": b'{"round":0,"phase":"forming"}',
        "ctl/bootstrap": Bootstrap(0, SOME_ID, SOME_ID, "elsewhere", 7).encode(),
        "ctl/closed": Closed("done", "a_1_0").encode(),
        "roster/names/<k>": b'["a_1_0"]',
        "store/<key>": b"+41",
        "once/<slot>": b"%016x" % 0,
    }.get(cell.key, NodeRecord("elsewhere", 1, 0).encode())
