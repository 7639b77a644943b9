"""The legacy rendezvous on a real etcd: its rounds, keys, timeouts and errors."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from rendezvous import (
    RendezvousClosedError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rendezvous.etcd.v2.client import etcd_module
from rendezvous.legacy.handler import EtcdRendezvousHandler, create_rdzv_handler
from rendezvous.legacy.rendezvous import EtcdRendezvous
from tests.etcd.legacy_job import LegacyJob
from tests.nodes import BOUND, eventually, join, join_all

pytestmark = pytest.mark.both_twins


@pytest.fixture
def job(etcd, run_id):
    a_job = LegacyJob(etcd, run_id)
    yield a_job
    a_job.stop()


# Rounds.


def test_a_world_of_one(job):
    (info,) = join_all(job.nodes(1, 1, 1, name="node-0"))
    assert info.bootstrap_store_info.master_addr == "node-0"


def test_a_world_of_fixed_size(job):
    handlers = job.nodes(8, 8, 8)
    infos = join_all(handlers)
    infos[3].store.set("key", "value")
    assert infos[5].store.get("key") == b"value"
    assert infos[0].store.prefix == f"{job.folder}/rdzv/v_1/kv/"
    assert [handler.num_nodes_waiting() for handler in handlers] == [0] * 8
    assert not any(handler.is_closed() for handler in handlers)


def test_the_last_call_ends_in_time(job):
    assert len(join_all(job.nodes(2, 2, 3, last_call_timeout=1))) == 2


def test_no_last_call_at_all(job):
    assert len(join_all(job.nodes(2, 2, 3, last_call_timeout=0))) == 2


def test_a_last_call_outlives_the_state_s_time_to_live(job):
    handlers = job.nodes(2, 2, 3, last_call_timeout=12)
    assert len(join_all(handlers)) == 2
    assert job.state()["version"] == "1"


def test_the_last_call_takes_others_in_and_ends_with_the_maximum(job):
    handlers = job.nodes(4, 2, 4, last_call_timeout=int(2 * BOUND))
    futures = []
    for count, handler in enumerate(handlers, 1):
        futures.append(join(handler))
        if count < 4:
            job.joined(count)
    assert [future.result(BOUND).rank for future in futures] == [0, 1, 2, 3]


def test_a_new_node_is_counted_as_waiting_and_joins_the_next_round(job):
    one, two = job.nodes(2, 2, 2)
    infos = join_all([one, two])
    (new_node,) = job.nodes(1, 2, 2)
    future = join(new_node)
    for handler in (one, two):
        eventually(lambda handler=handler: handler.num_nodes_waiting() == 1, "the new node is counted")
    job.leave(two, infos[1].rank)
    assert sorted([join(one).result(BOUND).rank, future.result(BOUND).rank]) == [0, 1]
    assert job.state()["version"] == "2"


def test_a_node_whose_round_was_ended_counts_the_nodes_of_the_next_round(job):
    one, two = job.nodes(2, 2, 3, last_call_timeout=0)
    infos = join_all([one, two])
    job.leave(two, infos[1].rank)
    second = join(two)  # it ends the round before the other node can see that it waits
    eventually(lambda: len(job.state().get("participants", ())) == 1, "the next round forms")
    assert eventually(one.num_nodes_waiting, "the remaining node sees it") == 1
    assert sorted([join(one).result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]
    assert job.state()["version"] == "2"


def test_the_next_round_forms_after_etcd_has_deleted_the_directory(job):
    handlers = job.nodes(2, 2, 2)
    join_all(handlers)
    job.client.delete(job.folder, recursive=True)
    join_all(handlers)
    # A second round 1 would find keys that a node still writes for the first one.
    assert job.state()["version"] == "2"
    assert job.client.read(job.folder).ttl > 0


def test_rank_0_that_leaves_before_it_publishes_its_address_does_not_block_the_others(job):
    one, two = job.nodes(2, 2, 2)
    future = []
    barrier = threading.Thread(target=lambda: future.append(one._rdzv_impl.rendezvous_barrier()))
    barrier.start()
    job.joined(1)
    second = join(two)
    barrier.join(BOUND)
    assert future == [("1", 0, 2)]
    one._version = "1"
    job.leave(one, 0)
    first = join(one)
    assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]
    assert job.state()["version"] == "2"


# Closing.


def test_closing_ends_nodes_that_join_and_nodes_that_come_later(job):
    one, two = job.nodes(2, 2, 2)
    future = join(one)
    job.joined(1)
    two.set_closed()
    two.set_closed()
    with pytest.raises(RendezvousClosedError, match=f"'{job.run_id}' is closed"):
        future.result(BOUND)
    with pytest.raises(RendezvousClosedError):
        two.next_rendezvous()
    assert two.is_closed()
    eventually(one.is_closed, "the other node sees it")


def test_closing_ends_nodes_on_standby(job):
    one, new_node = job.nodes(2, 1, 1)
    one.next_rendezvous()
    future = join(new_node)
    eventually(lambda: one.num_nodes_waiting() == 1, "the new_node waits")
    assert one.shutdown()
    with pytest.raises(RendezvousClosedError):
        future.result(BOUND)


def test_a_rendezvous_without_a_round_can_be_closed(job):
    one, two = job.nodes(2, 1, 1)
    assert one.shutdown()
    with pytest.raises(RendezvousClosedError):
        two.next_rendezvous()


# Timeouts and errors.


def test_a_timeout_names_how_many_nodes_joined(job):
    handler = job.node(2, 3, timeout=3)
    with pytest.raises(
        RendezvousTimeoutError,
        match=rf"'{job.run_id}' timed out after 3 s: 1 of at least 2 nodes joined round 1\.$",
    ):
        handler.next_rendezvous()


def test_the_timeout_of_a_node_on_standby(job):
    one, new_node = job.node(1, 1), job.node(1, 1, timeout=3)
    one.next_rendezvous()
    with pytest.raises(
        RendezvousTimeoutError,
        match="round 1 is complete with a world size of 1; nodes that wait for the next round: 1",
    ):
        new_node.next_rendezvous()


@pytest.mark.parametrize("text", ["gASVAAAA", '{"status": "melting"}'])
def test_a_state_of_another_protocol_is_an_error_that_names_the_key(job, text):
    (handler,) = job.nodes(1, 1, 1)
    job.client.write(f"{job.folder}/rdzv/active_version", text)
    for use in (handler.next_rendezvous, handler.is_closed, handler.num_nodes_waiting, handler.set_closed):
        with pytest.raises(
            RendezvousStateError, match=r"/rdzv/active_version' does not belong to this protocol: the state"
        ):
            use()
    assert not handler.shutdown()


def test_a_prefix_that_is_a_key_is_an_error(job):
    job.client.write(f"/{job.run_id}", "value")
    with pytest.raises(RendezvousStateError, match="choose another run id or prefix"):
        job.node(1, 1, etcd_prefix=job.run_id)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"timeout": 0}, "'timeout' must be an integer from 1"),
        ({"last_call_timeout": -1}, "'last_call_timeout' must be an integer from 0"),
        ({"cacert": "/nowhere"}, "'cacert' names '/nowhere', which is not a file"),
        ({"cert": "/nowhere"}, "'cert' names"),
        ({"key": "/nowhere"}, "'key' names"),
        ({"protocol": "ftp"}, "'protocol' must be one of http, https"),
    ],
)
def test_a_wrong_configuration_is_an_error(job, config, error):
    with pytest.raises(ValueError, match=error):
        job.node(1, 1, **config)


@pytest.mark.parametrize("run_id", ["", "a/../b"])
def test_a_run_id_that_cannot_be_a_key_is_an_error(etcd, run_id):
    with pytest.raises(ValueError, match=r"run id must not be empty|must not have empty parts"):
        create_rdzv_handler(RendezvousParameters("etcd", etcd.get_endpoint(), run_id, 1, 1))


def test_an_unknown_configuration_key_logs_a_warning(job, caplog):
    job.node(1, 1, last_cal_timeout=1, timeout=1, etcd_prefix="/torchelastic/p2p")
    warnings = [record.getMessage() for record in caplog.records if "configuration option" in record.getMessage()]
    assert len(warnings) == 1
    assert "did you mean 'last_call_timeout'?" in warnings[0]


# Keys and values, which are torch's.


def test_the_keys_of_a_round(job):
    handlers = job.nodes(2, 2, 2)
    one, two = (join(handler) for handler in handlers)
    ranks = [one.result(BOUND).rank, two.result(BOUND).rank]
    state = job.state()
    assert sorted(state.pop("keep_alives")) == [f"{job.folder}/rdzv/v_1/rank_{rank}" for rank in sorted(ranks)]
    assert state == {"status": "final", "version": "1", "participants": [0, 1], "num_workers_waiting": 0}
    assert job.read("active_version").ttl is None
    assert job.read("version_counter").value == "1"
    assert 0 < job.read("v_1/rank_0").ttl <= 10
    assert 7000 < job.client.read(job.folder).ttl <= 7200


def test_the_state_expires_from_the_minimum_on(job):
    handlers = job.nodes(2, 2, 3, last_call_timeout=int(2 * BOUND))
    join(handlers[0])
    job.joined(1)
    assert job.read("active_version").ttl is None
    future = join(handlers[1])
    job.joined(2)
    assert 0 < job.read("active_version").ttl <= 10
    (last,) = job.nodes(1, 2, 3)
    join(last).result(BOUND)
    future.result(BOUND)


@pytest.mark.parametrize("prefix", ["", "/", "legacy", "/legacy/", "/a b/c"])
def test_prefixes(job, prefix):
    (handler,) = job.nodes(1, 1, 1, etcd_prefix=prefix)
    (info,) = join_all([handler])
    home = {"": "/torchelastic/p2p/", "/": "/", "legacy": "/legacy/", "/legacy/": "/legacy/", "/a b/c": "/a b/c/"}
    assert info.store.prefix == f"{home[prefix]}run_{job.run_id}/rdzv/v_1/kv/"
    (other,) = job.nodes(1, 1, 1, etcd_prefix=prefix, timeout=3)
    # The second node finds the keep-alive of the first, and does not take it for dead.
    with pytest.raises(RendezvousTimeoutError, match="round 1 is complete"):
        other.next_rendezvous()


def test_run_ids_are_separate(etcd, run_id):
    jobs = [LegacyJob(etcd, f"{run_id} a/b{suffix}") for suffix in ("", "c", "?d")]
    for each in jobs:
        assert len(join_all(each.nodes(2, 2, 2))) == 2
        each.stop()


def test_extra_data(job):
    one, two = (handler._rdzv_impl for handler in job.nodes(2, 2, 2))
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(two.load_extra_data("1", "key")))
    thread.start()
    one.store_extra_data("1", "other", 1)
    one.store_extra_data("1", "key", {"a": [1]})
    thread.join(BOUND)
    assert loaded == [{"a": [1]}]
    assert two.load_extra_data("1", "other", timeout=0) == 1
    assert json.loads(job.read("v_1/extra_data").value) == {"other": 1, "key": {"a": [1]}}
    with pytest.raises(RendezvousTimeoutError, match=r"no node of round 1 published 'never' within 0\.5 s"):
        two.load_extra_data("1", "never", timeout=0.5)


def test_extra_data_of_many_writers_is_not_lost(job):
    runs = [handler._rdzv_impl for handler in job.nodes(4, 4, 4)]
    threads = [
        threading.Thread(target=lambda run=run, n=n: [run.store_extra_data("1", f"{n}-{i}", i) for i in range(5)])
        for n, run in enumerate(runs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert len(json.loads(job.read("v_1/extra_data").value)) == 20


def test_the_classes_take_a_client_of_python_etcd(job):
    rendezvous = EtcdRendezvous(
        client=job.etcd.get_client(),
        prefix="/torchelastic/p2p",
        run_id=job.run_id,
        num_min_workers=1,
        num_max_workers=1,
        timeout=BOUND,
        last_call_timeout=1,
    )
    handler = EtcdRendezvousHandler(rdzv_impl=rendezvous, local_addr=None)
    job.handlers.append(handler)
    assert handler.get_run_id() == job.run_id
    assert len(join_all([handler])) == 1
    answer, state = rendezvous.get_rdzv_state()
    assert json.loads(answer.value) == state
    with pytest.raises(etcd_module().EtcdAlreadyExist):
        rendezvous.try_create_rendezvous()
    assert rendezvous.try_wait_for_state_change(answer.etcd_index + 1, timeout=0.1)[1] == state


def test_a_library_installs_no_log_handler():
    assert logging.getLogger("rendezvous.legacy.rendezvous").handlers == []
    assert logging.getLogger("rendezvous").handlers == []
    assert logging.getLogger("rendezvous.legacy.rendezvous").propagate
