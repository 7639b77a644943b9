"""Keys of a run that were written by another program, by an older request or by nobody: nodes say so, or go on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated import member
from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.member import Member, Settings
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Bootstrap, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import delete_op, put_op
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import VirtualLoop

pytestmark = pytest.mark.both_twins

TIMEOUT = 20.0
SOME_ID = "0123456789abcdef"


class Run:
    """Nodes on a simulated etcd, and somebody else who writes there too."""

    def __init__(self) -> None:
        self.etcd, self.keys = Etcd(), Keys("/p", "run")
        self.links: list[Link] = []

    def node(self, number: int, limits: Limits, options: Options = Options()) -> Member:  # noqa: B008
        rng = random.Random(number)
        self.links.append(Link(self.etcd, Conditions(latency=0.01), None, rng))
        settings = Settings("run", limits, 1.0, 3, options)
        return Member(self.links[-1], self.keys, NodeRecord(f"node-{number}", number, 0), settings, rng)

    def nodes(self, count: int, limits: Limits) -> list[Member]:
        return [self.node(number, limits) for number in range(count)]

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[put_op(key, value, lease)]), None)

    def delete(self, key: bytes) -> None:
        self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[delete_op(key)]), None)

    def record(self) -> RoundRecord:
        kv = self.etcd.current[self.keys.round]
        return RoundRecord.decode(kv.key, kv.value)


def join(node: Member, timeout: float = TIMEOUT) -> asyncio.Task[tuple[Assignment, Bootstrap]]:
    port = 1000 + node._node.pid
    return asyncio.get_running_loop().create_task(node.join(timeout, lambda: port))


async def form(nodes: list[Member], number: int) -> list[tuple[Assignment, Bootstrap]]:
    """Let nodes form a round, and check what they get from it."""
    places = await asyncio.gather(*map(join, nodes))
    assert sorted(place.rank for place, _ in places) == list(range(len(nodes)))
    assert {(place.round, place.world_size) for place, _ in places} == {(number, len(nodes))}
    first = next(node for node, (place, _) in zip(nodes, places, strict=True) if place.rank == 0)
    assert {(told.addr, told.port) for _, told in places} == {(first._node.addr, 1000 + first._node.pid)}
    return list(places)


async def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


def simulated(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario on a virtual clock."""
    loop = VirtualLoop()
    errors: list[str] = []
    loop.set_exception_handler(lambda loop, context: errors.append(str(context)))
    try:
        loop.run_until_complete(scenario)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert errors == []


def warnings(caplog: pytest.LogCaptureFixture, key: bytes) -> list[str]:
    """Return the warnings that name an etcd key."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if key.decode() in text]


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


# Taking over.

SHARDED = Options(inline_nodes=1, shard_nodes=1)


def damage(run: Run, what: str) -> None:
    """Damage what a new coordinator reads."""
    prefix = run.keys.roster(run.record().round, run.record().attempt)
    keys = [key for key in run.etcd.current if key.startswith(prefix)]
    names = [key for key in keys if b"/names/" in key]
    if what == "the names":
        for key in names:
            run.put(key, b"\xff")
    elif what == "the names are gone":
        for key in names:
            run.delete(key)
    elif what == "a shard":
        run.put(min(keys), b"RR\x01 and nothing else")
    elif what == "a shard is gone":
        run.delete(min(keys))
    run.etcd.compact(run.etcd.revision)


def kill_coordinator(run: Run, nodes: list[Member]) -> list[Member]:
    """Kill the coordinator's process, and return the other nodes."""
    leader = run.etcd.current[run.keys.coordinator].lease
    dead = next(node for node in nodes if node.node_id == leader)
    run.links[nodes.index(dead)].dead = True
    return [node for node in nodes if node is not dead]


@pytest.mark.parametrize("what", ["the names", "the names are gone"])
def test_a_coordinator_takes_over_without_the_names_of_the_members(what: str):
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(4, Limits(3, 4, last_call=1.0))
        await form(nodes, 0)
        damage(run, what)
        left = kill_coordinator(run, nodes)
        await until(lambda: all(node.num_nodes_waiting() for node in left), "the loss is seen")
        assert len(run.record().missing) == 1
        await form(left, 1)

    simulated(scenario())


@pytest.mark.parametrize("what", ["a shard", "a shard is gone"])
@pytest.mark.parametrize("reform", [True, False], ids=["reform", "ignore"])
def test_if_the_roster_is_damaged_all_nodes_learn_why_and_form_the_next_round(what: str, reform: bool):
    async def scenario() -> None:
        run = Run()
        limits = Limits(3, 4, last_call=1.0, reform_on_loss=reform)
        nodes = [run.node(number, limits, options=SHARDED) for number in range(5)]
        await form(nodes[:4], 0)
        spare = join(nodes[4])
        await until(lambda: nodes[4].state is State.STANDING_BY, "the fifth node is a spare")
        damage(run, what)
        left = kill_coordinator(run, nodes)
        left.remove(nodes[4])
        await until(lambda: all(node.num_nodes_waiting() for node in left), "the damage is seen")
        assert "roster of round 0" in run.record().error
        assert run.keys.roster(0, run.record().attempt).decode() in run.record().error
        await asyncio.sleep(5)
        assert run.record().round == 0  # members are still in the round
        places = await asyncio.gather(*map(join, left), spare)
        assert sorted(place.rank for place, _ in places) == [0, 1, 2, 3]
        assert {place.round for place, _ in places} == {1}
        assert not run.record().error

    simulated(scenario())


def test_a_damaged_roster_of_the_last_round_does_not_stop_the_next():
    async def scenario() -> None:
        run = Run()
        nodes = [run.node(number, Limits(3, 3, last_call=1.0), options=SHARDED) for number in range(3)]
        await form(nodes, 0)
        damage(run, "a shard")
        left = kill_coordinator(run, nodes)[:1]
        await until(lambda: left[0].num_nodes_waiting(), "the damage is seen")
        waiting = [join(node, 60) for node in left]
        await until(lambda: run.keys.coordinator in run.etcd.current, "another node coordinates")
        await until(lambda: run.record().round == 0 and run.record().error, "the round is complete")
        others = [node for node in nodes if node not in left]
        for node in others:
            run.links[nodes.index(node)].dead = True
        newcomers = [join(run.node(number, Limits(3, 3, last_call=1.0))) for number in (7, 8)]
        places = await asyncio.gather(*waiting, *newcomers)
        assert {(place.round, place.world_size) for place, _ in places} == {(1, 3)}

    simulated(scenario())


# The run lease.


def end_run_lease(run: Run) -> None:
    """End the lease to which the records of the run are bound."""
    run.etcd.handle(Call.REVOKE, rpc_pb2.LeaseRevokeRequest(ID=run.etcd.current[run.keys.round].lease), None)
    assert run.keys.round not in run.etcd.current


@pytest.mark.parametrize("options", [Options(), SHARDED], ids=["inline", "sharded"])
def test_a_running_job_goes_on_if_the_run_lease_ends(options: Options):
    async def scenario() -> None:
        run = Run()
        nodes = [run.node(number, Limits(3, 3), options) for number in range(3)]
        await form(nodes, 0)
        await form(nodes, 1)
        record = run.record()
        prefix = run.keys.roster(1, record.attempt)
        stored = {key: kv.value for key, kv in run.etcd.current.items() if key.startswith(prefix)}
        end_run_lease(run)
        await until(lambda: run.keys.round in run.etcd.current, "the record is written again")
        assert run.record() == record
        assert {key: kv.value for key, kv in run.etcd.current.items() if key.startswith(prefix)} == stored
        assert run.etcd.current[run.keys.round].lease in run.etcd.leases
        await asyncio.sleep(5)
        assert not any(node.num_nodes_waiting() for node in nodes)
        await form(nodes, 2)

    simulated(scenario())


def test_a_round_that_forms_goes_on_if_the_run_lease_ends():
    async def scenario() -> None:
        run = Run()
        limits = Limits(3, 3)
        nodes = run.nodes(3, limits)
        await form(nodes, 0)
        joins = [join(node) for node in nodes[:2]]
        await until(lambda: all(node.num_nodes_waiting() for node in nodes), "two nodes have left the round")
        await nodes[2].leave(1)
        await until(lambda: run.record().round == 1, "the next round forms")
        end_run_lease(run)
        joins.append(join(run.node(9, limits)))
        places = await asyncio.gather(*joins)
        assert {(place.round, place.world_size) for place, _ in places} == {(1, 3)}

    simulated(scenario())


def test_rounds_go_on_if_the_record_and_the_coordinator_are_lost_at_once():
    async def scenario() -> None:
        run = Run()
        limits = Limits(3, 4, last_call=1.0)
        nodes = run.nodes(5, limits)
        for number in range(3):
            places = await asyncio.gather(*map(join, nodes[:4]))
            assert {place.round for place, _ in places} == {number}
        spare = join(nodes[4])
        await until(lambda: nodes[4].state is State.STANDING_BY, "the fifth node is a spare")
        left = kill_coordinator(run, nodes)
        left.remove(nodes[4])
        end_run_lease(run)
        await until(lambda: all(node.num_nodes_waiting() for node in left), "the nodes are told to leave the round")
        await asyncio.sleep(5)
        places = await asyncio.gather(*map(join, left), spare)
        assert sorted(place.rank for place, _ in places) == [0, 1, 2, 3]
        (number,) = {place.round for place, _ in places}
        assert number > 2

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


# nodes/.

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
