"""The backend on etcd's v3 API."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from benchmarks.etcd_cluster import send
from rendezvous import RendezvousConnectionError, RendezvousParameters, RendezvousStateError
from rendezvous.coordinated.records import Keys
from rendezvous.dynamic.backend_v3 import EtcdRendezvousBackend, create_backend
from rendezvous.dynamic.handler import DynamicRendezvousHandler
from rendezvous.dynamic.settings import RendezvousTimeout
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.backends import BackendContract
from tests.nodes import BOUND, eventually, in_thread, join, join_all, kill
from tests.proxy import Proxy


class Losing(GrpcEtcdClient):
    """A client whose transactions are applied, but whose responses are lost."""

    lose = 0
    after_loss = None

    async def _attempt(self, call, request, timeout, deadline):
        answer = await super()._attempt(call, request, timeout, deadline)
        if self.lose and call is Call.TXN:
            self.lose -= 1
            if self.after_loss is not None:
                await self.after_loss()
            raise UnavailableError("the response was lost")
        return answer


@pytest.fixture
def make_client(etcd3):
    clients = []

    def make(port=None):
        async def connect():
            return Losing([("127.0.0.1", etcd3.get_port() if port is None else port)])

        clients.append(background.run(connect()))
        return clients[-1]

    yield make
    for client in clients:
        background.run(client.close())


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def keys(run_id):
    return Keys("/backends", run_id)


@pytest.fixture
def backend(client, keys):
    return EtcdRendezvousBackend(client, keys)


def ask(client, method, *arguments, **options):
    """Call a method of the client on its event loop."""

    async def call():
        deadline = asyncio.get_running_loop().time() + BOUND
        return await getattr(client, method)(*arguments, deadline=deadline, **options)

    return background.run(call())


def compact(client):
    """Compact all revisions."""
    ask(client, "txn", [], [put_op(b"/noise", b"")])
    _, revision = ask(client, "range", b"/noise", b"")

    async def call():
        await send(client._endpoints.current.channel, rpc_pb2.CompactionRequest(revision=revision, physical=True))

    background.run(call())


def stored(client, keys):
    (kv,), _ = ask(client, "range", keys.root + b"state", b"")
    return kv


class TestContract(BackendContract):
    pass


def test_the_name(backend):
    assert backend.name == "etcd-v3"


@pytest.mark.parametrize("other", ["a/b", "a b", "ключ", "x"])
def test_run_ids_of_all_kinds_are_separate(client, run_id, other):
    one = EtcdRendezvousBackend(client, Keys("/backends", run_id))
    two = EtcdRendezvousBackend(client, Keys("/backends", f"{run_id}/{other}"))
    one.set_state(b"one")
    assert two.get_state() is None


def test_a_value_that_is_not_a_state_is_an_error_that_quotes_it(client, keys, backend):
    ask(client, "txn", [], [put_op(keys.root + b"state", b"foreign")])
    for call in (backend.get_state, lambda: backend.set_state(b"one"), lambda: backend.set_state(b"one", "invalid")):
        with pytest.raises(RendezvousStateError, match=r"/state' holds b'foreign', which is not a state"):
            call()


# Watching.


def test_watch_waits_for_another_node(make_client, client, keys, backend):
    _, token, _ = backend.set_state(b"one")
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(backend.watch(token, BOUND)))
    thread.start()
    eventually(lambda: client._watches._created, "the watch")
    other = EtcdRendezvousBackend(make_client(), keys)
    _, second, _ = other.set_state(b"two", token)
    thread.join(BOUND)
    assert outcome == [(b"two", second)]
    eventually(lambda: not client._watches._created, "the watch is over")


@pytest.mark.parametrize("has_written", [True, False])
def test_watch_waits_after_etcd_has_compacted_the_last_change_of_the_state(
    make_client, client, keys, backend, has_written
):
    _, token, _ = backend.set_state(b"one")
    compact(client)
    watcher = backend if has_written else EtcdRendezvousBackend(client, keys)
    watching = in_thread(lambda: watcher.watch(token, BOUND))
    _, second, _ = EtcdRendezvousBackend(make_client(), keys).set_state(b"two", token)
    assert watching.result(BOUND) == (b"two", second)  # None if the watch had not waited


def test_watch_returns_the_newest_state_if_etcd_has_compacted_the_next(client, backend):
    _, first, _ = backend.set_state(b"one")
    _, second, _ = backend.set_state(b"two", first)
    _, third, _ = backend.set_state(b"three", second)
    compact(client)
    assert backend.watch(first, 5) == (b"three", third)


def test_watch_returns_none_if_the_state_is_deleted(client, keys, backend):
    _, token, _ = backend.set_state(b"one")
    ask(client, "delete", keys.root + b"state", b"")
    assert backend.watch(token, 5) is None
    compact(client)
    assert backend.watch(token, 5) is None


# The lease.


def test_etcd_deletes_the_state_two_hours_after_the_last_write(client, keys, backend):
    _, first, _ = backend.set_state(b"one")
    _, second, _ = backend.set_state(b"two", first)
    lease = stored(client, keys).lease
    assert ask(client, "grant", 7200) != lease

    async def time_to_live():
        return await send(client._endpoints.current.channel, rpc_pb2.LeaseTimeToLiveRequest(ID=lease))

    assert 7100 < background.run(time_to_live()).TTL <= 7200
    backend._renewed_at -= 1000
    backend.set_state(b"three", second)
    assert stored(client, keys).lease == lease
    assert background.run(time_to_live()).TTL > 7190


def test_the_ttl_can_be_chosen(client, keys):
    backend = EtcdRendezvousBackend(client, keys, ttl=1)
    _, token, _ = backend.set_state(b"one")
    eventually(lambda: backend.get_state() is None, "etcd deletes the state")
    assert backend.set_state(b"two", token) is None
    assert backend.set_state(b"two")[2]


@pytest.mark.parametrize("long_ago", [False, True])
def test_a_lost_lease_is_replaced(client, keys, backend, long_ago):
    backend.set_state(b"one")
    lost = stored(client, keys).lease
    ask(client, "revoke", lost)
    assert backend.get_state() is None
    if long_ago:
        backend._renewed_at -= 1000
    assert backend.set_state(b"two")[2]
    assert stored(client, keys).lease not in (0, lost)


# Lost responses.


@pytest.mark.parametrize("losses", [1, 3])
def test_a_write_whose_response_is_lost_is_recognised(client, backend, losses):
    client.lose = losses
    state, token, written = backend.set_state(b"one")
    assert (state, written) == (b"one", True)
    client.lose = losses
    assert backend.set_state(b"two", token) == (*backend.get_state(), True)
    assert client.lose == 0
    assert backend.get_state()[0] == b"two"


def test_another_node_s_write_of_the_same_bytes_is_not_mistaken_for_its_own(make_client, client, keys, backend):
    _, token, _ = backend.set_state(b"one")
    other = EtcdRendezvousBackend(make_client(), keys)
    assert other.set_state(b"two", token)[2]
    client.lose = 1
    assert backend.set_state(b"two", token) == (*other.get_state(), False)


def test_a_write_whose_response_is_lost_and_that_was_overwritten_counts_as_lost(make_client, client, keys, backend):
    other = EtcdRendezvousBackend(make_client(), keys)

    async def overwrite():
        _, token = await other._get()
        await other._set(b"other", token)

    client.lose, client.after_loss = 1, overwrite
    assert backend.set_state(b"one") == (*other.get_state(), False)
    assert other.get_state()[0] == b"other"


def test_without_etcd_a_request_fails_at_its_timeout(etcd3, make_client, keys):
    with Proxy(etcd3.get_port()) as proxy:
        backend = EtcdRendezvousBackend(make_client(proxy.port), keys, timeout=0.5)
        _, token, _ = backend.set_state(b"one")
        proxy.cut()
        for call in (backend.get_state, lambda: backend.set_state(b"two", token)):
            with pytest.raises(
                RendezvousConnectionError,
                match=rf"etcd at 127\.0\.0\.1:{proxy.port} did not .* within 0.5 s",
            ):
                in_thread(call).result(5)
        proxy.restore()

        def read():
            try:
                return backend.get_state()
            except RendezvousConnectionError:
                return None  # gRPC connects again after a pause that may be longer than the timeout

        assert eventually(read, "etcd is back") == (b"one", token)


# With the dynamic rendezvous.


def params(etcd3, run_id, **options):
    return RendezvousParameters("etcd-v3", etcd3.get_endpoint(), run_id, 2, 2, **options)


@pytest.fixture
def make_handler(etcd3, run_id):
    handlers = []

    def make(name, least=2, most=3):
        backend, store = create_backend(params(etcd3, run_id))
        times = RendezvousTimeout(*(timedelta(seconds=s) for s in (BOUND, 0.5, 10, 2)))
        handlers.append(DynamicRendezvousHandler.from_backend(run_id, store, backend, least, most, name, times, 0.5, 3))
        return handlers[-1]

    yield make
    for handler in handlers:
        kill(handler)


def test_create_backend(etcd3, run_id):
    backend, store = create_backend(params(etcd3, run_id, prefix="/elsewhere", read_timeout="7"))
    other, other_store = create_backend(params(etcd3, run_id, prefix="/elsewhere"))
    assert backend._timeout == 7
    assert backend._key == f"/elsewhere/{run_id}/state".encode()
    assert backend._client is other._client
    backend.set_state(b"one")
    assert other.get_state()[0] == b"one"
    assert [store.add("n", 1), other_store.add("n", 1), store.add("n", 1)] == [1, 2, 3]
    other_store.wait(["n"])
    with pytest.raises(ValueError, match="run id must not be empty"):
        create_backend(params(etcd3, ""))


def test_a_round_of_two_nodes_and_a_round_with_a_third(make_handler):
    handlers = [make_handler(f"node-{i}") for i in range(2)]
    one, two = join_all(handlers)
    one.store.set("key", "value")
    assert two.store.get("key") == b"value"
    third = make_handler("node-2")
    waiting = join(third)
    eventually(lambda: handlers[0].num_nodes_waiting() == 1, "the third waits")
    infos = [each.result(BOUND) for each in (*map(join, handlers), waiting)]
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert not infos[0].store.check(["key"])
    handlers[0].set_closed()
    eventually(third.is_closed, "all nodes see that it is closed")


def test_a_round_of_many_nodes(make_handler):
    join_all([make_handler(f"node-{i}", 12, 12) for i in range(12)])
