"""Handlers of the coordinated rendezvous on a real etcd."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta

import pytest

from rendezvous import get_rendezvous_handler
from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rendezvous.coordinated.lifecycle import State
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import put_op
from tests.etcd.coordinated_job import TTL, Job, MakeJob, jobs, kill
from tests.nodes import BOUND, eventually, join, join_all

pytestmark = pytest.mark.both_twins


@pytest.fixture
def job(etcd3, run_id) -> Iterator[MakeJob]:
    yield from jobs(etcd3.get_endpoint(), run_id)


def test_nodes_meet_agree_and_share_a_store(job):
    infos = join_all(job(3, 3).nodes(3))
    by_rank = sorted(infos, key=lambda info: info.rank)
    by_rank[0].store.set("key", "value")
    assert by_rank[2].store.get("key") == b"value"
    assert [by_rank[n].store.add("count", 1) for n in range(3)] == [1, 2, 3]
    assert by_rank[0].bootstrap_store_info.master_addr == "node-0"


def test_ranks_follow_the_natural_order_of_hosts(job):
    nodes = [job(3, 3).node(name) for name in ("node-10", "node-9", "node-2")]
    infos = [future.result(BOUND) for future in [join(node) for node in nodes]]
    assert [info.rank for info in infos] == [2, 1, 0]


def test_the_registry_makes_the_handler(etcd3, run_id):
    handler = get_rendezvous_handler(RendezvousParameters("etcd-v3", etcd3.get_endpoint(), run_id, 1, 1))
    assert (handler.get_backend(), handler.get_run_id()) == ("etcd-v3", run_id)
    assert not handler.is_closed()
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    assert handler.shutdown()
    assert handler.is_closed()
    with pytest.raises(RendezvousClosedError, match=r"is closed \(shutdown\(\) was called, by "):
        handler.next_rendezvous()


def test_the_round_completes_with_the_minimum_of_nodes_after_the_last_call(job):
    infos = join_all(job(2, 4).nodes(2))
    assert {info.world_size for info in infos} == {2}


def test_a_newcomer_joins_the_next_round_of_a_running_job(job):
    run = job(2, 4)
    nodes = run.nodes(2)
    join_all(nodes)
    assert [node.num_nodes_waiting() for node in nodes] == [0, 0]
    late = run.node("node-2")
    future = join(late)
    eventually(lambda: all(node.num_nodes_waiting() == 1 for node in nodes), "the newcomer is seen")
    futures = [join(node) for node in nodes]
    infos = [each.result(BOUND) for each in (*futures, future)]
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert {info.world_size for info in infos} == {3}


def test_a_node_without_room_is_a_spare_and_replaces_a_lost_member(job):
    run = job(2, 2, join_timeout=3)
    nodes = run.nodes(2)
    join_all(nodes)
    spare = join(run.node("spare"))
    eventually(lambda: run.record().spares == 1, "the spare is counted")
    # It is a spare for longer than the join timeout.
    with pytest.raises(concurrent.futures.TimeoutError):  # from Python 3.11 on the builtin one
        spare.result(4)
    assert [node.num_nodes_waiting() for node in nodes] == [0, 0]
    kill(nodes[1])
    eventually(lambda: nodes[0].num_nodes_waiting() > 0, "the loss is seen", TTL + 10)
    again = join(nodes[0])
    assert {again.result(BOUND).world_size, spare.result(BOUND).world_size} == {2}


def test_shutdown_of_a_spare_does_not_close(job):
    run = job(2, 2)
    nodes = run.nodes(2)
    join_all(nodes)
    spare = run.node("node-2")
    join(spare)
    eventually(lambda: spare.member.state is State.STANDING_BY, "the third node is a spare")
    assert spare.shutdown()
    assert not nodes[0].is_closed()
    assert not run.range(run.keys.closed)
    assert len(run.range(run.keys.nodes)) == 2
    join_all(nodes)  # the others go on
    assert nodes[0].shutdown()  # a member still closes
    assert run.range(run.keys.closed)


def test_shutdown_after_a_join_that_timed_out_closes(job):
    run = job(2, 2, join_timeout=3)
    (node,) = run.nodes(1)
    with pytest.raises(RendezvousTimeoutError):
        node.next_rendezvous()
    assert node.shutdown()
    assert run.range(run.keys.closed)


def test_without_upscale_a_newcomer_is_a_spare(job):
    run = job(1, 3, upscale="false")
    first = run.node("node-0")
    first.next_rendezvous()
    waiting = join(run.node("node-1"))
    eventually(lambda: run.record().spares == 1, "the spare is counted")
    assert first.num_nodes_waiting() == 0
    first.shutdown()
    with pytest.raises(RendezvousGracefulExitError, match=r"was closed while node node-1_.* was a spare"):
        waiting.result(BOUND)


def test_the_loss_of_a_member_makes_the_others_form_the_next_round(job):
    run = job(2, 3)
    nodes = run.nodes(3)
    join_all(nodes)
    kill(nodes[2])
    eventually(lambda: all(node.num_nodes_waiting() for node in nodes[:2]), "the loss is seen", TTL + 10)
    infos = join_all(nodes[:2])
    assert {info.world_size for info in infos} == {2}


def test_with_on_node_loss_ignore_the_round_goes_on(job):
    run = job(2, 3, on_node_loss="ignore")
    nodes = run.nodes(3)
    join_all(nodes)
    kill(nodes[2])
    eventually(lambda: run.record().lost == 1, "the loss is counted", TTL + 10)
    assert [node.num_nodes_waiting() for node in nodes[:2]] == [0, 0]


def test_the_coordinator_dies_before_each_round(job):
    run = job(1, 4)
    nodes = run.nodes(4)
    futures = [join(node) for node in nodes]
    assert {future.result(BOUND).world_size for future in futures} == {4}
    for size in (3, 2, 1):
        victim = run.coordinator()
        kill(victim)
        nodes.remove(victim)
        run.handlers.remove(victim)
        eventually(lambda: all(node.num_nodes_waiting() for node in nodes), "the loss is seen", TTL + 10)
        infos = [future.result(BOUND) for future in [join(node) for node in nodes]]
        assert sorted(info.rank for info in infos) == list(range(size))


def test_a_handler_that_is_garbage_collected_leaves_at_once(job):
    run = job(2, 2, keep_alive_interval=60)  # its lease would end minutes later
    nodes = run.nodes(2)
    join_all(nodes)
    run.handlers.clear()
    del nodes[1]
    eventually(lambda: nodes[0].num_nodes_waiting() > 0, "the loss is seen")


def test_a_process_that_exits_leaves_at_once_and_prints_nothing(job, etcd3, run_id):
    run = job(1, 2, keep_alive_interval=60)
    code = f"""
import os
from rendezvous import *
p = RendezvousParameters("etcd-v3", "{etcd3.get_endpoint()}", "{run_id}", 1, 2, "other", last_call_timeout=1)
print(get_rendezvous_handler(p).next_rendezvous().rank, flush=True)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("0\n", "")
    assert run.range(run.keys.nodes) == []
    assert run.node("node-0").next_rendezvous().world_size == 1


def test_closing_ends_all_joins_and_is_final(job):
    run = job(2, 2)
    waiting = join(run.node("node-0"))
    eventually(lambda: run.range(run.keys.nodes), "the node joined")
    other = run.node("node-1")
    other.close("enough is enough")
    with pytest.raises(RendezvousClosedError, match=r"is closed \(enough is enough, by node-1_"):
        waiting.result(BOUND)
    with pytest.raises(RendezvousClosedError):
        run.node("node-2").next_rendezvous()
    assert other.is_closed()


def test_the_error_of_a_timeout_says_how_many_joined_and_which_are_missing(job):
    run = job(2, 2, join_timeout=6)
    nodes = run.nodes(2)
    join_all(nodes)
    kill(nodes[1])
    eventually(lambda: nodes[0].num_nodes_waiting() > 0, "the loss is seen", TTL + 10)
    with pytest.raises(RendezvousTimeoutError) as caught:
        nodes[0].next_rendezvous()
    assert (
        "the join timeout has passed (6 s); 1 of at least 2 nodes joined round 1; missing since round 0: node-1_"
        in str(caught.value)
    )
    assert run.range(run.keys.nodes) == []  # the node has left


def test_a_new_coordinator_knows_the_names_of_members_that_were_lost_before(job):
    run = job(3, 3, join_timeout=8)
    nodes = run.nodes(3)
    join_all(nodes)
    doomed = run.coordinator()
    names = {node.node.name for node in nodes}
    survivor = next(node for node in nodes if node is not doomed)
    lost = [node for node in nodes if node is not survivor]
    for node in lost:
        kill(node)
    eventually(lambda: survivor.num_nodes_waiting() > 0, "the loss is seen", TTL + 10)
    with pytest.raises(RendezvousTimeoutError) as caught:
        survivor.next_rendezvous()
    for name in names - {survivor.node.name}:
        assert name in str(caught.value)


def test_no_member_waits_for_a_rank_0_that_died_before_it_published_the_bootstrap(job):
    run = job(1, 2)
    stuck = threading.Event()
    first = run.node("node-0", serve=lambda addr: stuck.wait(BOUND) or 1)
    second = run.node("node-1")
    futures = [join(first), join(second)]
    eventually(lambda: (record := run.record()) and record.complete and record.world_size == 2, "the round")
    kill(first)
    assert futures[1].result(BOUND).world_size == 1
    stuck.set()


def test_each_round_has_its_own_bootstrap(job):
    run = job(2, 2)
    ports = iter((1111, 2222, 3333))
    nodes = [run.node(f"node-{n}", serve=lambda addr: next(ports)) for n in range(2)]
    assert {info.bootstrap_store_info.master_port for info in join_all(nodes)} == {1111}
    assert {info.bootstrap_store_info.master_port for info in join_all(nodes)} == {2222}


def test_each_round_has_its_own_store_and_old_stores_are_deleted(job):
    run = job(2, 2)
    nodes = run.nodes(2)
    for number in range(4):
        infos = join_all(nodes)
        assert not infos[0].store.check(["key"])
        infos[0].store.set("key", str(number))

    def rounds(kind: bytes) -> set[bytes]:
        return {kv.key.split(kind)[1].split(b"/")[0] for kv in run.range(run.keys.root + kind)}

    # The coordinator deletes what is old after it has completed the round.
    eventually(lambda: rounds(b"roster/") == {b"0000000002", b"0000000003"}, "old rosters are deleted")
    eventually(lambda: rounds(b"store/") == {b"0000000002", b"0000000003"}, "old stores are deleted")
    assert [kv.value for kv in run.range(run.keys.root + b"store/")] == [b"=2", b"=3"]


def test_every_key_of_a_job_is_bound_to_a_lease(job):
    run = job(2, 2)
    infos = join_all(run.nodes(2))
    infos[0].store.set("key", "value")
    infos[0].store.add("sum", 1)
    kvs = run.range(run.keys.root)
    assert len(kvs) > 6
    assert [kv.key for kv in kvs if kv.lease == 0] == []


def test_a_foreign_round_record_is_refused_with_the_key(job, etcd3):
    run = job(1, 1)

    client = connect(run.params("node-0"))

    async def spoil() -> None:
        deadline = asyncio.get_running_loop().time() + BOUND
        await client.txn([], [put_op(run.keys.round, b"\x80\x04 pickle")], deadline=deadline)

    background.run(spoil())
    with pytest.raises(
        RendezvousStateError,
        match=r"/ctl/round' contains .*JSON is malformed.*; another program or another version wrote",
    ):
        run.node("node-0").next_rendezvous()


def assert_short(error: BaseException) -> None:
    """Check that a user reads a few lines: no causes, and no frames of the event loop."""
    text = "".join(traceback.format_exception(error))
    assert len(text.splitlines()) <= 12, text
    assert "the above exception" not in text.lower()


def test_the_traceback_of_an_error_has_a_few_lines(job):
    run = job(2, 2, join_timeout=2)
    node = run.node("node-0")
    with pytest.raises(RendezvousTimeoutError) as timeout:
        node.next_rendezvous()
    assert_short(timeout.value)
    node.close("enough")
    with pytest.raises(RendezvousClosedError) as closed:
        node.next_rendezvous()
    assert_short(closed.value)


def test_the_traceback_of_an_etcd_that_stopped_has_a_few_lines(v3_binary, caplog):
    with EtcdServer(etcd_binary_path=v3_binary, enable_v2=False) as server:
        run = Job(server.get_endpoint(), "run", 2, 2, join_timeout=2)
        node = run.node("node-0")
    with caplog.at_level(logging.DEBUG, "rendezvous"), pytest.raises(RendezvousConnectionError) as caught:
        node.next_rendezvous()
    assert_short(caught.value)
    log = next(record for record in caplog.records if record.name == "rendezvous.coordinated.handler")
    assert log.exc_info is not None  # the log has the whole traceback


@pytest.mark.parametrize("run_id", ["a/b c", "../x", "ä%2F", "{}"])
def test_a_run_id_may_contain_any_character(job, run_id):
    assert join_all(job(2, 2).nodes(2))[0].world_size == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"node_unit": 3}, r"'node_unit' \(3\) has no multiple from 1 to 2"),
        ({"node_unit": "x"}, "'node_unit' must be an integer, not 'x'"),
        ({"rank_policy": "random"}, "'rank_policy' must be one of host, stable, arrival, not 'random'"),
        ({"on_node_loss": "panic"}, "'on_node_loss' must be one of reform, ignore, not 'panic'"),
        ({"upscale": "perhaps"}, "'upscale' must be a truth value"),
        ({"rank_hint": "first"}, "'rank_hint' must be an integer, not 'first'"),
        ({"keep_alive_interval": 0}, "'keep_alive_interval' must be an integer from 1"),
        ({"protocol": "ftp"}, "'protocol' must be one of http, https, not 'ftp'"),
        ({"ssl_cert": "/no/such"}, "'ssl_cert' names '/no/such', which is not a file"),
        ({"username": "me"}, "'username' needs a password"),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_range(etcd3, options, reason):
    params = RendezvousParameters("etcd-v3", etcd3.get_endpoint(), "run", 1, 2, **options)
    with pytest.raises(ValueError, match=reason):
        get_rendezvous_handler(params)


def test_an_unknown_key_is_warned_about_with_the_nearest(etcd3, caplog):
    params = RendezvousParameters("etcd-v3", etcd3.get_endpoint(), "run", 1, 2, rank_polcy="host", timeout=900)
    with caplog.at_level(logging.WARNING, "rendezvous"):
        get_rendezvous_handler(params)
    assert caplog.messages == [
        "the configuration option 'rank_polcy' is ignored: the rendezvous backend 'etcd-v3' does not have it; did you "
        "mean 'rank_policy'?"
    ]


def test_the_error_names_the_endpoints_if_no_etcd_answers():
    params = RendezvousParameters("etcd-v3", "localhost:1,127.0.0.1:2", "run", 1, 2, read_timeout=1)
    with pytest.raises(RendezvousConnectionError, match=r"no etcd answers at localhost:1, 127\.0\.0\.1:2: "):
        get_rendezvous_handler(params)


def test_the_error_of_a_store_wait_names_the_missing_keys(job):
    info = job(1, 1).node("node-0").next_rendezvous()
    with pytest.raises(LookupError, match="absent"):
        info.store.wait(["absent"], timedelta(seconds=0.2))
