"""Handlers that are configured differently, on a real etcd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from rendezvous.api import RendezvousStateError
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.operations import put_op
from tests.etcd.coordinated_job import Job
from tests.nodes import BOUND, eventually, join, join_all


@pytest.fixture
def job(etcd3, run_id) -> Iterator[Job]:
    job = Job(etcd3.get_endpoint(), run_id, 2, 2)
    yield job
    job.stop()


@pytest.mark.parametrize(
    ("least", "most", "options", "ours", "theirs"),
    [
        (2, 4, {}, "max_nodes (--nnodes)=2", "max_nodes (--nnodes)=4"),
        (1, 2, {"node_unit": 2}, "min_nodes (--nnodes)=2, node_unit=1", "min_nodes (--nnodes)=1, node_unit=2"),
        (2, 2, {"upscale": "false", "on_node_loss": "ignore"}, "upscale=true", "upscale=false"),
        (2, 2, {"rank_policy": "arrival"}, "rank_policy='host'", "rank_policy='arrival'"),
        (2, 2, {"last_call_timeout": 2}, "last_call_timeout=1", "last_call_timeout=2"),
    ],
)
def test_both_sides_warn_of_a_node_that_is_configured_differently(job, caplog, least, most, options, ours, theirs):
    first = job.node("node-0")
    joining = [join(first)]
    eventually(lambda: job.range(job.keys.coordinator), "the first node coordinates")
    job.least, job.most = least, most
    second = job.node("node-1", **options)
    joining.append(join(second))
    assert {each.result(BOUND).world_size for each in joining} == {2}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (at_the_coordinator,) = [text for text in warnings if text.startswith(f"node '{second.node.name}' of ")]
    (at_the_node,) = [text for text in warnings if text.startswith(f"node {second.node.name} of ")]
    assert f"has {theirs}" in at_the_coordinator
    assert f"the coordinator, node {first.node.name}, which has {ours}" in at_the_coordinator
    assert f"has {theirs}" in at_the_node
    assert f"but the coordinator, node '{first.node.name}', has {ours}" in at_the_node


def test_nodes_that_are_configured_alike_cause_no_warning(job, caplog):
    join_all(job.nodes(2))
    assert not [record for record in caplog.records if "configure all nodes alike" in record.getMessage()]


def test_a_node_does_not_join_a_run_of_a_newer_version(job):
    client = connect(job.params("writer"))
    newer = b'{"round":7,"phase":"complete","by":"node-9_9_0","version":2}'

    async def write() -> None:
        deadline = asyncio.get_running_loop().time() + BOUND
        await client.txn([], [put_op(job.keys.round, newer)], deadline=deadline)

    background.run(write())
    with pytest.raises(
        RendezvousStateError,
        match=r"^Node node-0_.* cannot join: .*ctl/round' was written in version 2 of .* version 1;",
    ):
        join(job.node("node-0")).result(BOUND)
    assert [kv.value for kv in job.range(job.keys.round)] == [newer]
    assert not job.range(job.keys.nodes)
    assert not job.range(job.keys.coordinator)
