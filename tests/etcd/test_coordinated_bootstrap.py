"""Rank 0 starts what the workers connect to, on a real etcd."""

from __future__ import annotations

import threading

import pytest

from rendezvous.api import RendezvousTimeoutError
from tests.etcd.coordinated_job import Job
from tests.nodes import BOUND, join


def test_the_join_timeout_is_kept_while_rank_0_starts_what_the_workers_connect_to(etcd3, run_id):
    ended = threading.Event()

    def serve(addr: str) -> int:
        ended.wait(2 * BOUND)
        raise OSError("too late")

    run = Job(etcd3.get_endpoint(), run_id, 1, 1, join_timeout=3)
    try:
        with pytest.raises(
            RendezvousTimeoutError, match=r"node-0_.*rank 0 of round 0.*at 'node-0' did not start in time"
        ):
            join(run.node("node-0", serve)).result(BOUND)
        assert not run.range(run.keys.nodes)  # it left
    finally:
        ended.set()
        run.stop()
