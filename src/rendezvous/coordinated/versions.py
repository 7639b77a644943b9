"""The version of the protocol, and how nodes of different versions and configurations take part in one run.

A round record names the version of the protocol that the run goes by, a node record the newest that the node can
follow. A change that an older node would misunderstand is a new version. Other changes only add fields: who does not
know a field ignores it, and a coordinator that publishes a record again keeps it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct, field

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.decoding import printable
from rendezvous.utils import quoted

__all__ = ["VERSION", "RunSettings", "VersionError", "check_version", "unknown_fields", "with_fields"]

VERSION = 1
"""The version of the protocol that this package speaks."""

_Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Choice = Annotated[str, Meta(max_length=64)]  # a newer node may have others


class RunSettings(Struct, frozen=True, omit_defaults=True, gc=False):
    """The settings that decide a round. A run goes by its coordinator's; those of all nodes should be the same.

    The attributes are the keys of the configuration.
    """

    min_nodes: _Number = field(name="min")
    max_nodes: _Number = field(name="max")
    # Not 30.0 and 1.0: msgspec leaves out only the very object that is the default.
    last_call_timeout: int | float = 30
    node_unit: _Number = 1
    upscale: bool = True
    on_node_loss: _Choice = "reform"
    rank_policy: _Choice = "host"
    rejoin_settle_timeout: int | float = 1


class VersionError(RendezvousStateError):
    """A record has a newer version of the protocol than this package speaks."""


class _Stamp(Struct, frozen=True):
    """What the records of all versions have in common."""

    round_version: int = field(default=VERSION, name="version")
    node_version: int = field(default=VERSION, name="v")
    by: str = ""


_decode_stamp = msgspec.json.Decoder(_Stamp).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def check_version(key: bytes, data: bytes) -> None:
    """Check that a record has no newer version than this package speaks. Raises VersionError.

    Data that is no record at all passes.
    """
    try:
        stamp = _decode_stamp(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    version = max(stamp.round_version, stamp.node_version)
    if version > VERSION:
        by = f", by node {quoted(stamp.by)}" if stamp.by else ""
        raise VersionError(
            f"the etcd key '{printable(key)}' was written in version {version} of the protocol{by}, and this "
            f"etcd-rendezvous speaks version {VERSION}; install the same release on all nodes"
        )


def unknown_fields(kind: type[Struct], data: bytes) -> dict[str, Raw]:
    """Return those fields of a valid record that ``kind`` does not have."""
    return {name: value for name, value in _decode_fields(data).items() if name not in kind.__struct_encode_fields__}


def with_fields(data: bytes, fields: dict[str, Raw]) -> bytes:
    """Return the record ``data`` with more fields."""
    return data[:-1] + b"," + _encode(fields)[1:] if fields else data
