"""Mutants of what notices that etcd was restored from a snapshot."""

from __future__ import annotations

from typing import Any

import msgspec

from rendezvous.coordinated import member, writer
from rendezvous.etcd.v3 import client, history
from tests.simulation.mutation import Patch, mutant


@mutant("liveness", seeds=1000)
def _restoration_not_noticed(patch: Patch) -> None:
    """Nobody notices that etcd was restored from a snapshot."""
    patch.setattr(history.History, "restored", lambda self, reason: None)


@mutant("liveness", seeds=1000)
def _interrupted_watches_not_read_again(patch: Patch) -> None:
    """A restoration is noticed by the headers only, and not if the revision has been pushed beyond the old one."""
    original = client.EtcdClient.watch

    async def watch(self: Any, *arguments: Any, resumed: Any = None) -> Any:
        return await original(self, *arguments)

    patch.setattr(client.EtcdClient, "watch", watch)


@mutant("monotony", seeds=1000)
def _round_numbers_begin_again(patch: Patch) -> None:
    """A node forgets in which rounds it has been when etcd is restored from a snapshot."""
    original = member.Member._on_restored

    def on_restored(self: Any, reason: str) -> None:
        original(self, reason)
        self._node = msgspec.structs.replace(self._node, last_round=-1, last_rank=-1)

    patch.setattr(member.Member, "_on_restored", on_restored)


@mutant("agreement", seeds=3000)
def _shards_of_the_time_before(patch: Patch) -> None:
    """A round completes although a part of its roster is lost: etcd was restored while the roster was written."""
    original = writer.Writer.put_record

    async def put_record(self: Any, record: Any, with_it: Any = (), after: Any = ()) -> None:
        await original(self, record, with_it)

    patch.setattr(writer.Writer, "put_record", put_record)


@mutant("history")
def _answers_must_come_in_order(patch: Patch) -> None:
    """An answer is compared with what is known when it comes, not with what was known before the request."""
    original = history.History.observe

    def observe(self: Any, header: Any, endpoint: str, known: Any = None) -> None:
        original(self, header, endpoint, None if known is None else self.known())

    patch.setattr(history.History, "observe", observe)
