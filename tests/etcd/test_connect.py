from __future__ import annotations

import random

from rendezvous import RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from tests.etcd.clusters import Cluster


def test_the_nodes_of_a_job_spread_over_the_endpoints_and_a_dead_one_keeps_none_away(monkeypatch):
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
    assert targets == [first, third, third]
