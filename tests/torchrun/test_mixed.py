"""Jobs in which some nodes have torch's rendezvous and some have ours, on a real etcd."""

from __future__ import annotations

import json

import pytest

from rendezvous.etcd.v2.client import etcd_module
from tests.nodes import BOUND, eventually
from tests.torchrun.mixed import Failure, Nodes, agree

TWO_AND_TWO = [["torch", "torch", "ours", "ours"], ["ours", "ours", "torch", "torch"], ["torch", "ours"] * 2]
BOTH = ["torch", "ours"]


def other(kind: str) -> str:
    return "ours" if kind == "torch" else "torch"


@pytest.fixture
def job(etcd, run_id):
    nodes = Nodes(etcd.get_endpoint(), run_id)
    yield nodes
    nodes.stop()


@pytest.fixture
def state(etcd, run_id):
    """Return the state of the legacy rendezvous as it is in etcd; None if there is none."""
    client = etcd.get_client()

    def read():
        try:
            return json.loads(client.read(f"/torchelastic/p2p/run_{run_id}/rdzv/active_version").value)
        except etcd_module().EtcdKeyNotFound:
            return None

    return read


def join_in_order(nodes, state):
    """Have nodes join a new round, one after the other."""
    for number, node in enumerate(nodes):
        node.join()
        eventually(
            lambda number=number: len((state() or {}).get("participants", ())) > number, f"node {number} has joined"
        )


# The legacy rendezvous.


@pytest.mark.parametrize("kinds", TWO_AND_TWO, ids="-".join)
def test_a_world_of_fixed_size_has_ranks_in_order_of_arrival(job, state, kinds):
    nodes = job.start(kinds, 4, 4)
    join_in_order(nodes, state)
    outcomes = agree(nodes)
    assert [outcome.rank for outcome in outcomes] == [0, 1, 2, 3]
    assert outcomes[0].version == state()["version"] == "1"
    assert state()["status"] == "final"


def test_nodes_of_both_kinds_join_at_the_same_time(job):
    nodes = job.start(["torch", "ours"] * 3, 6, 6)
    for node in nodes:
        node.join()
    agree(nodes)


@pytest.mark.parametrize("kinds", TWO_AND_TWO, ids="-".join)
def test_the_last_call_ends_with_the_maximum(job, state, kinds):
    # The second node waits during the last call, and the fourth, of either kind, ends it.
    nodes = job.start(kinds, 2, 4, last_call_timeout=int(2 * BOUND))
    join_in_order(nodes, state)
    assert [outcome.rank for outcome in agree(nodes)] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", BOTH)
def test_the_last_call_of_either_kind_ends_in_time(job, state, kind):
    nodes = job.start([other(kind), kind], 2, 3, last_call_timeout=1)
    join_in_order(nodes, state)
    assert [outcome.rank for outcome in agree(nodes)] == [0, 1]


@pytest.mark.parametrize("kind", BOTH)
def test_a_newcomer_of_either_kind_is_seen_by_both_kinds(job, kind):
    *nodes, newcomer = job.start(["torch", "ours", kind], 2, 2)
    for node in nodes:
        node.join()
    agree(nodes)
    assert [node.ask("num_nodes_waiting") for node in nodes] == [0, 0]
    newcomer.join()
    for node in nodes:
        eventually(lambda node=node: node.ask("num_nodes_waiting") == 1, f"{node} sees the newcomer")
    nodes[0].ask("set_closed")
    with pytest.raises(Failure, match="RendezvousClosedError"):
        newcomer.answer()


@pytest.mark.parametrize("kind", BOTH)
def test_after_a_node_of_either_kind_dies_the_others_form_the_next_round(job, state, kind):
    # The node that is killed starts the last call of the first round, and the fourth node ends it. The last calls of
    # the others are short: the second round needs all of them anyway.
    first, second, last = job.start(["torch", "ours", "ours"], 3, 4, last_call_timeout=1)
    (victim,) = job.start([kind], 3, 4, last_call_timeout=int(2 * BOUND))
    nodes = [first, second, victim, last]
    join_in_order(nodes, state)
    assert agree(nodes)[0].version == "1"
    job.kill(victim)
    for node in job.nodes:
        node.join()
    outcomes = agree(job.nodes)
    assert outcomes[0].version == state()["version"] != "1"


@pytest.mark.parametrize("kind", BOTH)
def test_a_dead_node_of_either_kind_is_replaced_by_one_of_the_other(job, state, kind):
    nodes = job.start(["torch", "ours", kind], 3, 3)
    job.start([other(kind)], 3, 3)  # it joins with those who are left
    for node in nodes:
        node.join()
    assert agree(nodes)[0].version == "1"
    job.kill(nodes[2])
    for node in job.nodes:
        node.join()
    assert agree(job.nodes)[0].version == state()["version"] != "1"


@pytest.mark.parametrize("kind", BOTH)
def test_a_round_that_a_dead_node_of_either_kind_began_expires(job, state, kind):
    # The dead node has joined and does not confirm.
    dead, *nodes = job.start([kind, "torch", "ours"], 3, 3)
    dead.join()
    eventually(lambda: (state() or {}).get("participants") == [0], "the first node has joined")
    job.kill(dead)
    for node in nodes:
        node.join()
    eventually(lambda: (state() or {}).get("version", "1") != "1", "another round begins")
    (last,) = job.start([other(kind)], 3, 3)
    last.join()
    assert int(agree([*nodes, last])[0].version) > 1


@pytest.mark.parametrize("kind", BOTH)
def test_either_kind_closes_for_both(job, state, kind):
    nodes = job.start(["torch", "ours", kind], 3, 3)
    waiting, closer = nodes[:2], nodes[2]
    join_in_order(waiting, state)
    closer.ask("set_closed")
    for node in waiting:
        with pytest.raises(Failure, match="RendezvousClosedError"):
            node.answer()
        assert node.ask("is_closed")
    for node in nodes:
        with pytest.raises(Failure, match="RendezvousClosedError"):
            node.ask("join")


@pytest.mark.parametrize("kind", BOTH)
def test_a_complete_round_is_closed_by_either_kind(job, kind):
    nodes = job.start(["torch", "ours"], 2, 2)
    for node in nodes:
        node.join()
    agree(nodes)
    assert not any(node.ask("is_closed") for node in nodes)
    closer = nodes[BOTH.index(kind)]
    assert closer.ask("shutdown")
    for node in nodes:
        eventually(lambda node=node: node.ask("is_closed"), f"{node} reads that it is closed")


# The dynamic rendezvous, etcd-v2.


def test_torch_s_dynamic_handlers_over_our_backend_and_over_torch_s_in_one_job(job):
    nodes = job.start(["torch-v2", "torch-v2-over-ours"] * 2, 4, 4)
    for _ in range(2):
        for node in nodes:
            node.join()
        agree(nodes)
    assert nodes[1].ask("shutdown")
    for node in nodes:
        eventually(lambda node=node: node.ask("is_closed"), f"{node} reads that it is closed")


def test_our_dynamic_node_detects_a_torch_node_on_its_key(job, etcd, run_id):
    theirs, ours = job.start(["torch-v2", "ours-v2"], 2, 2)
    theirs.join()
    client = etcd.get_client()
    key = f"/torch/elastic/rendezvous/{run_id}"
    eventually(lambda: any(child.key == key for child in client.read("/", recursive=True).leaves), "torch's pickle")
    with pytest.raises(Failure, match=r"RendezvousStateError: .*torch's own rendezvous uses the same key"):
        ours.ask("join")
