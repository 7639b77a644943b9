"""Rounds of the dynamic rendezvous on a real etcd: the behaviour that torch documents, and the improvements."""

from __future__ import annotations

import gc
import threading
import weakref
from datetime import timedelta

import pytest

from rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
    get_rendezvous_handler,
)
from rendezvous._core import Role
from rendezvous.dynamic.backend import RendezvousBackend
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.dynamic.handler import DynamicRendezvousHandler, create_handler
from rendezvous.dynamic.settings import RendezvousTimeout
from tests.nodes import BOUND, Job, count_reads, eventually, expel, join, join_all, kill

pytestmark = pytest.mark.both_twins


@pytest.fixture
def job(etcd, run_id):
    jobs = []

    def make(least: int, most: int, **options) -> Job:
        jobs.append(Job(etcd.get_endpoint(), run_id, least, most, **options))
        return jobs[-1]

    yield make
    for each in jobs:
        each.stop()


# A round forms.


def test_a_world_of_one(job):
    (info,) = join_all(job(1, 1).nodes(1))
    assert info.bootstrap_store_info.master_addr == "node-0"


def test_the_round_is_complete_with_the_maximum_and_ranks_follow_the_host_names(job):
    handlers = job(3, 12).nodes(12, last_call=BOUND)
    infos = join_all(handlers)
    assert [info.rank for info in infos] == list(range(12))  # node-2 before node-10
    assert infos[5].bootstrap_store_info.master_addr == "node-0"


def test_the_round_is_complete_with_the_minimum_after_the_last_call(job):
    assert [info.rank for info in join_all(job(2, 4).nodes(2, last_call=0.5))] == [0, 1]


def test_a_node_may_join_in_the_last_call(job):
    the_job = job(2, 4)
    one, two, three = the_job.nodes(3, last_call=3)
    early = [join(one), join(two)]
    eventually(lambda: the_job.state().deadline is not None, "the last call has started")
    late = join(three)
    assert [future.result(BOUND).rank for future in (*early, late)] == [0, 1, 2]


def test_the_nodes_of_a_round_share_a_store_of_their_own(job, run_id):
    the_job = job(2, 2)
    handlers = the_job.nodes(2)
    one, two = join_all(handlers)
    one.store.set("key", "first")
    assert two.store.get("key") == b"first"
    one, two = join_all(handlers)
    assert not one.store.check(["key"])
    assert two.store.underlying_store.prefix == "/torch/elastic/store/"
    prefix = f"torch.rendezvous.{run_id}.1.{the_job.state().started}"
    assert two.store.get("MASTER_ADDR") == two.store.underlying_store.get(f"{prefix}/MASTER_ADDR")


def test_a_run_id_that_is_used_again_has_a_new_store(job, etcd, run_id):
    (old,) = join_all(job(1, 1).nodes(1, serve=lambda addr: 7001))
    old.store.set("key", "old")
    job(1, 1).stop()
    etcd.get_client().delete(f"/torch/elastic/rendezvous/{run_id}")  # as etcd does two hours after the last write
    infos = join_all(job(2, 2).nodes(2, serve=lambda addr: 7002))
    assert [info.bootstrap_store_info.master_port for info in infos] == [7002, 7002]
    assert not any(info.store.check(["key"]) for info in infos)


def test_serve_is_called_on_rank_0_in_each_round(job):
    ports = iter(range(7001, 7100))
    handlers = job(2, 2).nodes(2, serve=lambda addr: next(ports))
    assert [join_all(handlers)[1].bootstrap_store_info.master_port for _ in range(3)] == [7001, 7002, 7003]


def test_run_ids_are_separate(etcd, run_id):
    jobs = [Job(etcd.get_endpoint(), f"{run_id} a/b{suffix}", 2, 2) for suffix in ("", "c", "?d")]
    for each in jobs:
        join_all(each.nodes(2))
        each.stop()


# The next round.


def test_a_new_node_is_counted_as_waiting_and_joins_the_next_round(job):
    the_job = job(2, 3)
    one, two = the_job.nodes(2, last_call=0.5)
    join_all([one, two])
    assert one.num_nodes_waiting() == 0
    three = the_job.node("node-9", last_call=0.5)
    future = join(three)
    eventually(lambda: one.num_nodes_waiting() == two.num_nodes_waiting() == 1, "the new node waits")
    futures = [join(one), join(two), future]
    assert [each.result(BOUND).rank for each in futures] == [0, 1, 2]
    assert the_job.state().round == 1


def test_a_dead_node_is_removed_and_the_others_continue(job):
    the_job = job(2, 3)
    handlers = the_job.nodes(3, last_call=0.5)
    join_all(handlers)
    kill(handlers[0])
    infos = join_all(handlers[1:])
    assert infos[0].bootstrap_store_info.master_addr == "node-1"
    assert the_job.state().round == 1


def test_heartbeats_keep_a_node_in(job):
    the_job = job(2, 2)
    join_all(the_job.nodes(2, interval=0.2))
    first = the_job.state().oldest_heartbeat()
    eventually(lambda: the_job.state().oldest_heartbeat() > first + 1500, "heartbeats for longer than the expiry")
    assert the_job.state().count(Role.PARTICIPANT) == 2


def test_a_node_that_was_taken_for_dead_logs_a_warning(job, caplog):
    the_job = job(1, 2)
    (handler,) = the_job.nodes(1, last_call=0.1, interval=0.2)
    join(handler).result(BOUND)
    expel(the_job, handler)
    eventually(lambda: "was taken for dead" in caplog.text, "the warning")


def test_a_deleted_handler_stops_its_heartbeats(job):
    the_job = job(1, 1)
    handler = the_job.node("node-0", interval=0.1)
    handler.next_rendezvous()
    name = f"rendezvous-heartbeat-{handler.node.local_id}"
    reference = weakref.ref(handler)
    the_job.handlers.clear()
    del handler
    gc.collect()
    assert reference() is None
    eventually(lambda: all(thread.name != name for thread in threading.enumerate()), "the heartbeats stop")


# More nodes than the maximum.


def stay_on_standby(the_job, spare, seconds):
    """Wait until a node on standby has sent heartbeats for ``seconds``."""
    first = the_job.state().heartbeat(spare.node)

    def heartbeats():
        state = the_job.state()
        assert state.role(spare.node) == Role.REDUNDANT
        return state.heartbeat(spare.node) >= first + seconds * 1000

    eventually(heartbeats, f"heartbeats for {seconds:g} s")


def test_an_extra_node_of_a_full_round_is_on_standby_and_is_not_counted(job):
    the_job = job(2, 2)
    one, two = the_job.nodes(2)
    join_all([one, two])
    spare = the_job.node("node-2", join=4)
    future = join(spare)
    eventually(lambda: the_job.state().role(spare.node) == Role.REDUNDANT, "it is on standby")
    stay_on_standby(the_job, spare, 4.5)  # longer than the join timeout
    assert not future.done()
    assert one.num_nodes_waiting() == 0
    kill(one)
    two_again = join(two)
    assert sorted([two_again.result(BOUND).rank, future.result(BOUND).rank]) == [0, 1]


def test_a_node_may_be_on_standby_for_longer_than_the_join_timeout(job):
    the_job = job(2, 2)
    join_all(the_job.nodes(2))
    spare = the_job.node("node-2", join=1)
    future = join(spare)
    eventually(lambda: the_job.state().role(spare.node) == Role.REDUNDANT, "it is on standby")
    stay_on_standby(the_job, spare, 1.5)
    reads = count_reads(spare)
    stay_on_standby(the_job, spare, 2)
    assert len(reads) < 25  # it does not read continuously
    expel(the_job, spare)
    eventually(lambda: future.done() or the_job.state().role(spare.node) == Role.REDUNDANT, "it is on standby again")
    assert not future.done()


def test_a_node_on_standby_ends_without_a_failure_when_the_rendezvous_closes(job):
    the_job = job(2, 2)
    one, two = the_job.nodes(2)
    join_all([one, two])
    spare = the_job.node("node-2")
    future = join(spare)
    eventually(lambda: the_job.state().role(spare.node) == Role.REDUNDANT, "it is on standby")
    one.set_closed()
    with pytest.raises(RendezvousGracefulExitError, match="was on standby"):
        future.result(BOUND)


# The end.


def test_closed_is_final(job):
    the_job = job(2, 3)
    one, two = the_job.nodes(2, last_call=0.2)
    join_all([one, two])
    waiting = join(the_job.node("node-2"))
    eventually(lambda: one.num_nodes_waiting() == 1, "it waits")
    assert not two.is_closed()
    one.set_closed()
    one.set_closed()
    with pytest.raises(RendezvousClosedError, match="is closed"):
        waiting.result(BOUND)
    eventually(two.is_closed, "the other node sees it")
    with pytest.raises(RendezvousClosedError):
        two.next_rendezvous()
    with pytest.raises(RendezvousClosedError):
        the_job.node("node-3").next_rendezvous()


def test_shutdown_closes(job):
    (handler,) = job(1, 1).nodes(1)
    handler.next_rendezvous()
    assert handler.shutdown() is True
    assert handler.is_closed()


def test_shutdown_before_the_first_round(job):
    assert job(1, 1).node("node-0").shutdown() is True


# Timeouts.


def test_a_timeout_names_the_nodes_that_joined_and_how_many_are_needed(job, run_id):
    one, two = job(3, 3).nodes(2, join=1.5)
    futures = [join(one), join(two)]
    messages = []
    for future in futures:
        with pytest.raises(RendezvousTimeoutError) as caught:
            future.result(BOUND)
        messages.append(str(caught.value))
    assert f"'{run_id}'" in messages[0]
    assert "1.5 s" in messages[0]
    assert any("2 of at least 3 nodes joined round 0" in message for message in messages)
    assert any(str(one.node) in message and str(two.node) in message for message in messages)


def test_a_timeout_names_the_nodes_that_did_not_return(job):
    the_job = job(3, 3)
    handlers = the_job.nodes(3, join=4)
    join_all(handlers)
    kill(handlers[1])
    futures = [join(handlers[0]), join(handlers[2])]
    for future in futures:
        with pytest.raises(RendezvousTimeoutError, match=f"missing since the previous round: .*{handlers[1].node}"):
            future.result(BOUND)


def test_a_node_that_gives_up_removes_itself(job):
    the_job = job(2, 2)
    with pytest.raises(RendezvousTimeoutError):
        the_job.node("node-0", join=0.5).next_rendezvous()
    assert len(the_job.state()) == 0


def test_a_timeout_while_a_round_runs_names_its_members(job):
    the_job = job(1, 2)
    (one,) = the_job.nodes(1, last_call=0.1)
    join(one).result(BOUND)
    with pytest.raises(RendezvousTimeoutError, match=f"complete without this node; .* still: {one.node}"):
        the_job.node("node-1", join=1).next_rendezvous()


def test_rank_0_that_does_not_publish_its_address_delays_no_node_beyond_the_join_timeout(job):
    the_job = job(2, 2)
    release = threading.Event()

    def hang(addr: str) -> int:
        release.wait(BOUND)
        return 7001

    first = join(the_job.node("node-0", interval=10, serve=hang))
    second = join(the_job.node("node-1", interval=10, join=2))
    with pytest.raises(RendezvousTimeoutError, match=r"node-0_.*, is alive but did not publish its address"):
        second.result(20)  # not the 30 s after which a node is taken for dead
    release.set()
    assert first.result(BOUND).rank == 0


def test_rank_0_that_dies_before_it_publishes_its_address_does_not_block_the_others(job):
    the_job = job(2, 3)

    def die(addr: str) -> int:
        raise KeyboardInterrupt

    dying = the_job.node("node-0", last_call=0.5, serve=die, interval=0.3)
    others = [the_job.node(f"node-{i}", last_call=0.5, interval=0.3) for i in (1, 2)]
    futures = [join(handler) for handler in others]
    with pytest.raises(KeyboardInterrupt):
        join(dying).result(BOUND)
    kill(dying)
    infos = [future.result(BOUND) for future in futures]
    assert sorted(info.rank for info in infos) == [0, 1]
    assert infos[0].bootstrap_store_info.master_addr == "node-1"


# Errors.


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"\x80\x04\x95abc", "pickle"), (b"hello", "not written by etcd-rendezvous"), (b"RZ\x01", "truncated")],
)
def test_a_foreign_or_damaged_state_is_an_error_that_says_so(job, run_id, value, reason):
    the_job = job(1, 1)
    backend, _ = create_backend(the_job.params)
    backend.set_state(value)
    handler = the_job.node("node-0")
    with pytest.raises(RendezvousStateError, match=f"'{run_id}': .*{reason}"):
        handler.next_rendezvous()
    with pytest.raises(RendezvousStateError, match=reason):
        handler.is_closed()
    assert handler.shutdown() is False
    assert backend.get_state()[0] == value  # nothing was overwritten


def test_an_etcd_that_is_down_at_the_start(run_id):
    with pytest.raises(RendezvousConnectionError, match="at http://localhost:1: Connection refused; check"):
        get_rendezvous_handler(RendezvousParameters("etcd-v2", "localhost:1", run_id, 1, 1))


# Creating a handler.


def test_the_registry_creates_a_handler_from_a_configuration(etcd, run_id):
    handler = get_rendezvous_handler(
        RendezvousParameters(
            "etcd-v2",
            etcd.get_endpoint(),
            run_id,
            1,
            2,
            "here",
            join_timeout="10",
            last_call_timeout="1",
            close_timeout=7,
            heartbeat_timeout=6,
            keep_alive_interval="2",
            keep_alive_max_attempt="4",
        )
    )
    assert isinstance(handler, DynamicRendezvousHandler)
    assert (handler.get_backend(), handler.get_run_id(), handler.node.addr) == ("etcd-v2", run_id, "here")
    timeout = handler.settings.timeout
    assert [t.total_seconds() for t in (timeout.join, timeout.last_call, timeout.close, timeout.heartbeat)] == [
        10,
        1,
        7,
        6,
    ]
    assert handler.settings.keep_alive_interval == timedelta(seconds=2)
    assert handler.settings.keep_alive_max_attempt == 4
    assert handler.next_rendezvous().world_size == 1
    handler.shutdown()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"join_timeout": "soon"}, "'join_timeout' must be an integer, not 'soon'"),
        ({"last_call_timeout": "0"}, "'last_call_timeout' must be an integer from 1"),
        ({"keep_alive_interval": "-5"}, "'keep_alive_interval' must be an integer from 1"),
        ({"keep_alive_max_attempt": "1.5"}, "'keep_alive_max_attempt' must be an integer, not '1.5'"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_names_it(etcd, run_id, options, reason):
    with pytest.raises(ValueError, match=reason):
        get_rendezvous_handler(RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 1, 1, **options))


def test_timeouts_have_torch_s_defaults_and_must_be_positive():
    timeout = RendezvousTimeout()
    assert [t.total_seconds() for t in (timeout.join, timeout.last_call, timeout.close, timeout.heartbeat)] == [
        600,
        30,
        30,
        5,
    ]
    with pytest.raises(ValueError, match=r"last call timeout \(0:00:00\) must be positive"):
        RendezvousTimeout(last_call=timedelta(0))


def test_numbers_of_nodes_and_the_run_id_are_checked(etcd, run_id):
    backend, store = create_backend(RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 1, 1))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        DynamicRendezvousHandler.from_backend(run_id, store, backend, 0, 1)
    with pytest.raises(ValueError, match="must not be less than the minimum"):
        DynamicRendezvousHandler.from_backend(run_id, store, backend, 2, 1)
    with pytest.raises(ValueError, match="run id must not be empty"):
        DynamicRendezvousHandler.from_backend("", store, backend, 1, 1)


def test_a_backend_that_cannot_watch_is_polled(etcd, run_id):
    params = RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 2, 2)
    handlers = []
    for _ in range(2):
        watching, store = create_backend(params)

        class Polled(RendezvousBackend):
            name = "polled"
            get_state = staticmethod(watching.get_state)
            set_state = staticmethod(watching.set_state)

        handlers.append(create_handler(store, Polled(), params))
    assert [info.world_size for info in join_all(handlers)] == [2, 2]
    assert handlers[0].get_backend() == "polled"
    for handler in handlers:
        kill(handler)
