"""The legacy rendezvous while etcd cannot be reached, loses responses, or changes its leader."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from rendezvous import RendezvousConnectionError, RendezvousParameters, RendezvousStoreInfo, get_rendezvous_handler
from rendezvous.etcd.v2.client import EtcdClient, etcd_module
from tests.etcd.clusters import Certificates, Cluster
from tests.etcd.legacy_job import LegacyJob
from tests.nodes import BOUND, eventually, join, join_all
from tests.proxy import Proxy


@pytest.fixture
def job(etcd, run_id):
    a_job = LegacyJob(etcd, run_id)
    yield a_job
    a_job.stop()


# Leases.


def test_an_expired_keep_alive_is_written_again(job, caplog):
    (handler,) = job.nodes(1, 1, 1)
    handler.next_rendezvous()
    job.client.delete(f"{job.folder}/rdzv/v_1/rank_0")
    eventually(lambda: job.read("v_1/rank_0"), "the keep-alive is there again")
    assert "expired and is written again" in caplog.text
    assert job.read("v_1/rank_0").ttl > 0


def test_an_expired_keep_alive_that_no_round_needs_is_not_written_again(job, caplog):
    (handler,) = job.nodes(1, 1, 1)
    handler.next_rendezvous()
    job.client.delete(f"{job.folder}/rdzv/active_version")
    job.client.delete(f"{job.folder}/rdzv/v_1/rank_0")
    eventually(lambda: "is gone: it was not renewed for 10 s, or deleted" in caplog.text, "the warning")
    assert job.read("v_1/rank_0") is None


def test_a_keep_alive_is_written_again_after_an_outage(job, monkeypatch, caplog):
    monkeypatch.setattr(EtcdClient, "_members", lambda self: [])
    with Proxy(job.etcd.get_port()) as proxy:
        handler = job.node(1, 1, endpoint=proxy.endpoint)
        handler.next_rendezvous()
        proxy.cut()
        eventually(lambda: job.read("v_1/rank_0") is None, "the keep-alive has expired")
        assert [handler.is_closed(), handler.num_nodes_waiting()] == [False, 0]  # the last known answer
        proxy.restore()
        eventually(lambda: job.read("v_1/rank_0"), "the keep-alive is there again")
    assert "cannot keep the etcd key" in caplog.text


def renewals() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("rendezvous-lease-")}


def test_a_deleted_handler_stops_its_threads(job):
    (handler,) = job.nodes(1, 1, 1)
    handler.next_rendezvous()
    name = f"rendezvous-lease-{job.folder}/rdzv/v_1/rank_0"
    assert name in renewals()
    dropped = weakref.ref(handler._rdzv_impl)
    job.handlers.clear()
    del handler
    gc.collect()
    assert dropped() is None
    eventually(lambda: name not in renewals(), "the thread has ended")


def test_a_directory_is_renewed_or_a_warning_says_that_etcd_cannot(job, caplog):
    probe = f"/probe-{job.run_id}"
    job.client.write(probe, None, ttl=100, dir=True)
    try:
        job.client.refresh(probe, ttl=200)
        can = True
    except etcd_module().EtcdException:
        can = False
    job.client.write(job.folder, None, ttl=100, dir=True)
    job.nodes(1, 1, 1)
    if can:
        eventually(lambda: job.client.read(job.folder).ttl > 7000, "the directory is renewed")
    else:
        eventually(lambda: f"etcd cannot renew the directory '{job.folder}/'" in caplog.text, "the warning")


# Outages.


@pytest.fixture
def proxy(etcd, monkeypatch):
    # etcd advertises its own endpoint, which bypasses the proxy.
    monkeypatch.setattr(EtcdClient, "_members", lambda self: [])
    with Proxy(etcd.get_port()) as a_proxy:
        yield a_proxy


def test_an_outage_while_a_node_waits(job, proxy):
    one, two = job.node(2, 2, endpoint=proxy.endpoint), job.node(2, 2)
    first = join(one)
    job.joined(1)
    proxy.cut()
    second = join(two)
    job.joined(2)
    proxy.restore()
    assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]


def test_an_outage_while_a_node_waits_for_the_address_of_rank_0(job, proxy, caplog, monkeypatch):
    one, two = job.node(2, 2), job.node(2, 2, endpoint=proxy.endpoint)
    waits, wait = threading.Event(), two._wait_for_bootstrap
    monkeypatch.setattr(two, "_wait_for_bootstrap", lambda *arguments: waits.set() or wait(*arguments))
    rounds = []
    barrier = threading.Thread(target=lambda: rounds.append(one._rdzv_impl.rendezvous_barrier()))
    barrier.start()
    job.joined(1)
    second = join(two)
    barrier.join(BOUND)
    assert waits.wait(BOUND)
    proxy.cut()
    eventually(lambda: "still waiting for the address of rank 0 of round 1" in caplog.text, "the warning")
    proxy.restore()
    first = RendezvousStoreInfo.build(0, one._rdzv_impl.setup_kv_store("1"), "node-0")
    assert second.result(BOUND).bootstrap_store_info == first


def test_an_outage_that_does_not_end(job, proxy):
    handler = job.node(2, 2, endpoint=proxy.endpoint, timeout=4)
    future = join(handler)
    job.joined(1)
    proxy.cut()
    with pytest.raises(RendezvousConnectionError, match=f"the rendezvous '{job.run_id}' cannot read"):
        future.result(BOUND)
    assert not handler.is_closed()  # the last known answer


def test_the_next_endpoint_takes_over(job, proxy):
    one = job.node(2, 2, endpoint=f"{proxy.endpoint},{job.etcd.get_endpoint()}")
    first = join(one)
    job.joined(1)
    proxy.cut()
    second = join(job.node(2, 2))
    assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]


class LosesResponse:
    """A client whose write of a key is applied, but whose response is lost: the write after ``skipped`` others."""

    def __init__(self, client: EtcdClient, key: str, skipped: int = 0) -> None:
        self._client, self._key, self._skipped = client, key, skipped
        self.lost = False

    def __getattr__(self, name):
        return getattr(self._client, name)

    def _lose(self, key: str) -> None:
        if key.endswith(self._key) and not self.lost:
            self._skipped -= 1
            self.lost = self._skipped < 0
            if self.lost:
                raise etcd_module().EtcdConnectionFailed("the response is lost")

    def write(self, key, value, ttl=None, **conditions):
        answer = self._client.write(key, value, ttl, **conditions)
        self._lose(key)
        return answer

    def delete(self, key, **conditions):
        answer = self._client.delete(key, **conditions)
        self._lose(key)
        return answer


@pytest.mark.parametrize(
    ("least", "skipped"),
    [
        pytest.param(2, 0, id="setting up"),
        pytest.param(2, 1, id="making joinable"),
        pytest.param(2, 2, id="joining"),
        pytest.param(2, 3, id="confirming"),
        pytest.param(1, 3, id="freezing"),
    ],
)
def test_a_lost_response_never_adds_a_node_twice(job, least, skipped):
    one, two = job.nodes(2, least, 2, last_call_timeout=2)
    lossy = one._rdzv_impl.directory.client = LosesResponse(one._rdzv_impl.client, "/active_version", skipped)
    first = join(one)
    eventually(lambda: lossy.lost or job.state().get("participants"), "the node has joined")
    if least == 1:
        assert first.result(BOUND).world_size == 1
    else:
        infos = [future.result(BOUND) for future in (join(two), first)]
        assert sorted(info.rank for info in infos) == [0, 1]
        assert {info.world_size for info in infos} == {2}
    assert lossy.lost


def test_a_lost_response_while_announcing_and_while_ending_the_round(job):
    one, two = job.nodes(2, 2, 2)
    infos = join_all([one, two])
    run = two._rdzv_impl
    run.directory.client = LosesResponse(run.client, "/active_version", 0)
    run.announce_self_waiting("1")
    assert run.client.lost
    assert job.state()["num_workers_waiting"] in (1, 2)
    job.leave(two, infos[1].rank)
    run.directory.client = LosesResponse(run.client, "/active_version", 1)
    futures = [join(two), join(one)]
    assert sorted(future.result(BOUND).rank for future in futures) == [0, 1]
    assert run.client.lost
    assert job.state()["version"] != "1"


def test_a_lost_response_to_a_write_that_the_value_identifies(job):
    handlers = job.nodes(2, 2, 2)
    join_all(handlers)
    run = handlers[0]._rdzv_impl
    run.directory.client = LosesResponse(run.client, "extra_data")
    run.store_extra_data("1", "key", "value")
    assert run.load_extra_data("1", "key", timeout=1) == "value"
    run.directory.client = LosesResponse(run.client, "/active_version")
    run.set_closed()
    assert job.state()["status"] == "closed"


# A cluster.


def test_leaders_die_while_nodes_wait(v2_binary, run_id):
    def node():
        params = RendezvousParameters("etcd", cluster.endpoint, run_id, 2, 2, "node", timeout=int(BOUND))
        return get_rendezvous_handler(params)

    with Cluster(3, flags=["--enable-v2"], binary=v2_binary) as cluster:
        one, two = node(), node()
        for version in ("1", "2"):
            first = join(one)
            eventually(
                lambda: (one._rdzv_impl.directory.peek(0) or {}).get("status") in ("joinable", "final"),
                "the first node waits",
            )
            cluster.kill(cluster.leader)
            second = join(two)
            assert sorted([first.result(BOUND).rank, second.result(BOUND).rank]) == [0, 1]
            assert int(one._version) >= int(version)
            cluster.mend()
        two.set_closed()
        eventually(one.is_closed, "the other node sees it")
        for handler in (one, two):
            handler._rdzv_impl.stop_keep_alive()


def test_tls_with_a_client_certificate(v2_binary, run_id, tmp_path):
    tls = Certificates(tmp_path, mutual=True)
    files = {"protocol": "https", "cacert": tls.ca, "cert": tls.cert, "key": tls.key}
    with Cluster(1, tls, ["--enable-v2"], v2_binary) as cluster:
        params = RendezvousParameters("etcd", cluster.endpoint, run_id, 1, 1, "node", **files)
        handler = get_rendezvous_handler(params)
        assert handler.next_rendezvous().world_size == 1
        assert handler.shutdown()
        params.config["cert"] = params.config["key"] = None
        with pytest.raises(RendezvousConnectionError, match="no etcd answers at https://"):
            get_rendezvous_handler(params)
