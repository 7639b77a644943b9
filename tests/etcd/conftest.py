"""Clusters for the tests of the etcd v3 client, and ways to disturb them."""

from __future__ import annotations

import pytest

from tests.etcd.clusters import Cluster
from tests.proxy import Proxy


@pytest.fixture(scope="module")
def server():
    """An etcd of one member; a test that stops it has it up again at its end."""
    with Cluster(1, flags=["--max-txn-ops", "100000"]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def port(server):
    yield server.ports[0]
    server.mend()


@pytest.fixture
def proxy(port):
    with Proxy(port) as proxy:
        yield proxy
        proxy.resume()


@pytest.fixture
def key(run_id):
    return f"/{run_id}/".encode()


@pytest.fixture
def members(three):
    yield three
    three.mend()
