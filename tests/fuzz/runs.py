"""Whole nodes on a simulated etcd into which somebody else writes: joins succeed, or fail with a RendezvousError."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from rendezvous.api import RendezvousError
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import delete_op, put_op
from tests.fuzz.checks import check_message
from tests.fuzz.reader import Reader
from tests.fuzz.records import KEYS, planted
from tests.simulation import virtual
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link

__all__ = ["check_run"]

_STEPS = 6
_TIMEOUT = 20.0
_SHARDED = Options(inline_nodes=1, shard_nodes=1)


class _Run:
    """Three nodes, and somebody else."""

    def __init__(self, data: Reader) -> None:
        self.data = data
        self.etcd = Etcd(self._check_write)
        self.links: list[Link] = []
        self.options = data.pick((Options(), _SHARDED))
        self.members = [self._member(number) for number in range(3)]
        self.joins: list[asyncio.Task[Any]] = []

    def _check_write(self, writer: Any, keys: list[bytes]) -> None:
        """Check that a node writes no round record that others refuse."""
        kv = self.etcd.current.get(KEYS.round)
        if writer is not None and kv is not None and KEYS.round in keys:
            RoundRecord.decode(kv.key, kv.value)

    def _member(self, number: int) -> Member:
        rng = random.Random(number)
        self.links.append(Link(self.etcd, Conditions(latency=0.01), number, rng))
        limits = Limits(2, 3, last_call=1.0)
        record = NodeRecord(f"node-{number}", number + 1, 0)
        return Member(self.links[-1], KEYS, record, Settings("run", limits, 1.0, 3, self.options), rng)

    def join(self) -> None:
        self.joins = [asyncio.get_running_loop().create_task(self._join(member)) for member in self.members]

    async def _join(self, member: Member) -> None:
        try:
            await member.join(_TIMEOUT, lambda: 29500)
        except RendezvousError as exc:
            check_message(str(exc))

    def write(self) -> None:
        """Write or delete a key, as somebody else."""
        data = self.data
        key, _, value = planted(data)
        if key.startswith(KEYS.nodes) or data.byte() % 4 == 0:
            key = data.pick(list(self.etcd.current)[:50] or [key])
        leases = [0, *self.etcd.leases]
        operation = delete_op(key) if data.byte() % 6 == 0 else put_op(key, value, data.pick(leases))
        try:
            self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[operation]), None)
        except EtcdError:
            pass  # the lease is one that has ended

    def clean(self) -> None:
        """Delete what an operator would delete."""
        for key in (KEYS.coordinator, KEYS.round, KEYS.bootstrap, KEYS.closed):
            self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[delete_op(key)]), None)


async def _play(data: Reader) -> None:
    run = _Run(data)
    before = data.flag()
    if before:
        run.write()
    run.join()
    for _ in range(min(_STEPS, data.byte() % (_STEPS + 1))):
        await asyncio.sleep(data.pick((0.0, 0.005, 0.05, 0.5, 2.0, 5.0)))
        if data.byte() % 4:
            run.write()
        elif all(join.done() for join in run.joins):
            await asyncio.gather(*run.joins)
            run.join()
        for member in run.members:
            assert member.num_nodes_waiting() >= 0
            member.is_closed()
    await asyncio.gather(*run.joins)


def check_run(data: Reader) -> None:
    """Let three nodes join again and again while somebody else writes."""
    loop = virtual.VirtualLoop()
    errors: list[str] = []
    loop.set_exception_handler(lambda loop, context: errors.append(repr(context)))
    handler = _Exceptions()
    root = logging.getLogger("rendezvous")
    before = root.propagate, root.level
    root.propagate = False
    root.setLevel(logging.WARNING)
    root.addHandler(handler)
    try:
        virtual.run(_play(data), loop)
    finally:
        root.removeHandler(handler)
        root.propagate, root.level = before
    assert not errors, errors[0]
    assert not handler.found, handler.found[0]


class _Exceptions(logging.Handler):
    """Collects unexpected exceptions that a task has logged, and checks the messages of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")
        check_message(record.getMessage())
