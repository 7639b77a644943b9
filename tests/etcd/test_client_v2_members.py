"""A cluster of two members, one of which can be cut off from the other and then answers with an old state."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.request import Request, urlopen

import etcd as python_etcd
import pytest

from rendezvous.dynamic.backend_v2 import EtcdRendezvousBackend
from rendezvous.etcd.v2.client import EtcdClient
from rendezvous.utils import get_free_port
from tests.nodes import eventually
from tests.proxy import Proxy


class Member:
    """A member that its peers reach through a proxy."""

    def __init__(self, name: str, folder: str, binary: str) -> None:
        self.name, self._folder, self._binary = name, folder, binary
        self.port, self._peer_port = get_free_port("localhost"), get_free_port("localhost")
        self.proxy = Proxy(self._peer_port)
        self.peer_url = f"http://localhost:{self.proxy.port}"

    def start(self, cluster: list[Member], state: str) -> None:
        client_url = f"http://localhost:{self.port}"
        command = [
            *(self._binary, "--name", self.name, "--data-dir", f"{self._folder}/{self.name}", "--enable-v2"),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", f"http://localhost:{self._peer_port}"),
            *("--initial-advertise-peer-urls", self.peer_url, "--initial-cluster-state", state),
            *("--initial-cluster", ",".join(f"{member.name}={member.peer_url}" for member in cluster)),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def value(self, key: str) -> str | None:
        try:
            return python_etcd.Client("localhost", self.port).read(key).value
        except python_etcd.EtcdException:
            return None


@pytest.fixture
def members(v2_binary, tmp_path) -> Iterator[tuple[Member, Member]]:
    """A member that is a quorum by itself, and a learner."""
    voter, learner = Member("voter", str(tmp_path), v2_binary), Member("learner", str(tmp_path), v2_binary)
    with ExitStack() as stack:
        for proxy in (voter.proxy, learner.proxy):
            stack.enter_context(proxy)
        voter.start([voter], "new")
        stack.callback(voter.stop)
        client = python_etcd.Client("localhost", voter.port)

        def write() -> bool:
            try:
                return bool(client.write("/begin", "1"))
            except python_etcd.EtcdException:
                return False

        eventually(write, "the voter accepts writes")
        body = json.dumps({"peerURLs": [learner.peer_url], "isLearner": True}).encode()
        urlopen(Request(f"http://localhost:{voter.port}/v3/cluster/member/add", body), timeout=10).close()
        learner.start([voter, learner], "existing")
        stack.callback(learner.stop)
        eventually(lambda: learner.value("/begin"), "the learner has the key")
        yield voter, learner


@pytest.fixture
def job(members, run_id) -> tuple[EtcdClient, EtcdRendezvousBackend, int]:
    """A client, a backend whose first state both members have, and the token of that state."""
    voter, learner = members
    client = EtcdClient([("localhost", voter.port), ("localhost", learner.port)], discover=False)
    backend = EtcdRendezvousBackend(client, run_id)
    _, token, _ = backend.set_state(b"one")
    eventually(lambda: learner.value(f"/{run_id}"), "the learner has the state")
    return client, backend, token


def test_a_state_older_than_one_read_before_is_not_returned(members, job, run_id):
    voter, learner = members
    client, backend, first = job
    for member in members:
        member.proxy.cut()
    _, second, _ = backend.set_state(b"two", first)
    assert backend.get_state() == (b"two", second)

    client._current = 1
    assert client.endpoint == f"localhost:{learner.port}"
    assert EtcdRendezvousBackend(client, run_id).get_state() == (b"one", first)  # it has read no other state before
    assert backend.get_state() == (b"two", second)
    assert client.endpoint == f"localhost:{voter.port}"  # the learner has no quorum


def test_a_member_that_is_behind_is_asked_for_a_quorum_read(members, job):
    learner = members[1]
    client, backend, first = job
    for member in members:
        member.proxy.stall()
    _, second, _ = backend.set_state(b"two", first)
    client._current = 1
    resume = threading.Timer(0.5, lambda: [member.proxy.resume() for member in members])
    resume.start()
    assert backend.get_state() == (b"two", second)
    assert client.endpoint == f"localhost:{learner.port}"
