from __future__ import annotations

import random
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from rendezvous import RendezvousConnectionError, RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.utils import get_free_port
from tests.etcd.clusters import BOUND, Cluster


def test_nodes_start_with_different_endpoints_and_skip_a_dead_one(monkeypatch):
    targets = []
    with Cluster(3) as cluster:
        cluster.kill(1)
        params = RendezvousParameters("etcd-v3", cluster.endpoint, "run", 1, 1)
        for start in range(3):
            monkeypatch.setattr("rendezvous.etcd.v3.connect._clients", {})
            monkeypatch.setattr(random, "randrange", lambda stop, start=start: start % stop)
            client = connect(params)
            targets.append(client.target)
            background.run(client.close())
        first, _, third = (f"127.0.0.1:{port}" for port in cluster.ports)
    assert targets[0] == first
    assert targets[1] in (first, third)
    assert targets[2] == third


def test_the_traceback_of_a_wrong_port_is_short():
    endpoint = f"127.0.0.1:{get_free_port('127.0.0.1')}"
    with pytest.raises(RendezvousConnectionError, match=f"no etcd answers at {endpoint}: Connection refused") as error:
        connect(RendezvousParameters("etcd-v3", endpoint, "run", 1, 1, read_timeout=1))
    lines = "".join(traceback.format_exception(error.value)).splitlines()
    assert len(lines) <= 12
    assert "AioRpcError" not in "".join(lines)


def test_a_client_that_failed_does_not_connect_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            try:
                while True:
                    listener.accept()[0].close()
            except TimeoutError:
                return

        # gRPC connects every 2 s.
        listener.settimeout(5)
        refusing = threading.Thread(target=refuse)
        refusing.start()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RendezvousConnectionError, match="no etcd answers") as kept:
            connect(RendezvousParameters("etcd-v3", endpoint, "run", 1, 1, read_timeout=1))
        refusing.join(BOUND)
        assert not refusing.is_alive()
        assert kept.value


def test_callers_at_the_same_time_share_one_client():
    with Cluster(1) as cluster, ThreadPoolExecutor(16) as pool:
        params = RendezvousParameters("etcd-v3", cluster.endpoint, "run", 1, 1)
        clients = list(pool.map(connect, [params] * 32))
        assert len(set(map(id, clients))) == 1
        background.run(clients[0].close())
