"""Stores on a real etcd."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store import EtcdStore
from rendezvous.etcd.v3 import background
from tests.etcd.coordinated_store.spy import connect, revision
from tests.nodes import BOUND


@pytest.fixture
def make_client(etcd3):
    clients = []

    def make(port=None):
        clients.append(connect(etcd3.get_port() if port is None else port))
        return clients[-1]

    yield make
    for client in clients:
        background.run(client.close())


@pytest.fixture(scope="module")
def client(etcd3):
    client = connect(etcd3.get_port())
    yield client
    background.run(client.close())


@pytest.fixture
def spy(make_client):
    return make_client()


@pytest.fixture
def keys(run_id):
    return Keys("/test", run_id)


@pytest.fixture
def make_store(client, keys):
    since = revision(client)

    def make(client=client, **options):
        settings = {"number": 3, "lease": 0, "since": since, "timeout": timedelta(seconds=BOUND), **options}
        return EtcdStore(client, keys, **settings)

    return make


@pytest.fixture
def store(make_store):
    return make_store()
