"""A coordinator takes over from records that are damaged or lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.rules import Limits
from rendezvous.etcd.v3.calls import Call
from tests.hostile.runs import SHARDED, Run, damage, end_run_lease, form, join, kill_coordinator, simulated, until

pytestmark = pytest.mark.both_twins

# Taking over.


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


def test_if_the_record_of_a_damaged_roster_is_lost_the_members_are_still_not_known():
    async def scenario() -> None:
        run = Run()
        nodes = [run.node(number, Limits(2, 4, last_call=1.0), options=SHARDED) for number in range(4)]
        await form(nodes, 0)
        damage(run, "a shard")
        first = kill_coordinator(run, nodes)
        await until(lambda: run.record().error, "the coordinator cannot read the roster")
        attempt = run.record().attempt
        run.delete(run.keys.round)
        await until(lambda: run.keys.round in run.etcd.current, "the record is written again")
        second = run.etcd.current[run.keys.coordinator]
        left = [node for node in kill_coordinator(run, nodes) if node in first]
        await until(
            lambda: run.etcd.current.get(run.keys.coordinator, second).value != second.value, "another node takes over"
        )
        await asyncio.sleep(2)
        assert run.record().attempt == attempt
        assert run.record().error
        await form(left, 1)

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


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_go_on_if_the_record_and_the_coordinator_are_lost_at_once(rounds: int):
    async def scenario() -> None:
        run = Run()
        limits = Limits(3, 4, last_call=1.0)
        nodes = run.nodes(5, limits)
        for number in range(rounds):
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
        assert number >= rounds

    simulated(scenario())


def test_rounds_go_on_if_the_record_is_lost_while_a_coordinator_takes_over():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(2, 3, last_call=1.0))
        await form(nodes, 0)

        def lose(stage: str, call: Call, request: Any) -> None:
            """End the run lease as soon as the next coordinator has read the record."""
            if stage == "after" and call is Call.RANGE and request.key == run.keys.ctl:
                for link in run.links:
                    link.hook = lambda stage, call, request: None
                end_run_lease(run)

        for link in run.links:
            link.hook = lose
        left = kill_coordinator(run, nodes)
        await until(lambda: all(node.num_nodes_waiting() for node in left), "the nodes are told to leave the round")
        assert "was deleted" in run.record().error  # not a round with nodes that are still in another one
        places = await asyncio.gather(*map(join, left))
        assert sorted(place.rank for place, _ in places) == [0, 1]
        (number,) = {place.round for place, _ in places}
        assert number > 0

    simulated(scenario())


def test_a_closed_run_stays_closed_and_its_records_stay_while_one_member_runs():
    async def scenario() -> None:
        run = Run()
        options = Options(run_ttl=30, run_keep_alive_interval=5.0)
        nodes = [run.node(number, Limits(3, 3), options) for number in range(3)]
        await form(nodes, 0)
        await nodes[1].close("enough", asyncio.get_running_loop().time() + 5)
        await nodes[0].leave(1)
        await nodes[1].leave(1)
        await asyncio.sleep(300)  # nobody is elected any more
        assert {run.keys.closed, run.keys.round} <= set(run.etcd.current)
        await nodes[2].leave(1)
        await asyncio.sleep(100)
        assert not run.etcd.current

    simulated(scenario())


def test_the_records_of_a_run_stay_while_members_run_that_have_lost_their_leases():
    async def scenario() -> None:
        run = Run()
        options = Options(run_ttl=30, run_keep_alive_interval=5.0)
        nodes = [run.node(number, Limits(2, 2, reform_on_loss=False), options) for number in range(2)]
        await form(nodes, 0)
        for node in nodes:
            assert node.node_id is not None
            run.etcd.end_lease(node.node_id)
        await until(lambda: all(node.state is State.LOST for node in nodes), "the nodes know that they are lost")
        await asyncio.sleep(300)
        assert run.keys.round in run.etcd.current
        assert not any(node.num_nodes_waiting() for node in nodes)

    simulated(scenario())


@pytest.mark.parametrize("seconds", range(300, 360, 10))
def test_a_coordinator_goes_on_soon_after_a_damaged_record_is_deleted(seconds: int):
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(2, 3, last_call=1.0))
        await form(nodes, 0)
        left = kill_coordinator(run, nodes)
        run.put(run.keys.round, b"?")
        await asyncio.sleep(seconds)  # its pauses between two attempts are long now
        run.delete(run.keys.round)
        await until(lambda: all(node.num_nodes_waiting() for node in left), "the nodes are told to go on", 5.0)
        places = await asyncio.gather(*map(join, left))
        assert {(place.round, place.world_size) for place, _ in places} == {(2, 2)}  # above the one that was deleted

    simulated(scenario())


def test_a_spare_looks_for_its_rank_again_if_a_round_number_is_used_again():
    async def scenario() -> None:
        run = Run()
        nodes = run.nodes(3, Limits(2, 2))
        await form(nodes[:2], 0)
        spare = join(nodes[2])
        await until(lambda: nodes[2].state is State.STANDING_BY, "the third node is a spare")
        left = kill_coordinator(run, nodes)
        left.remove(nodes[2])
        end_run_lease(run)
        for node in nodes:
            node.view.last_record = None  # as for nodes that have joined since then
        await until(lambda: left[0].num_nodes_waiting(), "the member is told to leave the round")
        places = await asyncio.gather(join(left[0]), spare)
        assert sorted(place.rank for place, _ in places) == [0, 1]

    simulated(scenario())


def test_the_first_round_does_not_form_again_if_a_newcomer_takes_over_without_its_record():
    async def scenario() -> None:
        run = Run()
        limits = Limits(2, 4, last_call=1.0)
        nodes = [run.node(number, limits) for number in (3, 4, 5)]
        await form(nodes, 0)
        left = kill_coordinator(run, nodes)
        await until(lambda: run.keys.coordinator not in run.etcd.current, "the coordinator is lost")
        run.delete(run.keys.round)
        for node in left:
            node._election.stop()  # it is slower than the newcomer
        newcomer = join(run.node(1, limits))  # it would get rank 0
        await until(lambda: run.keys.round in run.etcd.current, "the newcomer coordinates")
        await asyncio.sleep(5)
        assert not newcomer.done()  # two nodes are still in round 0
        places = await asyncio.gather(*map(join, left), newcomer)
        assert {(place.round, place.world_size) for place, _ in places} == {(1, 3)}

    simulated(scenario())
