"""How the roster of a complete round is stored: its shards, and the names of its members, under one attempt id.

A coordinator that takes over reads both. It never needs an old revision of etcd, which may be compacted or damaged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from rendezvous._core import Roster
from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.decoding import printable
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Keys, NodeName, RoundRecord
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import KeyValue, Operation, prefix_end, put_op

__all__ = ["find_rank", "put_ops", "read_last_members", "read_members", "shards_of"]

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(list[NodeName]).decode


def shards_of(members: list[int], options: Options) -> list[bytes]:
    """Return the shards of a roster: one if it is small. ``members`` are node ids in the order of their ranks."""
    roster = Roster(members)
    few = len(members) <= options.inline_nodes
    return roster.encode(1 if few else -(-len(members) // options.shard_nodes))


def put_ops(
    keys: Keys,
    number: int,
    attempt: str,
    shards: Sequence[bytes],
    names: Sequence[str],
    lease: int,
) -> list[Operation]:
    """Return the operations that store the shards of a roster and the names of its members."""
    step = -(-len(names) // len(shards))
    parts = [_encode(names[i : i + step]) for i in range(0, len(names), step)]
    return [
        *(put_op(keys.shard(number, attempt, k), data, lease) for k, data in enumerate(shards)),
        *(put_op(keys.names(number, attempt, k), data, lease) for k, data in enumerate(parts)),
    ]


async def read_members(
    client: EtcdClient, keys: Keys, number: int, attempt: str, deadline: float, inline: bytes | None = None
) -> dict[int, str]:
    """Return the names of the members of a complete round by id, in the order of their ranks.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        number: the number of the round.
        attempt: its attempt id.
        deadline: until when to try.
        inline: the whole roster, if the round record has it.

    Raises:
        RendezvousConnectionError: etcd could not be reached in time.
        RendezvousStateError: the roster is damaged.
    """
    prefix = keys.roster(number, attempt)
    found, _ = await client.range(prefix, prefix_end(prefix), deadline)
    parts = [kv for kv in found if kv.key.startswith(prefix + b"names/")]
    shards = [kv.value for kv in found if not kv.key.startswith(prefix + b"names/")]
    try:
        nodes = Roster.decode(shards if inline is None else [inline]).nodes()
    except RendezvousStateError as exc:
        where = keys.round if inline is not None else prefix
        message = f"the roster of round {number} in the etcd key '{printable(where)}' is damaged: {exc}"
        raise RendezvousStateError(message) from None
    names = _names(parts)
    if len(names) != len(nodes):
        logger.warning("the names of the members in the etcd keys '%s' are damaged", printable(prefix + b"names/"))
        return {node_id: f"node {node_id:016x}" for node_id in nodes}
    return dict(zip(nodes, names, strict=True))


async def read_last_members(client: EtcdClient, keys: Keys, record: RoundRecord, deadline: float) -> dict[int, str]:
    """Return the members of the round before the one that forms, as :func:`read_members`; none if they are not known.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        record: the record of the round that forms.
        deadline: until when to try.

    Raises:
        RendezvousConnectionError: etcd could not be reached in time.
    """
    if not record.previous:
        return {}
    try:
        return await read_members(client, keys, record.round - 1, record.previous, deadline)
    except RendezvousStateError as exc:
        logger.warning(
            "%s; the members that are missing since then are not named, and the last call is not shortened", exc
        )
        return {}


def _names(parts: Sequence[KeyValue]) -> list[str]:
    try:
        return [name for kv in parts for name in _decode_names(kv.value)]
    except (ValueError, RecursionError):
        return []


async def find_rank(
    client: EtcdClient, keys: Keys, record: RoundRecord, revision: int, node_id: int, deadline: float
) -> tuple[int, int] | None:
    """Return the rank of a node in a complete round, and the world size; None if it is not a member.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        record: the record of the complete round.
        revision: the revision of the record.
        node_id: the node.
        deadline: until when to try.

    Raises:
        RendezvousConnectionError: etcd could not be reached in time.
        RendezvousStateError: the shard is damaged.
    """
    key, shard = keys.round, record.roster
    if shard is None:
        key = keys.shard(record.round, record.attempt, node_id % record.shards)
        try:
            found, _ = await client.range(key, b"", deadline, revision=revision, serializable=True)
        except EtcdError:
            found, _ = await client.range(key, b"", deadline)
        if not found:
            return None  # the round has ended and its roster was deleted
        shard = found[0].value
    try:
        rank, world_size = Roster.find(shard, node_id)
    except RendezvousStateError as exc:
        raise RendezvousStateError(f"the roster in the etcd key '{printable(key)}' is damaged: {exc}") from None
    return None if rank is None else (rank, world_size)
