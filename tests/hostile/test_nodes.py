"""Keys under nodes/ that no node wrote, and nodes for which a round has no room."""

from __future__ import annotations

import asyncio

import pytest

from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.records import NodeRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.hostile.runs import TIMEOUT, Run, form, join, simulated, until, warnings

pytestmark = pytest.mark.both_twins


VALID = NodeRecord("a-foreign-host", 1, 0).encode()
FOREIGN_NODES = {
    "a negative number": (b"-5", VALID),
    "20 digits": (b"0" * 20, VALID),
    "upper case": (b"000000000000000A", VALID),
    "empty": (b"", VALID),
    "a folder": (b"0000000000000005/x", VALID),
    "no lease": (b"0000000000000005", VALID),
    "a surrogate": (b"0000000000000006", b'{"addr":"\\ud800","pid":1,"local":0}'),
    "5000 digits": (b"0000000000000007", b'{"addr":"a","pid":%s,"local":0}' % (b"9" * 5000)),
    "a round out of range": (b"0000000000000008", b'{"addr":"a","pid":1,"local":0,"last":10000000000}'),
}


@pytest.mark.parametrize(("name", "planted"), FOREIGN_NODES.values(), ids=FOREIGN_NODES)
@pytest.mark.parametrize("bound", [True, False], ids=["bound to a lease", "without a lease"])
def test_a_foreign_key_of_a_node_is_ignored_with_one_warning(name: bytes, planted: bytes, bound: bool, caplog):
    async def scenario() -> None:
        run = Run()
        lease = run.etcd.handle(Call.GRANT, rpc_pb2.LeaseGrantRequest(TTL=3600), None).ID if bound else 0
        run.put(run.keys.nodes + name, planted, lease)
        nodes = run.nodes(3, Limits(3, 4, last_call=1.0))
        await form(nodes, 0)
        run.put(run.keys.nodes + name, planted, lease)
        await asyncio.sleep(2)
        assert not any(node.num_nodes_waiting() for node in nodes)
        await form(nodes, 1)
        run.delete(run.keys.nodes + name)
        await asyncio.sleep(2)
        assert not any(node.num_nodes_waiting() for node in nodes)

    simulated(scenario())
    assert len(warnings(caplog, b"'/p/run/nodes/" + name + b"'")) == 1


def test_a_hundred_foreign_keys_take_no_rank():
    async def scenario() -> None:
        run = Run()
        for number in range(1, 101):
            run.put(run.keys.node(number), NodeRecord(f"a-{number}", number, 0).encode())
        await form(run.nodes(3, Limits(3, 3)), 0)

    simulated(scenario())


def test_a_node_whose_key_is_overwritten_is_lost_until_it_joins_again():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(3, 3))
        await form(nodes, 0)
        run.put(run.keys.node(nodes[1].node_id), b"junk")
        await until(lambda: all(node.num_nodes_waiting() for node in nodes), "the loss is seen")
        await form(nodes, 1)

    simulated(scenario())


# Spares.


def test_a_node_beyond_the_last_whole_node_unit_is_told_that_it_is_a_spare():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(2, 4, last_call=3.0, node_unit=2))
        joins = [join(node) for node in nodes]
        done, waiting = await asyncio.wait(joins, timeout=10)
        assert len(done) == 2
        spare = nodes[joins.index(waiting.pop())]
        assert spare.state is State.STANDING_BY
        assert run.record().spares == 1
        await asyncio.sleep(2 * TIMEOUT)
        assert spare.state is State.STANDING_BY

    simulated(scenario())
