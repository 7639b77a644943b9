"""The backend on etcd's v2 API."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from rendezvous import RendezvousConnectionError, RendezvousParameters, RendezvousStateError
from rendezvous.dynamic.backend_v2 import EtcdRendezvousBackend, create_backend
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v2.client import EtcdClient
from tests.backends import BackendContract
from tests.etcd.clusters import Certificates, Cluster
from tests.nodes import BOUND, in_thread
from tests.proxy import Proxy


def params(etcd, run_id, **options) -> RendezvousParameters:
    return RendezvousParameters("etcd-v2", etcd.get_endpoint(), run_id, 1, 2, **options)


@pytest.fixture(params=["ours", "python-etcd"])
def backend(request, etcd, run_id):
    ours = request.param == "ours"
    client = EtcdClient([("localhost", etcd.get_port())]) if ours else etcd.get_client()
    return EtcdRendezvousBackend(client, run_id, "/backends")


class TestContract(BackendContract):
    pass


def test_the_name(backend):
    assert backend.name == "etcd-v2"


def test_watch_waits_after_etcd_has_dropped_the_last_change_of_the_state(etcd, backend, run_id):
    _, token, _ = backend.set_state(b"one")
    client = etcd.get_client()
    for i in range(1100):  # etcd keeps 1,000 changes
        client.write(f"/noise/{run_id}", str(i))
    assert backend.get_state() == (b"one", token)
    watching = in_thread(lambda: backend.watch(token, BOUND))
    other = EtcdRendezvousBackend(client, run_id, "/backends")
    _, second, _ = other.set_state(b"two", token)
    assert watching.result(BOUND) == (b"two", second)  # None if the watch had not waited


def test_watch_returns_none_if_etcd_has_dropped_the_next_change(etcd, backend, run_id):
    _, token, _ = backend.set_state(b"one")
    client = etcd.get_client()
    for i in range(1100):
        client.write(f"/noise/{run_id}", str(i))
    assert backend.watch(token + 1, 5) is None


def test_watch_returns_none_if_the_state_is_deleted(etcd, backend):
    _, token, _ = backend.set_state(b"one")
    etcd.get_client().delete(backend._key)
    assert backend.watch(token, 5) is None


def test_the_key_and_the_value_are_stored_as_torch_stores_them(etcd, run_id):
    backend, _ = create_backend(params(etcd, run_id))
    backend.set_state(b"state")
    raw = etcd.get_client().read(f"/torch/elastic/rendezvous/{run_id}")
    assert raw.value == b64encode(b"state").decode()
    assert 7100 < raw.ttl <= 7200


def test_the_ttl_can_be_chosen(etcd, run_id):
    backend = EtcdRendezvousBackend(etcd.get_client(), run_id, ttl=60)
    backend.set_state(b"state")
    assert 0 < etcd.get_client().read(f"/{run_id}").ttl <= 60


# Errors.


@pytest.mark.parametrize("value", ["no base64!", "abc", "ключ", "\x1b!" * 100])
def test_a_value_that_is_not_base64_is_a_state_error(etcd, run_id, value):
    backend = EtcdRendezvousBackend(etcd.get_client(), run_id)
    etcd.get_client().write(f"/{run_id}", value)
    with pytest.raises(RendezvousStateError) as caught:
        backend.get_state()
    shown = repr(value) if len(value) <= 60 else f"{value[:60]!r}... ({len(value)} characters)"
    assert str(caught.value) == (
        f"the etcd key '{run_id}' contains {shown}, which is not base64: another program wrote it; "
        f"choose another run id"
    )


@pytest.mark.parametrize("run_id_", ["a b", "a/b", "a?b#c", "100%", "ключ", "a+b", "x" * 200])
def test_run_ids_of_all_kinds_are_separate(etcd, run_id, run_id_):
    backend, _ = create_backend(params(etcd, f"{run_id}-{run_id_}"))
    other, _ = create_backend(params(etcd, f"{run_id}-{run_id_}x"))
    backend.set_state(b"one")
    assert other.get_state() is None
    assert backend.get_state()[0] == b"one"


@pytest.mark.parametrize("run_id_", ["../other", "a/../b", "a//b", "./a"])
def test_a_run_id_that_refers_to_another_key_is_refused(etcd, run_id_):
    with pytest.raises(ValueError, match=r"must not have empty parts, and no part may be '\.' or '\.\.'"):
        create_backend(params(etcd, run_id_))


def test_a_run_id_below_another_is_a_state_error(etcd, run_id):
    upper, _ = create_backend(params(etcd, run_id))
    lower, _ = create_backend(params(etcd, f"{run_id}/lower"))
    lower.set_state(b"one")
    with pytest.raises(RendezvousStateError, match="choose another run id"):
        upper.get_state()
    with pytest.raises(RendezvousStateError, match="choose another run id"):
        upper.set_state(b"two")
    upper, _ = create_backend(params(etcd, f"{run_id}-2"))
    lower, _ = create_backend(params(etcd, f"{run_id}-2/lower"))
    upper.set_state(b"one")
    with pytest.raises(RendezvousStateError, match="choose another run id"):
        lower.set_state(b"two")


def test_an_empty_run_id_is_refused(etcd):
    with pytest.raises(ValueError, match="run id must not be empty"):
        EtcdRendezvousBackend(etcd.get_client(), "")
    with pytest.raises(ValueError, match="run id must not be empty"):
        create_backend(params(etcd, ""))


# create_backend and its configuration.


def test_the_store_has_the_prefix_of_torch_s_store(etcd, run_id):
    _, store = create_backend(params(etcd, run_id))
    assert store.prefix == "/torch/elastic/store/"


def test_the_defaults_are_torch_s(etcd, run_id):
    backend, _ = create_backend(params(etcd, run_id))
    assert backend._client._options == {
        **{"protocol": "http", "read_timeout": 60, "cert": None, "ca_cert": None},
        **{"username": None, "password": None},
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"read_timeout": "7"}, {"read_timeout": 7}),
        ({"read_timeout": 7}, {"read_timeout": 7}),
        *(({"protocol": text}, {"protocol": "http"}) for text in ("http", "HTTP", "hTTp", " http ")),
        ({"username": "me", "password_file": "password"}, {"username": "me", "password": "secret"}),
    ],
)
def test_each_option_reaches_the_client(etcd, run_id, tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text("secret\n")
    backend, _ = create_backend(params(etcd, run_id, **options))
    assert {name: backend._client._options[name] for name in expected} == expected


def test_tls_with_a_client_certificate(v2_binary, run_id, tmp_path):
    tls = Certificates(tmp_path, mutual=True)
    both = tmp_path / "both.pem"
    both.write_text(Path(tls.cert).read_text() + Path(tls.key).read_text())
    trust = {"protocol": "https", "ca_cert": tls.ca, "read_timeout": 5}
    with Cluster(1, tls, ["--enable-v2"], v2_binary) as cluster:
        for files in ({"ssl_cert": tls.cert, "ssl_cert_key": tls.key}, {"ssl_cert": str(both)}):
            given = RendezvousParameters("etcd-v2", cluster.endpoint, run_id, 1, 1, **trust, **files)
            backend, _ = create_backend(given)
            assert backend.get_state() is None or backend.get_state()[0] == b"state"
            backend.set_state(b"state")
        with pytest.raises(RendezvousConnectionError, match="no etcd answers at https://"):
            create_backend(RendezvousParameters("etcd-v2", cluster.endpoint, run_id, 1, 1, **trust))


@pytest.mark.parametrize("protocol", ["HTTPS", "https"])
def test_the_protocol_may_be_https_in_any_letter_case(etcd, run_id, protocol):
    with pytest.raises(RendezvousConnectionError, match=r"no etcd answers at https://localhost"):
        create_backend(params(etcd, run_id, protocol=protocol))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"protocol": "ftp"}, "'protocol' must be one of http, https"),
        ({"read_timeout": "0"}, "'read_timeout' must be an integer from 1"),
        ({"read_timeout": "-10"}, "'read_timeout' must be an integer from 1"),
        ({"read_timeout": "soon"}, "'read_timeout' must be an integer, not 'soon'"),
        ({"ssl_cert": "/nowhere"}, "'ssl_cert' names '/nowhere', which is not a file"),
        ({"ca_cert": "/nowhere"}, "'ca_cert' names '/nowhere', which is not a file"),
        ({"ca_cert": __file__}, "'ca_cert' has no effect with 'protocol=http'"),
        ({"ssl_cert_key": __file__, "protocol": "https"}, "'ssl_cert_key' is the key of 'ssl_cert', which is missing"),
        ({"username": "me"}, "'username' needs a password"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(etcd, run_id, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_backend(params(etcd, run_id, **options))


@pytest.mark.parametrize("endpoint", ["localhost:1", "no-such-host.invalid:2379", "localhost:1,127.0.0.1:2"])
def test_an_etcd_that_cannot_be_reached_is_an_error_that_names_it(endpoint, run_id):
    with pytest.raises(RendezvousConnectionError, match=endpoint.split(",")[0]):
        create_backend(RendezvousParameters("etcd-v2", endpoint, run_id, 1, 1, read_timeout=5))


def test_an_etcd_without_the_v2_api_is_an_error_that_says_so(run_id):
    with EtcdServer(enable_v2=False) as server, pytest.raises(RendezvousConnectionError, match="need --enable-v2"):
        create_backend(params(server, run_id))


def test_an_etcd_that_has_lost_its_data_is_accepted(v2_binary, run_id):
    old, new = (EtcdServer(etcd_binary_path=v2_binary, enable_v2=True) for _ in range(2))
    with old, new, Proxy(old.get_port()) as proxy:
        backend = EtcdRendezvousBackend(EtcdClient([("127.0.0.1", proxy.port)], discover=False), run_id)
        token = None
        for number in range(10):
            _, token, _ = backend.set_state(str(number).encode(), token)
        proxy.cut()
        proxy.restore(new.get_port())
        with pytest.raises(RendezvousConnectionError, match="UUID of the cluster changed"):
            backend.get_state()
        assert backend.get_state() is None
        _, token, written = backend.set_state(b"new")
        assert written
        assert backend.get_state() == (b"new", token)
