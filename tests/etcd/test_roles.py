"""What a user of etcd must be permitted: to read and write the keys under the prefix, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rendezvous
from rendezvous import RendezvousParameters
from rendezvous.api import RendezvousClosedError
from rendezvous.coordinated.handler import create_handler
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.keepalives import KeepAlives
from rendezvous.etcd.v3.watches import Watches
from tests.etcd.clusters import Cluster, guard

PASSWORD = "correct-horse"

REQUESTS = {
    "Auth/Authenticate",
    "KV/DeleteRange",
    "KV/Put",
    "KV/Range",
    "KV/Txn",
    "Lease/LeaseGrant",
    "Lease/LeaseKeepAlive",
    "Lease/LeaseRevoke",
    "Watch/Watch",
}
"""All methods of etcd that the package calls. None needs more than a role for the prefix.

Maintenance/Status is not among them: etcd 3.5.30 permits it to root alone.
"""


def test_the_requests_are_those_that_a_role_permits():
    assert {call.method for call in Call} | {KeepAlives.METHOD[0], Watches.METHOD[0]} == REQUESTS


def test_no_other_module_calls_a_method_of_etcd():
    """Methods are called by their names, which are texts of this form."""
    folder = Path(rendezvous.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        if path.name == "rpc_pb2.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                service, _, method = node.value.partition("/")
                if service in {"Auth", "Cluster", "KV", "Lease", "Maintenance", "Watch"} and method.isidentifier():
                    found.add(node.value)
    assert found == REQUESTS


@pytest.mark.parametrize("permitted", ["/jobs", "/jobs/", "/jobs/{run_id}/"])
def test_a_user_with_a_role_for_the_keys_of_the_run_alone(permitted, run_id, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    with Cluster(1) as cluster:
        guard(cluster, "node", PASSWORD, permitted.format(run_id=run_id))
        params = RendezvousParameters(
            "etcd-v3",
            cluster.endpoint,
            run_id,
            1,
            1,
            local_addr="127.0.0.1",
            prefix="/jobs",
            username="node",
            password_file=str(secret),
            join_timeout=30,
        )
        handler = create_handler(params)
        for _ in range(2):  # the second round deletes what the first has left
            info = handler.next_rendezvous()
            assert info.store.add("number", 2) == 2
            info.store.set("key", b"value")
            info.store.wait(["key"])
            assert info.store.compare_set("key", "value", "other") == b"other"
            assert info.store.delete_key("key")
            assert handler.num_nodes_waiting() == 0
        assert handler.set_closed() is None
        assert handler.is_closed()
        with pytest.raises(RendezvousClosedError):
            handler.next_rendezvous()
        assert handler.shutdown()
