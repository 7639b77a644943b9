"""Keys under ctl/ that were written by another program, by an older request or by nobody: nodes say so, or go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated import member
from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.records import Bootstrap, Keys
from rendezvous.coordinated.rules import Limits
from rendezvous.etcd.v3.calls import Call
from tests.hostile.runs import SOME_ID, Run, form, join, simulated, until, warnings

pytestmark = pytest.mark.both_twins

# ctl/bootstrap.

FOREIGN_BOOTSTRAPS = {
    "another round": Bootstrap(10**9, SOME_ID, SOME_ID, "evil", 7).encode(),
    "this round": Bootstrap(0, SOME_ID, SOME_ID, "evil", 7).encode(),
    "not a port": b'{"round":0,"attempt":"%s","node":"%s","addr":"evil","port":-7}' % (2 * (SOME_ID.encode(),)),
    "not an address": b'{"round":0,"attempt":"%s","node":"%s","addr":"e\\nvil","port":7}' % (2 * (SOME_ID.encode(),)),
    "of an old version": b'{"round":0,"addr":"evil","port":7}',
    "no record": b"\x80\x04 pickle",
}


@pytest.mark.parametrize("planted", FOREIGN_BOOTSTRAPS.values(), ids=FOREIGN_BOOTSTRAPS)
@pytest.mark.parametrize("when", ["before", "complete", "running"])
def test_a_foreign_bootstrap_is_ignored_with_one_warning(planted: bytes, when: str, caplog):
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(3, 3))
        key = run.keys.bootstrap
        if when == "before":
            run.put(key, planted)
        elif when == "complete":  # just before rank 0 publishes

            def plant(stage: str, call: Call, request: Any) -> None:
                writes = call is Call.TXN and any(op.request_put.key == key for op in request.success)
                if stage == "before" and writes and not planted_at:
                    planted_at.append(run.etcd.revision)
                    run.put(key, planted)

            planted_at: list[int] = []
            for link in run.links:
                link.hook = plant
        await form(nodes, 0)
        revision = run.etcd.revision
        if when == "running":
            run.put(key, planted)
        await asyncio.sleep(5)
        assert run.etcd.revision <= revision + 2
        await form(nodes, 1)
        await form(nodes, 2)
        assert run.etcd.revision < revision + 40

    simulated(scenario())
    for node in range(3):
        assert len([text for text in warnings(caplog, Keys("/p", "run").bootstrap) if f"node-{node}_" in text]) <= 1
    if when == "complete":
        assert warnings(caplog, Keys("/p", "run").bootstrap)


def test_a_bootstrap_is_deleted_when_the_next_round_completes():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(2, Limits(2, 2))
        for number in range(3):
            places = await form(nodes, number)
            kv = run.etcd.current[run.keys.bootstrap]
            assert kv.version == 1  # it was absent before
            assert {place.since for place, _ in places} == {kv.mod_revision}
            told = Bootstrap.decode(kv.key, kv.value)
            assert (told.attempt, told.node) == (run.record().attempt, run.record().first)

    simulated(scenario())


def test_a_newcomer_does_not_get_the_address_of_a_dead_job():
    """The operator deleted the round record, so that the round numbers of the new job are those of the dead one."""

    async def scenario() -> None:
        run = Run()
        await form(run.nodes(2, Limits(2, 2)), 0)
        for link in run.links:
            link.dead = True
        await until(lambda: run.keys.coordinator not in run.etcd.current, "the job is dead")
        run.delete(run.keys.round)
        limits = Limits(2, 2)
        await form([run.node(7, limits), run.node(8, limits)], 0)

    simulated(scenario())


# ctl/coordinator.

FOREIGN_COORDINATORS = {
    "a node id": b"0123456789abcdef",
    "a record without a lease": b'{"node":"0123456789abcdef","nonce":"0123456789abcdef"}',
    "no record": b"\x80\x04 pickle",
    "empty": b"",
}


@pytest.mark.parametrize("planted", FOREIGN_COORDINATORS.values(), ids=FOREIGN_COORDINATORS)
def test_a_foreign_coordinator_is_an_error_at_once_that_names_the_key(planted: bytes):
    async def scenario() -> None:
        run = Run()
        run.put(run.keys.coordinator, planted)
        revision = run.etcd.revision
        for node in run.nodes(2, Limits(2, 2)):
            with pytest.raises(RendezvousStateError, match=r"'/p/run/ctl/coordinator' contains "):
                await join(node)
        assert asyncio.get_running_loop().time() < 4
        assert not [key for key in run.etcd.current if key.startswith(run.keys.nodes)]
        assert run.etcd.revision <= revision + 4
        run.delete(run.keys.coordinator)
        await form(run.nodes(2, Limits(2, 2)), 0)

    simulated(scenario())


@pytest.mark.parametrize("planted", [*FOREIGN_COORDINATORS.values(), None], ids=[*FOREIGN_COORDINATORS, "deleted"])
@pytest.mark.parametrize("forming", [True, False], ids=["forming", "running"])
def test_a_coordinator_whose_key_is_deleted_or_overwritten_takes_it_back(planted: bytes | None, forming: bool):
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(3, 3))
        joins = [join(node) for node in nodes[: 2 if forming else 3]]
        await asyncio.sleep(3)
        for _ in range(3):
            before = run.etcd.current[run.keys.coordinator].value
            if planted is None:
                run.delete(run.keys.coordinator)
            else:
                run.put(run.keys.coordinator, planted)
            await asyncio.sleep(3)
            kv = run.etcd.current[run.keys.coordinator]
            assert kv.lease in [node.node_id for node in nodes]
            assert kv.value not in (planted, before)
        if forming:
            joins.append(join(nodes[2]))
        assert {(place.round, place.world_size) for place, _ in await asyncio.gather(*joins)} == {(0, 3)}
        assert not any(node.num_nodes_waiting() for node in nodes)
        await form(nodes, 1)

    simulated(scenario())


@pytest.mark.parametrize(
    "planted", [b"\x80\x04 pickle", b'{"round":1,"phase":"complete"}'], ids=["no record", "no roster"]
)
def test_a_round_record_that_is_overwritten_in_a_running_job_is_written_again(planted: bytes):
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(3, 3))
        await form(nodes, 0)
        record = run.record()
        run.put(run.keys.round, planted)
        await until(lambda: run.etcd.current[run.keys.round].value != planted, "the record is written again")
        assert run.record() == record
        await form(nodes, 1)

    simulated(scenario())


# ctl/round.

_COMPLETE = b'{"round":%s,"phase":"complete","attempt":"0123456789abcdef","first":"0123456789abcdef",%s}'
FOREIGN_ROUNDS = {
    "round": _COMPLETE % (b"10000000000", b'"world_size":2,"shards":1'),
    "shards": _COMPLETE % (b"0", b'"world_size":2,"shards":0'),
    "world_size": _COMPLETE % (b"0", b'"world_size":0,"shards":1'),
    "waiting": _COMPLETE % (b"0", b'"world_size":2,"shards":1,"waiting":-1'),
    "attempt": b'{"round":0,"phase":"complete","world_size":2,"shards":1}',
    "phase": b'{"round":0,"phase":"over"}',
    "roster": _COMPLETE % (b"0", b'"world_size":2,"shards":1,"roster":"%"'),
    "missing[0]": b'{"round":0,"phase":"forming","missing":[7]}',
}


@pytest.mark.parametrize(("field", "planted"), FOREIGN_ROUNDS.items(), ids=FOREIGN_ROUNDS)
def test_a_round_record_out_of_range_is_an_error_that_names_key_and_field_and_the_node_leaves(
    field: str, planted: bytes
):
    async def scenario() -> None:
        run = Run()
        run.put(run.keys.round, planted)
        for node in run.nodes(2, Limits(2, 2)):
            with pytest.raises(RendezvousStateError) as caught:
                await join(node)
            assert "'/p/run/ctl/round' contains " in str(caught.value)
            assert f"'{field}'" in str(caught.value)
            assert node.state is State.IDLE
        assert asyncio.get_running_loop().time() < 4
        assert list(run.etcd.current) == [run.keys.round]  # the nodes' keys are gone, and so are their leases
        await asyncio.sleep(1)
        assert not [lease for lease, (ttl, _) in run.etcd.leases.items() if ttl == 3]

    simulated(scenario())


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, KeyError])
def test_a_node_leaves_whatever_the_error(error: type[Exception], monkeypatch):
    async def fail(*arguments: Any) -> None:
        raise error("a fault of this package")

    async def scenario() -> None:
        run = Run()
        (node,) = run.nodes(1, Limits(1, 1))
        monkeypatch.setattr(member, "find_rank", fail)
        with pytest.raises(error):
            await join(node)
        assert node.state is State.IDLE
        assert not [key for key in run.etcd.current if key.startswith((run.keys.nodes, run.keys.coordinator))]

    simulated(scenario())
