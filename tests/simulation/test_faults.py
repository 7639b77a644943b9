"""The simulation's faults do what they say."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rendezvous import coordinated
from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.errors import EtcdError, FutureRevisionError, LeaseNotFoundError, NoSpaceError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import delete_op, get_op, put_op, txn_op
from tests.simulation.etcd import MAX_BYTES, MAX_OPERATIONS, Etcd
from tests.simulation.etcd_faults import ACTIONS as ETCD
from tests.simulation.network import Conditions, Link
from tests.simulation.network_faults import ACTIONS as NETWORK
from tests.simulation.plan import Kind, Plan
from tests.simulation.process_faults import ACTIONS as PROCESS
from tests.simulation.virtual import Process, now, run


def txn(*operations: Any) -> Any:
    return rpc_pb2.TxnRequest(success=operations)


def grant(etcd: Etcd, ttl: int = 2) -> int:
    return int(etcd.handle(Call.GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl), None).ID)


def test_each_kind_of_fault_is_injected_and_occurs():
    assert {*PROCESS, *NETWORK, *ETCD} == set(Kind)
    assert {fault.kind for seed in range(300) for fault in Plan.of(seed).faults} == set(Kind)


def test_a_plan_has_2_to_64_hosts():
    hosts = [Plan.of(seed).hosts for seed in range(3000)]
    assert min(hosts) <= 2
    assert 40 < max(hosts) <= 64


# Processes.


def test_a_frozen_process_receives_its_messages_and_then_its_timers_when_it_runs_again():
    async def scenario() -> None:
        process, loop, seen = Process(), asyncio.get_running_loop(), list[str]()
        process.context.run(loop.call_later, 1.0, seen.append, "timer")
        process.freeze()
        loop.send(2.0, seen.append, "message", context=process.context)  # type: ignore[attr-defined]
        await asyncio.sleep(5)
        assert seen == []
        process.thaw()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == ["message", "timer"]

    run(scenario())


def test_what_a_frozen_process_has_sent_reaches_etcd():
    async def scenario() -> None:
        etcd, process = Etcd(), Process()
        link = Link(etcd, Conditions(latency=0.1), None, random.Random(0), process.context)
        put = link.txn([], [put_op(b"key", b"")], deadline=100.0)
        task = process.context.run(asyncio.get_running_loop().create_task, put)
        await asyncio.sleep(0)
        process.freeze()
        await asyncio.sleep(60)
        assert (b"key" in etcd.current, task.done()) == (True, False)
        process.thaw()
        await task  # the answer is older than the time-out of the request, which is due too

    run(scenario())


def test_the_clock_of_a_process_has_its_own_rate():
    async def scenario() -> None:
        process, loop = Process(), asyncio.get_running_loop()
        process.rate, process.start = 0.5, 1000.0

        async def sleep() -> float:
            before = loop.time()
            await asyncio.sleep(3)
            return loop.time() - before

        assert await process.context.run(loop.create_task, sleep()) == pytest.approx(3)
        assert now() == pytest.approx(6)

    run(scenario())


def test_the_protocol_reads_no_clock_but_the_loops():
    for path in Path(coordinated.__path__[0]).rglob("*.py"):
        assert not re.search(r"^\s*(import|from) time\b", path.read_text(encoding="utf-8"), re.M), path


# etcd.


def test_etcd_refuses_transactions_with_too_many_operations_also_inside_another():
    async def scenario() -> None:
        etcd = Etcd()
        reads = [get_op(b"%d" % number) for number in range(MAX_OPERATIONS)]
        etcd.handle(Call.TXN, txn(*reads), None)
        for request in (txn(*reads, get_op(b"more")), txn(get_op(b"more"), txn_op([], reads))):
            with pytest.raises(EtcdError, match="too many operations"):
                etcd.handle(Call.TXN, request, None)

    run(scenario())


def test_etcd_refuses_a_request_that_is_too_large():
    async def scenario() -> None:
        with pytest.raises(EtcdError, match="too large"):
            Etcd().handle(Call.TXN, txn(put_op(b"key", b"x" * MAX_BYTES)), None)

    run(scenario())


def test_an_etcd_without_space_refuses_puts_and_leases_and_allows_the_rest():
    async def scenario() -> None:
        etcd = Etcd()
        lease = grant(etcd)
        etcd.handle(Call.TXN, txn(put_op(b"key", b"", lease)), None)
        etcd.no_space = True
        with pytest.raises(NoSpaceError):
            grant(etcd)
        with pytest.raises(NoSpaceError):
            etcd.handle(Call.TXN, txn(put_op(b"key", b"")), None)
        assert etcd.keep_alive(lease)
        etcd.handle(Call.TXN, txn(delete_op(b"key"), get_op(b"key")), None)
        etcd.handle(Call.REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease), None)

    run(scenario())


def test_a_lease_that_ends_late_keeps_its_keys_and_is_renewed_by_nobody_but_a_new_leader():
    async def scenario() -> None:
        etcd = Etcd()
        etcd.lateness = 10.0
        first, second = grant(etcd), grant(etcd)
        etcd.handle(Call.TXN, txn(put_op(b"key", b"", first)), None)
        await asyncio.sleep(2.001)
        assert (etcd.keep_alive(first), b"key" in etcd.current) == (None, True)
        etcd.change_leader()
        assert etcd.keep_alive(second) is True
        etcd.lateness = 0.0
        await asyncio.sleep(2.001)
        assert (etcd.keep_alive(first), b"key" in etcd.current) == (False, False)
        with pytest.raises(LeaseNotFoundError):
            etcd.handle(Call.TXN, txn(put_op(b"key", b"", first)), None)

    run(scenario())


def test_a_member_that_is_behind_says_so_and_no_read_may_be_stale_unnoticed():
    async def scenario() -> None:
        etcd = Etcd()
        await asyncio.sleep(10)
        revision = etcd.handle(Call.TXN, txn(put_op(b"key", b"")), None).header.revision
        read = rpc_pb2.RangeRequest(key=b"key", serializable=True, revision=revision)
        with pytest.raises(FutureRevisionError):
            etcd.handle(Call.RANGE, read, None, 5.0)
        await asyncio.sleep(6)
        assert etcd.handle(Call.RANGE, read, None, 5.0).kvs
        with pytest.raises(AssertionError, match="may be answered with old data"):
            etcd.handle(Call.RANGE, rpc_pb2.RangeRequest(key=b"key", serializable=True), None)

    run(scenario())


# The connection.


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_a_connection_is_cut_in_one_direction(direction: str):
    async def scenario() -> None:
        etcd = Etcd()
        link = Link(etcd, Conditions(), None, random.Random(0))
        setattr(link, f"{direction}_cut", True)
        with pytest.raises(RendezvousConnectionError):
            await link.txn([], [put_op(b"key", b"")], deadline=now() + 3)
        assert (b"key" in etcd.current) == (direction == "answers")

    run(scenario())


def test_a_keep_alive_that_is_not_answered_fails_after_a_third_of_the_time_to_live():
    async def scenario() -> None:
        etcd = Etcd()
        link, failed = Link(etcd, Conditions(), None, random.Random(0)), list[float]()
        link.silent = True
        lease = await link.grant(6, now() + 1)
        before = now()
        link.renew(lease, lambda renewed: None, lambda error: failed.append(now() - before))
        await asyncio.sleep(5)
        assert failed == [pytest.approx(2.0)]

    run(scenario())


def test_watches_of_a_member_that_is_behind_are_late_and_complete():
    async def scenario() -> None:
        etcd = Etcd()
        link, seen = Link(etcd, Conditions(), None, random.Random(0)), list[bytes]()
        link.behind = 3.0
        await link.watch(b"a", b"b", lambda events: seen.extend(event.kv.key for event in events), lambda: None, 10.0)
        for key in (b"a1", b"a2"):
            etcd.handle(Call.TXN, txn(put_op(key, b"")), None)
            await asyncio.sleep(1)
        assert seen == []
        await asyncio.sleep(3)
        assert seen == [b"a1", b"a2"]

    run(scenario())
