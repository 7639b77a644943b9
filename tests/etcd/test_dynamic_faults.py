"""The dynamic rendezvous while etcd cannot be reached, stalls, or restarts."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

import pytest

from rendezvous import RendezvousConnectionError
from rendezvous._core import Role, State
from rendezvous.dynamic.backend import RendezvousBackend
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.dynamic.handler import DynamicRendezvousHandler
from rendezvous.etcd.server import EtcdServer
from tests.nodes import BOUND, Job, count_reads, eventually, join, join_all
from tests.proxy import Proxy

pytestmark = pytest.mark.both_twins


@pytest.fixture
def job(etcd, run_id):
    """A proxy in front of etcd, and a maker of jobs behind it."""
    with Proxy(etcd.get_port()) as proxy:
        jobs = []

        def make(least: int, most: int, *others: str, read_timeout: int = 5) -> Job:
            endpoint = ",".join([proxy.endpoint, *others])
            jobs.append(Job(endpoint, run_id, least, most, read_timeout=read_timeout))
            return jobs[-1]

        yield proxy, make
        for each in jobs:
            each.stop()


@pytest.fixture(autouse=True)
def only_the_proxy(monkeypatch):
    """Let clients only use the endpoint of the proxy: etcd advertises its own endpoint, which bypasses it."""
    monkeypatch.setattr("rendezvous.etcd.v2.client.EtcdClient._members", lambda self: [])


def heartbeats_are_older(the_job: Job, nodes: list[DynamicRendezvousHandler], seconds: float) -> None:
    """Wait until the last heartbeats of ``nodes`` in etcd, which ``the_job`` reads, are older than ``seconds``."""

    def age() -> float:
        state = the_job.state()
        return min(time.time() - (state.heartbeat(handler.node) or 0) / 1000 for handler in nodes)

    eventually(lambda: age() > seconds, f"the heartbeats are older than {seconds:g} s")


def test_an_outage_while_nodes_join(job, caplog):
    proxy, make = job
    one, two = make(2, 2).nodes(2)
    first = join(one)
    eventually(lambda: make(2, 2).state().count(Role.PARTICIPANT) == 1, "one has joined")
    proxy.cut()
    second = join(two)
    eventually(lambda: caplog.text.count("trying again") >= 2, "both nodes have seen the outage")
    assert not first.done()
    assert not second.done()
    proxy.restore()
    assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]


def test_an_outage_while_nodes_join_that_does_not_end(job, run_id):
    proxy, make = job
    handler = make(2, 2).node("node-0", join=2)
    future = join(handler)
    eventually(lambda: make(2, 2).state().count(Role.PARTICIPANT) == 1, "it has joined")
    proxy.cut()
    with pytest.raises(RendezvousConnectionError, match=f"'{run_id}': etcd could not be reached until the deadline"):
        future.result(10)


def test_a_stall_delays_no_node_for_longer_than_the_read_timeout(job):
    proxy, make = job
    one, two = make(2, 2).nodes(2)
    first = join(one)
    eventually(lambda: make(2, 2).state().count(Role.PARTICIPANT) == 1, "one has joined")
    proxy.stall()
    second = join(two)
    threading.Timer(1, proxy.resume).start()
    assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]


def test_a_running_job_survives_an_outage(job, etcd, run_id, caplog):
    proxy, make = job
    the_job = make(2, 3)
    one, two = the_job.nodes(2, last_call=0.3)
    join_all([one, two])
    proxy.cut()
    one._shared._view = one._shared._view._replace(read_at=float("-inf"))
    assert one.num_nodes_waiting() == 0  # the last known answer
    assert one.is_closed() is False
    assert "using the last known state" in caplog.text
    eventually(lambda: "failed to send a heartbeat" in caplog.text, "a heartbeat fails")
    heartbeats_are_older(Job(etcd.get_endpoint(), run_id, 2, 3), [one, two], 2.5)  # the expiry is 1.5 s
    proxy.restore()
    before = the_job.state().oldest_heartbeat()
    eventually(lambda: the_job.state().oldest_heartbeat() > before + 2000, "heartbeats are sent again")
    assert (the_job.state().round, the_job.state().count(Role.PARTICIPANT)) == (0, 2)
    assert "taken for dead" not in caplog.text


def check_all_continue(the_job: Job, nodes: int, caplog: pytest.LogCaptureFixture) -> None:
    """Check that all nodes of round 0 send heartbeats, and that none was taken for dead."""
    before = int(time.time() * 1000)
    eventually(lambda: (the_job.state().oldest_heartbeat() or 0) > before + 2000, "heartbeats are sent again")
    assert (the_job.state().round, the_job.state().count(Role.PARTICIPANT)) == (0, nodes)
    assert "taken for dead" not in caplog.text
    assert "was removed" not in caplog.text


def test_a_stall_longer_than_the_expiry_removes_no_node(job, etcd, run_id, caplog):
    caplog.set_level(logging.INFO)
    proxy, make = job
    the_job = make(2, 3)
    one, two = the_job.nodes(2, last_call=0.3)
    join_all([one, two])
    new_node = the_job.node("node-9")
    proxy.stall()
    # The expiry is 1.5 s, and no request fails: the read timeout is 5 s.
    heartbeats_are_older(Job(etcd.get_endpoint(), run_id, 2, 3), [one, two], 2.5)
    future = join(new_node)
    proxy.resume()
    eventually(lambda: one.num_nodes_waiting() == two.num_nodes_waiting() == 1, "the new node waits")
    check_all_continue(the_job, 2, caplog)
    futures = [join(one), join(two), future]
    assert [each.result(BOUND).rank for each in futures] == [0, 1, 2]
    assert the_job.state().round == 1


def test_a_new_node_removes_no_node_that_may_be_in_a_stall(job, etcd, run_id, caplog):
    proxy, make = job
    the_job = make(2, 3)
    handlers = the_job.nodes(2, last_call=0.3)
    join_all(handlers)
    proxy.stall()
    direct = Job(etcd.get_endpoint(), run_id, 2, 3)
    heartbeats_are_older(direct, handlers, 2.5)
    new_node = direct.node("node-9")
    future = join(new_node)
    role = eventually(lambda: direct.state().role(new_node.node), "the new node waits", 3)
    proxy.resume()
    assert role == Role.WAITING
    check_all_continue(the_job, 2, caplog)
    assert not future.done()
    new_node.set_closed()
    direct.stop()


def test_an_endpoint_that_stalls_removes_no_node(job, etcd, caplog):
    proxy, make = job
    the_job = make(2, 3, etcd.get_endpoint(), read_timeout=3)
    one, two = the_job.nodes(2, last_call=0.3)
    join_all([one, two])
    proxy.stall()
    for node in (one, two):
        assert node.num_nodes_waiting() == 0  # returns when the client has changed the endpoint
    direct = Job(etcd.get_endpoint(), the_job.params.run_id, 2, 3)
    check_all_continue(direct, 2, caplog)
    proxy.resume()


def test_a_heartbeat_that_etcd_delayed_is_sent_again_at_once(job, etcd, run_id, caplog):
    proxy, make = job
    the_job = make(1, 1)
    handler = the_job.node("node-0", interval=2, attempts=10, heartbeat=0.5)
    handler.next_rendezvous()
    proxy.stall()
    # The next heartbeat was due 0.7 s before.
    heartbeats_are_older(Job(etcd.get_endpoint(), run_id, 1, 1), [handler], 2.7)
    proxy.resume()
    resumed = int(time.time() * 1000)
    eventually(lambda: the_job.state().heartbeat(handler.node) >= resumed - 100, "the heartbeat", 1.5)
    assert "sends its heartbeat again: etcd did not answer within 0.5 s" in caplog.text


class LateHeartbeats(RendezvousBackend):
    """Delays the read of one heartbeat: etcd is read while the node is out, and answers after it has joined again."""

    name = "late"

    def __init__(self, backend: RendezvousBackend) -> None:
        self._backend = backend
        self.asked, self._is_out, self._read, self.has_joined_again = (threading.Event() for _ in range(4))

    def get_state(self) -> tuple[bytes, Any] | None:
        late = "heartbeat" in threading.current_thread().name and not self.asked.is_set()
        if late:
            self.asked.set()
            assert self._is_out.wait(BOUND)
        current = self._backend.get_state()
        if late:
            self._read.set()
            assert self.has_joined_again.wait(BOUND)
        return current

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        outcome = self._backend.set_state(state, token)
        if self.asked.is_set() and not self._is_out.is_set():
            self._is_out.set()
            assert self._read.wait(BOUND)
        return outcome


def test_a_late_heartbeat_of_the_previous_round_does_not_stop_the_next_ones(job, caplog):
    _, make = job
    the_job = make(1, 1)
    handler = the_job.node("node-0", interval=0.3)
    late = handler._shared._backend = LateHeartbeats(handler._shared._backend)
    handler.next_rendezvous()
    assert late.asked.wait(BOUND)
    handler.next_rendezvous()
    late.has_joined_again.set()
    before = the_job.state().oldest_heartbeat()
    eventually(lambda: (the_job.state().oldest_heartbeat() or 0) > before + 1500, "heartbeats continue")
    assert (the_job.state().round, the_job.state().role(handler.node)) == (1, Role.PARTICIPANT)
    assert "taken for dead" not in caplog.text


def test_an_outage_while_nodes_wait_for_the_address_of_rank_0(job, caplog):
    proxy, make = job
    the_job = make(2, 2)
    serves, release = threading.Event(), threading.Event()

    def serve(addr: str) -> int:
        serves.set()
        assert release.wait(BOUND)
        return 7001

    futures = [join(the_job.node("node-0", serve=serve)), join(the_job.node("node-1"))]
    assert serves.wait(BOUND)
    eventually(lambda: the_job.state().complete, "the round is complete")
    proxy.cut()
    eventually(
        lambda: "still waits for the address of rank 0 of round 0" in caplog.text or futures[1].done(),
        "longer than the expiry",
    )
    assert not futures[1].done()
    proxy.restore()
    release.set()
    infos = [future.result(BOUND) for future in futures]
    assert [info.bootstrap_store_info.master_port for info in infos] == [7001, 7001]
    assert the_job.state().round == 0


def test_an_outage_while_nodes_wait_for_the_address_of_rank_0_that_does_not_end(job):
    proxy, make = job
    the_job = make(2, 2)
    release = threading.Event()

    def serve(addr: str) -> int:
        release.wait(BOUND)
        return 7001

    first = join(the_job.node("node-0", serve=serve))
    second = join(the_job.node("node-1", join=3))
    eventually(lambda: the_job.state().complete, "the round is complete")
    proxy.cut()
    with pytest.raises(RendezvousConnectionError, match="MASTER_ADDR"):
        second.result(BOUND)
    proxy.restore()
    release.set()
    assert first.result(BOUND).rank == 0


def test_a_node_does_not_read_continuously_while_expiry_is_suspended(job):
    _, make = job
    the_job = make(3, 3)
    backend, _ = create_backend(the_job.params)
    state = State()
    state.join(("silent", 1, 0), int(time.time() * 1000) - 30_000)
    backend.set_state(state.encode())
    handler = the_job.node("node-0", attempts=20)  # an expiry of 10 s
    future = join(handler)
    eventually(lambda: the_job.state().role(handler.node) == Role.PARTICIPANT, "it has joined")
    reads, joined = count_reads(handler), the_job.state().heartbeat(handler.node)
    eventually(lambda: the_job.state().heartbeat(handler.node) > joined + 1800, "heartbeats for 2 s")
    assert len(reads) < 25
    assert the_job.state().role(("silent", 1, 0)) == Role.PARTICIPANT
    handler.set_closed()
    assert future.exception(BOUND) is not None


def test_shutdown_without_etcd_logs_a_warning_and_returns_false(job, caplog):
    proxy, make = job
    (handler,) = make(1, 1).nodes(1, close=1)
    handler.next_rendezvous()
    proxy.cut()
    assert handler.shutdown() is False
    assert "could not be closed" in caplog.text


def test_etcd_is_killed_while_nodes_join_and_restarts_with_its_data(v2_binary, tmp_path, run_id):
    data = str(tmp_path / "data")
    first = EtcdServer(data, v2_binary)
    first.start()
    with Proxy(first.get_port()) as proxy:
        job = Job(proxy.endpoint, run_id, 3, 3, read_timeout=5)
        handlers = job.nodes(3)
        futures = [join(handler) for handler in handlers[:2]]
        eventually(lambda: job.state().count(Role.PARTICIPANT) == 2, "two nodes have joined")
        os.kill(first.pid, signal.SIGKILL)
        first.stop()
        futures.append(join(handlers[2]))
        with EtcdServer(data, v2_binary) as second:
            proxy.restore(second.get_port())
            assert [future.result(BOUND).rank for future in futures] == [0, 1, 2]
            job.stop()
