"""The transactions of a node: it enters a run, also after it left a round, it closes the run, and withdraws from it."""

from __future__ import annotations

import logging
import random

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.election import campaign_op
from rendezvous.coordinated.records import Closed, Keys, NodeRecord
from rendezvous.coordinated.session import Session
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.operations import absent, compare, get_op, prefix_end, put_op

__all__ = ["close", "enter", "withdraw"]

logger = logging.getLogger(__name__)


async def enter(
    client: EtcdClient,
    keys: Keys,
    session: Session,
    node: NodeRecord,
    view: View,
    random: random.Random,
    deadline: float,
) -> None:
    """Write the node's key, make the node the coordinator if there is none, and read ``ctl/`` into the view.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        session: the node's lease.
        node: what the node publishes about itself.
        view: what the node knows of its run.
        random: draws the nonce of a coordinator.
        deadline: until when to try.

    Raises:
        LeaseNotFoundError: the lease has ended.
        RendezvousConnectionError: etcd could not be reached in time.
    """
    key, value, read = keys.node(session.lease), node.encode(), get_op(keys.ctl, prefix_end(keys.ctl))
    written = False
    while not written:
        known = view.known()
        answer = await client.txn(
            [compare(key, "mod_revision", session.key_revision)],
            [campaign_op(keys, session.lease, random), put_op(key, value, session.lease), read],
            [get_op(key), read],
            deadline=deadline,
        )
        written = answer.succeeded
        if written:
            session.key_revision = answer.header.revision
        else:
            # An earlier attempt or an older request was applied: go by what is stored.
            found = answer.responses[0].response_range.kvs
            session.key_revision = found[0].mod_revision if found else 0
            written = bool(found) and found[0].value == value and found[0].lease == session.lease
        view.read(answer.responses[-1].response_range.kvs, answer.header.revision, known)


async def close(client: EtcdClient, keys: Keys, closed: Closed, lease: int, ttl: int, deadline: float) -> None:
    """Close the run for all nodes, for good.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        closed: why, and by which node.
        lease: the run lease; 0 if it is not known.
        ttl: the time to live of another run lease, if there is none, in seconds.
        deadline: until when to try.

    Raises:
        RendezvousConnectionError: etcd could not be reached in time.
    """
    while True:
        if not lease:
            found, _ = await client.range(keys.round, b"", deadline)
            lease = found[0].lease if found and found[0].lease else await client.grant(ttl, deadline)
        try:
            await client.txn([absent(keys.closed)], [put_op(keys.closed, closed.encode(), lease)], deadline=deadline)
            return
        except EtcdError as exc:
            logger.info("%s: closing with a new run lease", exc)
            lease = await client.grant(ttl, deadline)


async def withdraw(client: EtcdClient, keys: Keys, session: Session, node: NodeRecord, deadline: float) -> None:
    """Give up the lease of a node after etcd was restored from a snapshot, and with it the keys that it wrote before.

    The lease is revoked only if the node's key is bound to it: in the restored etcd it may not exist, or be another
    node's. Otherwise it ends after its time to live.

    Args:
        client: the etcd cluster.
        keys: the keys of the run.
        session: the node's lease.
        node: what the node publishes about itself.
        deadline: until when to try.

    Raises:
        RendezvousConnectionError: etcd could not be reached in time.
    """
    key = keys.node(session.lease)
    found, _ = await client.range(key, b"", deadline)
    if not found or found[0].lease != session.lease:
        return
    try:
        mine = NodeRecord.decode(key, found[0].value).name == node.name
    except RendezvousStateError:
        mine = False
    if mine:
        await session.close(deadline)
