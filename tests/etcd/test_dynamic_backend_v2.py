from __future__ import annotations

import time
from base64 import b64encode
from pathlib import Path

import pytest

from rendezvous import RendezvousConnectionError, RendezvousParameters, RendezvousStateError
from rendezvous.dynamic.backend_v2 import EtcdRendezvousBackend, create_backend
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v2.client import EtcdClient
from tests.backends import BackendContract
from tests.etcd.clusters import Certificates, Cluster
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


def test_the_name_is_the_protocol_s(backend):
    assert backend.name == "etcd-v2"


def test_watch_waits_though_etcd_has_forgotten_when_the_state_changed(etcd, backend, run_id):
    _, token, _ = backend.set_state(b"one")
    client = etcd.get_client()
    for i in range(1100):  # etcd remembers 1,000 changes
        client.write(f"/noise/{run_id}", str(i))
    assert backend.get_state() == (b"one", token)
    start = time.monotonic()
    assert backend.watch(token, 0.5) is None
    assert time.monotonic() - start >= 0.5
    assert backend.watch(token + 1, 5) is None  # not seen by this backend: forgotten, so ask


def test_watch_says_to_ask_when_the_state_is_deleted(etcd, backend):
    _, token, _ = backend.set_state(b"one")
    etcd.get_client().delete(backend._key)
    assert backend.watch(token, 5) is None


def test_the_key_and_the_value_stand_in_etcd_as_torch_writes_them(etcd, run_id):
    backend, _ = create_backend(params(etcd, run_id))
    backend.set_state(b"state")
    raw = etcd.get_client().read(f"/torch/elastic/rendezvous/{run_id}")
    assert raw.value == b64encode(b"state").decode()
    assert 7100 < raw.ttl <= 7200


def test_the_ttl_can_be_chosen(etcd, run_id):
    backend = EtcdRendezvousBackend(etcd.get_client(), run_id, ttl=60)
    backend.set_state(b"state")
    assert 0 < etcd.get_client().read(f"/{run_id}").ttl <= 60


# What is in the way.


@pytest.mark.parametrize("value", ["no base64!", "abc", "ключ"])
def test_a_value_that_is_not_base64_is_a_state_error(etcd, run_id, value):
    backend = EtcdRendezvousBackend(etcd.get_client(), run_id)
    etcd.get_client().write(f"/{run_id}", value)
    with pytest.raises(RendezvousStateError, match=f"'{run_id}' does not hold base64"):
        backend.get_state()


@pytest.mark.parametrize("run_id_", ["a b", "a/b", "a?b#c", "100%", "ключ", "a+b", "x" * 200])
def test_run_ids_of_all_kinds_keep_apart(etcd, run_id, run_id_):
    backend, _ = create_backend(params(etcd, f"{run_id}-{run_id_}"))
    other, _ = create_backend(params(etcd, f"{run_id}-{run_id_}x"))
    backend.set_state(b"one")
    assert other.get_state() is None
    assert backend.get_state()[0] == b"one"


@pytest.mark.parametrize("run_id_", ["../other", "a/../b", "a//b", "./a"])
def test_a_run_id_that_reaches_elsewhere_is_refused(etcd, run_id_):
    with pytest.raises(ValueError, match=r"must not have empty parts nor '\.' or '\.\.'"):
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


# create_backend and its options.


def test_the_store_stands_where_torch_s_does(etcd, run_id):
    _, store = create_backend(params(etcd, run_id))
    assert store.prefix == "/torch/elastic/store/"


def test_without_options_everything_is_torch_s_default(etcd, run_id):
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


def test_tls_with_a_client_certificate(run_id, tmp_path):
    tls = Certificates(tmp_path, mutual=True)
    both = tmp_path / "both.pem"
    both.write_text(Path(tls.cert).read_text() + Path(tls.key).read_text())
    trust = {"protocol": "https", "ca_cert": tls.ca, "read_timeout": 5}
    with Cluster(1, tls, ["--enable-v2"]) as cluster:
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
def test_wrong_options_are_named(etcd, run_id, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_backend(params(etcd, run_id, **options))


@pytest.mark.parametrize("endpoint", ["localhost:1", "no-such-host.invalid:2379", "localhost:1,127.0.0.1:2"])
def test_an_etcd_that_is_not_there_is_named(endpoint, run_id):
    with pytest.raises(RendezvousConnectionError, match=endpoint.split(",")[0]):
        create_backend(RendezvousParameters("etcd-v2", endpoint, run_id, 1, 1, read_timeout=5))


def test_an_etcd_without_the_v2_api_is_told_so(run_id):
    with EtcdServer(enable_v2=False) as server, pytest.raises(RendezvousConnectionError, match="need --enable-v2"):
        create_backend(params(server, run_id))


def test_an_etcd_that_has_lost_its_data_is_believed(run_id):
    with EtcdServer() as old, EtcdServer() as new, Proxy(old.get_port()) as proxy:
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
