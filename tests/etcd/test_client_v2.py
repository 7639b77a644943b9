"""The client of etcd's v2 API: several endpoints, users, and errors, on real servers."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from contextlib import ExitStack

import etcd as python_etcd
import pytest

from rendezvous import RendezvousConnectionError, RendezvousParameters, get_rendezvous_handler
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v2.client import EtcdClient, key_path, translate_errors
from tests.nodes import in_thread
from tests.proxy import Proxy


@pytest.mark.parametrize(
    ("key", "path"), [("/a/b", "/a/b"), ("a b", "/a%20b"), ("/a?b=c/", "/a%3Fb%3Dc"), ("é", "/%C3%A9")]
)
def test_key_path_percent_encodes(key, path):
    assert key_path(key) == path


def test_a_dead_endpoint_is_skipped(etcd):
    client = EtcdClient([("localhost", 1), ("localhost", etcd.get_port())])
    assert client.endpoint == etcd.get_endpoint()
    client.write("/failover", "value")
    assert client.read("/failover").value == "value"


def test_an_endpoint_that_accepts_no_connection_is_skipped(etcd, caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as hole, ExitStack() as stack:
        for _ in range(4):  # they fill the queue of the listener, which then drops packets
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(hole.getsockname())
        endpoints = [hole.getsockname(), ("localhost", etcd.get_port())]
        # Each of the four requests tries the first endpoint, and gives it up after 3.5 s, not after 60 s.
        client = in_thread(lambda: EtcdClient(endpoints, discover=False, read_timeout=60)).result(20)
        assert client.endpoint == etcd.get_endpoint()
        client._current = 0
        index = in_thread(lambda: client.write("/hole", "value")).result(20).modifiedIndex
        client._current = 0
        # A swap is only repeated because it was not sent to the first endpoint.
        assert in_thread(lambda: client.write("/hole", "new", prevIndex=index)).result(20).value == "new"
        client._current = 0
        with pytest.raises(python_etcd.EtcdWatchTimedOut):
            in_thread(lambda: client.watch("/hole", timeout=0.5)).result(20)
    assert caplog.text.count("does not answer") == 4


def test_a_watch_may_last_longer_than_the_connect_timeout(etcd):
    client = EtcdClient([("localhost", etcd.get_port())])
    client.write("/slow", "value")
    timer = threading.Timer(4, client.write, ("/slow", "new"))
    timer.start()
    assert client.watch("/slow", timeout=30).value == "new"
    timer.join()


def test_advertised_members_take_over(etcd):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port)])
        assert client.endpoint == proxy.endpoint
        client.write("/failover", "value")
        proxy.cut()
        assert client.read("/failover").value == "value"
        assert client.endpoint == etcd.get_endpoint()


def test_a_swap_that_may_have_been_applied_is_not_repeated(etcd):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port), ("localhost", etcd.get_port())], discover=False, read_timeout=1)
        index = client.write("/swap", "one").modifiedIndex
        proxy.stall()
        with pytest.raises(python_etcd.EtcdConnectionFailed):
            client.write("/swap", "two", prevIndex=index)
        assert client.endpoint == etcd.get_endpoint()
        assert client.write("/swap", "three", prevIndex=index).value == "three"
        proxy.resume()


def test_a_swap_that_was_not_sent_goes_to_the_next_endpoint(etcd):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port), ("localhost", etcd.get_port())], discover=False)
    index = client.write("/swap", "one").modifiedIndex
    client._current = 0
    client._clients[0] = client._client("localhost", 1)
    assert client.write("/swap", "two", prevIndex=index).value == "two"


def test_errors_about_a_key_are_not_translated(etcd):
    client = EtcdClient([("localhost", etcd.get_port())])
    with pytest.raises(python_etcd.EtcdKeyNotFound):
        translate_errors("read", lambda: client.read("/nothing"))
    client.write("/key", "value")
    with pytest.raises(python_etcd.EtcdCompareFailed):
        translate_errors("write", lambda: client.write("/key", "x", prevIndex=1))
    with pytest.raises(python_etcd.EtcdAlreadyExist):
        translate_errors("write", lambda: client.write("/key", "x", prevExist=False))
    with pytest.raises(python_etcd.EtcdWatchTimedOut):
        translate_errors("watch", lambda: client.watch("/key", timeout=0.1))


def test_all_endpoints_dead_is_a_connection_error(etcd):
    with Proxy(etcd.get_port()) as proxy:
        client = EtcdClient([("127.0.0.1", proxy.port)], discover=False)
        proxy.cut()
        with pytest.raises(RendezvousConnectionError, match="looking for the key"):
            translate_errors("looking for the key", lambda: client.read("/key"))


def test_without_python_etcd_the_error_names_the_package_and_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "etcd", None)
    message = (
        "The package python-etcd is not installed. The rendezvous backends 'etcd' and 'etcd-v2' need it for etcd's v2 "
        "API; install it with 'pip install python-etcd', or use the backend 'etcd-v3'."
    )
    for backend in ("etcd", "etcd-v2"):
        with pytest.raises(ImportError) as caught:
            get_rendezvous_handler(RendezvousParameters(backend, "localhost:1", "run", 1, 1))
        assert str(caught.value) == message
        assert caught.value.__suppress_context__


@pytest.fixture(scope="module")
def guarded(v2_binary):
    """An etcd with the users root and trainer, on which guests may do nothing."""
    with EtcdServer(etcd_binary_path=v2_binary, enable_v2=True) as server:
        from urllib.request import Request, urlopen

        def put(path: str, body: str, user: str | None = None) -> None:
            import base64

            headers = {"Content-Type": "application/json"}
            if user:
                headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
            url = f"http://{server.get_endpoint()}/v2/auth/{path}"
            urlopen(Request(url, body.encode(), headers, method="PUT")).close()

        put("users/root", '{"user": "root", "password": "secret"}')
        grant = '{"kv": {"read": ["/torch/*"], "write": ["/torch/*"]}}'
        put("roles/trainer", f'{{"role": "trainer", "permissions": {grant}}}')
        put("users/trainer", '{"user": "trainer", "password": "pass word", "roles": ["trainer"]}')
        put("enable", "")
        revoke = '{"kv": {"read": ["/*"], "write": ["/*"]}}'
        put("roles/guest", f'{{"role": "guest", "revoke": {revoke}}}', "root:secret")
        yield server


def test_user_and_password(guarded, run_id, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("pass word\n")
    params = RendezvousParameters(
        "etcd-v2", guarded.get_endpoint(), run_id, 1, 1, username="trainer", password_file=str(secret)
    )
    backend, store = create_backend(params)
    assert backend.set_state(b"state")[2]
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_user_and_password_of_the_legacy_rendezvous(guarded, run_id, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("pass word\n")
    config = {"etcd_prefix": "/torch/legacy", "username": "trainer", "password_file": str(secret)}
    params = RendezvousParameters("etcd", guarded.get_endpoint(), run_id, 1, 1, "node-0", **config)
    handler = get_rendezvous_handler(params)
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()
    secret.write_text("wrong\n")
    with pytest.raises(RendezvousConnectionError, match="etcd refused the user; check the username, its password"):
        get_rendezvous_handler(params)


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_or_missing_password_is_an_error_that_is_not_retried(guarded, run_id, monkeypatch, password, caplog):
    options = {}
    if password is not None:
        monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", password)
        options["username"] = "trainer"
    params = RendezvousParameters("etcd-v2", guarded.get_endpoint(), run_id, 1, 1, **options)
    backend, store = create_backend(params)
    for call in (
        backend.get_state,
        lambda: backend.set_state(b"state"),
        lambda: store.get("key"),
        lambda: store.add("key", 1),
        # Immediately, not at the join timeout.
        get_rendezvous_handler(params).next_rendezvous,
    ):
        with pytest.raises(
            RendezvousConnectionError, match="etcd refused the user; check the username, its password"
        ) as caught:
            call()
        assert not caught.value.retryable
        assert caught.value.__suppress_context__
    assert "wrong" not in caplog.text
