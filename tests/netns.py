"""``rendezvous bench`` on hosts that are network namespaces, with an etcd in another namespace.

These tests need root, Linux and iproute2. ``make test`` does not run them; ``make test-netns`` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rendezvous.etcd.server import find_etcd
from tests import hosts
from tests.nodes import eventually

HOSTS = 4
ETCD = "10.203.0.1:2379"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass(frozen=True)
class Network:
    """Namespaces that are connected by a bridge in the namespace of etcd.

    Attributes:
        name: the prefix of the names of all namespaces.
    """

    name: str

    @property
    def switch(self) -> str:
        """The namespace of the bridge and of etcd."""
        return f"{self.name}-s"

    def host(self, number: int) -> str:
        """Return the namespace of a host."""
        return f"{self.name}-{number}"

    def address(self, number: int) -> str:
        """Return the address of a host."""
        return f"10.203.0.{number + 10}"

    def within(self, namespace: str, *command: str) -> list[str]:
        """Return the command that runs ``command`` in a namespace."""
        return ["ip", "netns", "exec", namespace, *command]

    def create(self) -> None:
        """Create the namespaces, the bridge and the links."""
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "address", "add", f"{ETCD.split(':')[0]}/24", "dev", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number in range(HOSTS):
            host, port = self.host(number), f"port{number}"
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", host, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Delete all namespaces that exist, with their links."""
        for namespace in (self.switch, *map(self.host, range(HOSTS))):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)

    def set_link(self, number: int, state: str) -> None:
        """Set the link of a host ``up`` or ``down``."""
        ip("-n", self.switch, "link", "set", f"port{number}", state)


ASK = f"import urllib.request; print(urllib.request.urlopen('http://{ETCD}/health', timeout=5).read())"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Iterator[Network]:
    network = Network(f"rdzv{os.getpid()}")
    data = str(tmp_path_factory.mktemp("etcd"))
    try:
        network.create()
        flags = ("--listen-client-urls", f"http://{ETCD}", "--advertise-client-urls", f"http://{ETCD}")
        command = network.within(network.switch, find_etcd(), "--data-dir", data, *flags, "--log-level", "warn")
        etcd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asked = network.within(network.switch, sys.executable, "-c", ASK)
            eventually(lambda: subprocess.run(asked, capture_output=True, check=False).stdout, "etcd answers")
            yield network
        finally:
            etcd.kill()
            etcd.wait()
    finally:
        network.remove()


def commands(network: Network, run_id: str, *arguments: str) -> list[Sequence[str]]:
    common = (*hosts.COMMAND, "--endpoint", ETCD, "--run-id", run_id, *arguments)
    return [
        network.within(network.host(number), *common, "--local-addr", network.address(number))
        for number in range(HOSTS)
    ]


@pytest.mark.parametrize(
    ("contender", "per_host"),
    [("etcd-v3", 1), ("etcd-v3", 16), ("etcd-v3, coroutines", 64), ("etcd-v3, coroutines", 250)],
)
def test_hosts_in_namespaces_form_worlds(network, run_id, tmp_path, contender, per_host):
    nodes = HOSTS * per_host
    numbers = ("--nodes", str(nodes), "--per-host", str(per_host), "--contender", contender)
    ended = hosts.run(commands(network, run_id, *numbers, "--output", str(tmp_path)))
    print(ended[0].out)
    assert [(each.code, each.err) for each in ended] == [(0, "")] * HOSTS
    assert [row[:3] for row in ended[0].rows] == [[str(i), str(HOSTS), f"{nodes:,}"] for i in range(3)]
    result = json.loads((tmp_path / "formation-cluster.json").read_text())
    for row in result["rows"]:
        assert list(row["by_host"]) == [f"{network.address(i)} (host {i})" for i in range(HOSTS)]
        assert row["per_node"]["raft"] >= 2


def test_a_host_without_a_link_reports_it_and_the_others_miss_the_host(network, run_id):
    network.set_link(2, "down")
    try:
        numbers = ("--nodes", str(HOSTS), "--rdzv-conf", "join_timeout=25,read_timeout=3")
        ended = hosts.run(commands(network, run_id, *numbers))
    finally:
        network.set_link(2, "up")
    assert [each.code for each in ended] == [1] * HOSTS
    assert f"no etcd answers at {ETCD}" in ended[2].err
    joined = ", ".join(network.address(number) for number in (0, 1, 3))
    for number in (0, 1, 3):
        assert f"3 of 4 hosts joined within 25 s: {joined}" in ended[number].err


def test_the_others_report_a_host_that_is_cut_off(network, run_id, tmp_path):
    conf = "join_timeout=60,read_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=2"
    numbers = ("--nodes", str(2 * HOSTS), "--per-host", "2", "--rounds", "100000", "--rdzv-conf", conf)
    with hosts.running(commands(network, run_id, *numbers, "--output", str(tmp_path))) as here:
        eventually(lambda: formed(network, run_id), "the first world is over")
        network.set_link(3, "down")
        try:
            ended = [hosts.end(host) for host in here[:3]]
        finally:
            network.set_link(3, "up")
        cut_off = hosts.end(here[3])
    assert [each.code for each in [*ended, cut_off]] == [1] * HOSTS
    assert f"{network.address(3)} (host 3): it published no report in time" in " ".join(ended[0].out.split())


def formed(network: Network, run_id: str) -> bool:
    """Return whether the first world of a run is over. Only a process in a namespace can connect to etcd."""
    code = f"from tests.hosts import keys; print(keys('{ETCD}', '/rendezvous/{run_id}-lobby/store/0000000000/over/'))"
    command = network.within(network.switch, sys.executable, "-c", code)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return done.stdout.strip() != "[]"
