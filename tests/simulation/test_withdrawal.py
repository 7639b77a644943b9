"""After etcd was restored, a node gives up its lease only if its own key is bound to it."""

from __future__ import annotations

import random

import pytest

from rendezvous.coordinated.entry import withdraw
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.session import Session
from rendezvous.etcd.v3.operations import put_op
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import run

NODE, OTHER = NodeRecord("node-0", 1, 0), NodeRecord("node-1", 1, 0)


@pytest.mark.parametrize(
    ("value", "bound", "stays"),
    [
        (NODE.encode(), True, False),
        (NODE.encode(), False, True),
        (OTHER.encode(), True, True),
        (b"?", True, True),
        (None, True, True),
    ],
    ids=["own key", "unbound key", "key of another node", "foreign key", "no key"],
)
def test_a_lease_is_revoked_only_if_the_nodes_own_key_is_bound_to_it(value: bytes | None, bound: bool, stays: bool):
    async def scenario() -> None:
        etcd, keys = Etcd(), Keys("/p", "run")
        link = Link(etcd, Conditions(latency=0.01), None, random.Random(0))
        lost: list[bool] = []
        session = await Session.open(link, 60, 1.0, lambda: lost.append(True), random.Random(0), 60.0)
        if value is not None:
            put = put_op(keys.node(session.lease), value, session.lease if bound else 0)
            await link.txn([], [put], deadline=60.0)
        session.abandon()
        assert not session.alive
        await withdraw(link, keys, session, NODE, 60.0)
        assert (session.lease in etcd.leases) is stays
        assert lost == []  # the node knows already

    run(scenario())
