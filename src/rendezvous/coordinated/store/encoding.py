"""How values and counters are stored: pure functions.

What is stored under a key begins with a tag of one byte:

    =<bytes>     a plain value
    +<decimal>   a counter: its number is the decimal plus etcd's ``version`` of the key

etcd's ``version`` counts the writes of a key. A node adds 1 to a counter by writing the key again without changing what
is stored: it does not have to read the counter first, and any number of nodes can do so at the same time.
"""

from __future__ import annotations

from rendezvous.api import RendezvousStateError
from rendezvous.store import quoted_key, to_bytes
from rendezvous.utils import quoted

__all__ = ["AFTER_COUNTERS", "BEFORE_COUNTERS", "NEW_COUNTER", "decode", "encode", "encode_number"]

NEW_COUNTER = b"+0"
"""What is stored for a counter that is created with the number 1: its version is 1 then."""

BEFORE_COUNTERS, AFTER_COUNTERS = b"+", b","
"""What is stored under a key is a counter if it is greater than the one and less than the other."""

# Additions to a counter cannot check for overflow, because they do not read it. A number that is so large that an
# overflow is possible is stored as a plain value. The others are 2**62 additions away from it.
_MAX_COUNTER = 2**62

_MAX_DIGITS = 64


def encode(value: str | bytes) -> bytes:
    """Return what is stored for a plain value. Raises ValueError if it is neither ``str`` nor ``bytes``."""
    return b"=" + to_bytes(value)


def encode_number(number: int, version: int) -> bytes:
    """Return what is stored for a number if the write that stores it gives the key this ``version``."""
    return b"+%d" % (number - version) if abs(number) < _MAX_COUNTER else b"=%d" % number


def decode(key: bytes, stored: bytes, version: int) -> bytes:
    """Return the value, which is the decimal number if it is a counter.

    Args:
        key: the etcd key, for the error.
        stored: what is stored under it.
        version: etcd's version of the key.

    Raises:
        RendezvousStateError: this store did not write it.
    """
    if stored.startswith(b"="):
        return stored[1:]
    if stored.startswith(b"+") and len(stored) <= _MAX_DIGITS:
        try:
            return b"%d" % (int(stored[1:]) + version)
        except ValueError:
            pass
    raise RendezvousStateError(
        f"the etcd key {quoted_key(key)} contains {quoted(stored)}, which is not a value of the rendezvous store: "
        f"another program wrote it"
    )
