"""A part of the hostile matrix on a real etcd: somebody writes under a run's keys with a plain client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousParameters, RendezvousTimeoutError
from rendezvous.coordinated.records import RoundRecord
from rendezvous.dynamic.backend_v3 import create_backend
from rendezvous.dynamic.handler import create_handler
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import put_op
from tests.etcd.coordinated_job import Job, MakeJob, jobs
from tests.hostile.matrix import SOME_ID, Cell, cells, content
from tests.nodes import BOUND, eventually, join

# Of each key, one content at each of two moments. The simulation has all.
CELLS = [
    cell
    for cell in cells("ctl/", "nodes/", "roster/")
    if (cell.content, cell.moment) in {("1 MB", "running"), ("foreign lease", "forming")}
]


@pytest.fixture
def job(etcd3, run_id) -> Iterator[MakeJob]:
    yield from jobs(etcd3.get_endpoint(), run_id)


def write(params: RendezvousParameters, key: bytes, value: Callable[[int], bytes], bound: bool) -> None:
    """Write a key with a plain client, bound to a lease of its own or to none."""
    client = connect(params)

    async def put() -> None:
        deadline = asyncio.get_running_loop().time() + BOUND
        lease = await client.grant(600, deadline) if bound else 0
        await client.txn([], [put_op(key, value(lease), lease)], deadline=deadline)

    background.run(put())


def key_of(cell: Cell, job: Job) -> bytes:
    if cell.key.startswith("nodes/"):
        own = job.handlers[0].member.node_id
        return job.keys.node(own if cell.key == "nodes/<own>" and own else int(SOME_ID, 16))
    if cell.key.startswith("roster/"):
        record: RoundRecord | None = job.record()
        attempt = record.attempt if record is not None and record.complete else SOME_ID
        return (job.keys.names if "names" in cell.key else job.keys.shard)(0, attempt, 0)
    return job.keys.root + cell.key.encode()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_nodes_join_or_an_error_names_the_key(cell: Cell, job: MakeJob):
    run = job(2, 2)
    nodes = run.nodes(2)
    joins = [join(node) for node in nodes[: 2 if cell.moment == "running" else 1]]
    if cell.moment == "running":
        assert sorted(each.result(BOUND).rank for each in joins) == [0, 1]
        joins = []
    else:
        eventually(lambda: run.record() is not None, "the round forms")
    key = key_of(cell, run)
    found = [kv for kv in run.range(key) if kv.key == key]
    current = found[0] if found else None
    write(
        run.params("somebody"),
        key,
        lambda lease: content(cell, run.keys, current, lease),
        cell.content == "foreign lease",
    )
    joins += [join(node) for node in nodes[len(joins) :]]
    if cell.outcome == "ok":
        assert sorted(each.result(BOUND).rank for each in joins) == [0, 1]
        return
    for each in joins:
        with pytest.raises(RendezvousError) as caught:
            each.result(BOUND)
        assert not isinstance(caught.value, RendezvousTimeoutError)
        if cell.outcome == "closed":
            assert isinstance(caught.value, RendezvousClosedError)
        else:
            assert f"'{key.decode()}'" in str(caught.value)


# The state blob of the dynamic protocol. Nobody can tell whose it is, so each node gets an error.

NONCE = bytes(16)
STATES = {
    "garbage": b"\x80\x04 pickle",
    "1 MB": NONCE + b"x" * (1 << 20),
    "other version": NONCE + b"RZ\x02" + bytes(20),
    "absurd": NONCE + b"RZ\x01\x00\xff\xff\xff\x7f" + b"\xff" * 20,
    "foreign lease": None,  # what is there
}


def dynamic_node(params: RendezvousParameters) -> Any:
    backend, store = create_backend(params)
    return create_handler(store, backend, params)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("moment", ["before", "forming", "running"])
def test_a_foreign_state_is_an_error_that_names_the_key(name: str, moment: str, etcd3, run_id):
    options = {"join_timeout": 30, "last_call_timeout": 1, "keep_alive_interval": 1}
    hosts = [
        RendezvousParameters("etcd-v2", etcd3.get_endpoint(), run_id, 2, 2, f"node-{i}", **options) for i in range(2)
    ]
    nodes = [dynamic_node(params) for params in hosts]
    key = f"/rendezvous/{run_id}/state".encode()
    backend, _ = create_backend(hosts[0])
    joins = []
    if moment != "before":
        joins = [join(node) for node in nodes[: 1 if moment == "forming" else 2]]
        eventually(lambda: backend.get_state() is not None, "the round forms")
    if moment == "running":
        assert sorted(each.result(BOUND).rank for each in joins) == [0, 1]
        joins = []
    current = backend.get_state()
    value = STATES[name] if STATES[name] is not None else NONCE + (current[0] if current is not None else b"")
    write(hosts[0], key, lambda lease: value, name == "foreign lease")
    joins += [join(node) for node in nodes[len(joins) :]]
    for each in joins:
        if name == "foreign lease" and current is not None:
            assert each.result(BOUND).world_size == 2
            continue
        with pytest.raises(RendezvousError) as caught:
            each.result(BOUND)
        assert not isinstance(caught.value, RendezvousTimeoutError)
        assert f"'{key.decode()}'" in str(caught.value)
    for node in nodes:
        node._stop_heartbeats()  # the state cannot be read, so shutdown() could not close the run
