"""Nodes of other versions, and nodes that are configured differently, take part in a run."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.agreement import published
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Limits, RankPolicy
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.hostile.runs import Run, form, join, kill_coordinator, simulated, until

NEWER = b'{"round":7,"phase":"of another kind","by":"node-9_9_0","version":2}'


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return the warnings that contain ``text``."""
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in messages if text in message]


def coordinator(run: Run, nodes: list[Member]) -> Member:
    lease = run.etcd.current[run.keys.coordinator].lease
    return next(node for node in nodes if node.node_id == lease)


def test_a_node_publishes_its_version_and_settings_and_the_round_record_those_of_the_coordinator():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(2, Limits(1, 2, 5.0, 2, False, False, RankPolicy.STABLE, 0.5))
        await form(nodes, 0)
        kept = [kv.value for key, kv in run.etcd.current.items() if key.startswith(run.keys.nodes)]
        kept.append(run.etcd.current[run.keys.round].value)
        settings = {
            "min": 1,
            "max": 2,
            "last_call_timeout": 5,
            "node_unit": 2,
            "upscale": False,
            "on_node_loss": "ignore",
            "rank_policy": "stable",
            "rejoin_settle_timeout": 0.5,
        }
        records = [msgspec.json.decode(value) for value in kept]
        assert [record.get("set") or record["settings"] for record in records] == [settings] * 3
        assert [record.get("v") or record["version"] for record in records] == [1] * 3
        assert records[-1]["by"] == coordinator(run, nodes)._node.name

    simulated(scenario())


def test_of_the_settings_only_those_are_published_that_are_not_the_defaults():
    assert msgspec.json.encode(published(Limits(10_000, 10_000))) == b'{"min":10000,"max":10000}'
    assert msgspec.json.encode(published(Limits(1, 2, 0.5))) == b'{"min":1,"max":2,"last_call_timeout":0.5}'


def test_nodes_that_are_configured_differently_are_named_on_both_sides_once(caplog):
    async def scenario() -> None:
        run = Run()
        first = run.node(0, Limits(20, 20, last_call=1.0))
        joining = [join(first)]
        await until(lambda: run.keys.coordinator in run.etcd.current, "the first node coordinates")
        others = Limits(10, 20, last_call=1.0, node_unit=2, upscale=False)
        nodes = [run.node(number, others) for number in range(1, 20)]
        await asyncio.gather(*joining, *map(join, nodes))
        assert run.record().settings.min_nodes == 20
        (one,) = said(caplog, "other nodes with the same values are not reported")
        assert " of the rendezvous 'run' has min_nodes (--nnodes)=10, node_unit=2, upscale=false, but the run" in one
        assert "the coordinator, node node-0_0_0, which has min_nodes (--nnodes)=20, node_unit=1, upscale=true;" in one
        for number in range(1, 20):
            (line,) = said(
                caplog, f"node node-{number}_{number}_0 of the rendezvous 'run' has min_nodes (--nnodes)=10, "
            )
            assert "node_unit=2, upscale=false, but the coordinator, node 'node-0_0_0', has min_nodes" in line

    simulated(scenario())


def test_a_coordinator_that_takes_over_with_other_settings_is_named_by_the_members(caplog):
    async def scenario() -> None:
        run = Run()
        nodes = [run.node(number, Limits(2, 3, last_call=0.5 + number)) for number in range(3)]
        await form(nodes, 0)
        caplog.clear()
        left = kill_coordinator(run, nodes)
        await until(lambda: run.record().lost, "the loss is published")
        leader = coordinator(run, left)
        (other,) = (node for node in left if node is not leader)
        theirs, own = (node._settings.limits.last_call for node in (leader, other))
        assert (run.record().by, run.record().settings.last_call_timeout) == (leader._node.name, theirs)
        values = f"has last_call_timeout={own}, but the coordinator, node '{leader._node.name}', has"
        text = f"{values} last_call_timeout={theirs}, and the run goes by that"
        await until(lambda: said(caplog, text), "the other node has received the record")
        assert len(said(caplog, text)) == 1

    simulated(scenario())


def test_a_hundred_different_settings_are_reported_and_no_more(caplog):
    async def scenario() -> None:
        run = Run()
        first = run.node(0, Limits(1, 300, last_call=5.0))
        joining = [join(first)]
        await until(lambda: run.keys.coordinator in run.etcd.current, "the first node coordinates")
        nodes = [run.node(number, Limits(1, 300 + number, last_call=5.0)) for number in range(1, 150)]
        await asyncio.gather(*joining, *map(join, nodes))
        assert len(said(caplog, "other nodes with the same values are not reported")) == 100

    simulated(scenario())


def test_a_node_does_not_follow_a_newer_version(caplog):
    async def scenario() -> None:
        run = Run()
        run.put(run.keys.round, NEWER)
        node = run.node(0, Limits(1, 1))
        with pytest.raises(RendezvousStateError) as caught:
            await join(node)
        assert str(caught.value) == (
            "Node node-0_0_0 cannot join: the etcd key '/p/run/ctl/round' was written in version 2 of the protocol, by "
            "node 'node-9_9_0', and this etcd-rendezvous speaks version 1; install the same release on all nodes."
        )
        assert run.etcd.current[run.keys.round].value == NEWER  # it is not overwritten
        assert not [key for key in run.etcd.current if key.startswith(run.keys.nodes)]  # the node has left

    simulated(scenario())


def test_a_member_leaves_a_run_that_has_gone_over_to_a_newer_version():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(2, Limits(2, 2))
        await form(nodes, 0)
        (member,) = kill_coordinator(run, nodes)
        run.put(run.keys.round, NEWER)
        await until(member.num_nodes_waiting, "there is a reason to join again")
        with pytest.raises(RendezvousStateError, match="was written in version 2 of the protocol"):
            await join(member)
        assert run.etcd.current[run.keys.round].value == NEWER

    simulated(scenario())


def test_a_newer_version_under_a_coordinator_that_lives_is_foreign_and_overwritten():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(2, Limits(2, 2))
        await form(nodes, 0)
        run.put(run.keys.round, NEWER)
        await until(lambda: run.etcd.current[run.keys.round].value != NEWER, "the coordinator writes its record again")
        assert (run.record().round, run.record().complete) == (0, True)

    simulated(scenario())


def add_newer_node(run: Run, number: int, value: bytes) -> None:
    """Add the key of a node of a newer version, bound to a lease."""
    lease = run.etcd.handle(Call.GRANT, rpc_pb2.LeaseGrantRequest(TTL=1000), None).ID
    run.put(run.keys.node(lease), value, lease)


def test_nodes_of_a_newer_version_take_part_and_are_reported_once(caplog):
    async def scenario() -> None:
        run = Run()
        for number in (1, 2):
            record = NodeRecord(f"node-{number}", number, 0, version=2).encode()
            add_newer_node(run, number, record[:-1] + b',"new":{}}')
        place, _ = await join(run.node(0, Limits(3, 3)))
        assert (place.world_size, run.record().version) == (3, 1)
        (warning,) = said(
            caplog, "speaks version 2 of the protocol; the run goes by version 1, that of the coordinator,"
        )
        assert warning.startswith("node 'node-1_1_0' of the rendezvous 'run'")

    simulated(scenario())


def test_a_node_of_a_newer_version_that_cannot_be_read_is_ignored_with_both_versions(caplog):
    async def scenario() -> None:
        run = Run()
        add_newer_node(run, 1, b'{"address":"node-1","v":3}')
        await form(run.nodes(2, Limits(2, 2)), 0)
        assert len(said(caplog, "was written in version 3 of the protocol, and this etcd-rendezvous speaks")) == 1
        (warning,) = said(caplog, "the key is ignored")
        assert "version 1" in warning

    simulated(scenario())


def test_a_coordinator_keeps_the_fields_that_a_newer_one_wrote_about_the_round():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(2, 3, last_call=0.5))
        await form(nodes, 0)
        left = kill_coordinator(run, nodes)
        kv = run.etcd.current[run.keys.round]
        newer = b'"new":{"a":[1,null]},"newer":1.50'
        run.put(run.keys.round, kv.value[:-1] + b"," + newer + b"}", kv.lease)
        await until(lambda: run.record().lost, "the loss is published")
        assert run.record().by == coordinator(run, left)._node.name
        assert run.etcd.current[run.keys.round].value.endswith(b"," + newer + b"}")
        await form(left, 1)  # another round, of which the newer coordinator said nothing
        assert b'"new"' not in run.etcd.current[run.keys.round].value

    simulated(scenario())


def test_a_round_record_of_the_first_coordinator_has_its_settings_while_it_forms():
    async def scenario() -> None:
        run = Run()
        joining = join(run.node(0, Limits(2, 2)))
        await until(lambda: run.keys.round in run.etcd.current, "the round record is published")
        record: RoundRecord = run.record()
        assert (record.phase, record.by, record.settings.max_nodes) == (Phase.FORMING, "node-0_0_0", 2)
        joining.cancel()

    simulated(scenario())
