"""Snapshots of the simulated etcd, and restorations from them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.simulation.etcd import Etcd
from tests.simulation.invariants import Past
from tests.simulation.plan import FAULTS_END, Restoration
from tests.simulation.world import World

__all__ = ["Snapshot", "restore", "schedule", "take_snapshot"]

_FOREIGN = b"/another/program"


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot contains: everything but the time that is left to the leases."""

    revision: int
    compacted: int
    current: dict[bytes, Any]
    events: list[tuple[int, Any]]
    keys: list[bytes]
    versions: dict[bytes, list[tuple[int, Any]]]
    bound: dict[int, set[bytes]]
    ttls: dict[int, int]
    past: Past


def take_snapshot(world: World) -> Snapshot:
    """Return what etcd contains now."""
    etcd = world.etcd
    return Snapshot(
        etcd.revision,
        etcd.compacted,
        dict(etcd.current),
        list(etcd.events),
        list(etcd._keys),
        {key: list(versions) for key, versions in etcd._versions.items()},
        {lease: set(keys) for lease, keys in etcd._bound.items()},
        {lease: ttl for lease, (ttl, _) in etcd.leases.items()},
        world.invariants.past(),
    )


def restore(world: World, snapshot: Snapshot, new_cluster_id: bool, pushed: bool) -> None:
    """Let etcd go back to a snapshot. All connections break. Each lease has its whole time to live again."""
    etcd, before = world.etcd, world.etcd.revision
    for _, timer in etcd.leases.values():
        timer.cancel()
    etcd.leases.clear()
    etcd._ending.clear()
    etcd.revision, etcd.compacted = snapshot.revision, snapshot.compacted
    etcd.current, etcd.events = dict(snapshot.current), list(snapshot.events)
    etcd._keys = list(snapshot.keys)
    etcd._versions = {key: list(versions) for key, versions in snapshot.versions.items()}
    etcd._bound = defaultdict(set, {lease: set(keys) for lease, keys in snapshot.bound.items()})
    for lease, ttl in snapshot.ttls.items():
        etcd._arm(lease, ttl)
    etcd.cluster_id += new_cluster_id
    world.invariants.go_back(snapshot.past)
    if pushed:
        _push(etcd, before)
    etcd.restart()


def _push(etcd: Etcd, revision: int) -> None:
    """Let another program write until etcd's revision is greater than ``revision``."""
    no_space, etcd.no_space = etcd.no_space, False
    while etcd.revision <= revision:
        etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[put_op(_FOREIGN, b"")]), None)
    etcd.no_space = no_space


def schedule(world: World, restoration: Restoration) -> None:
    """Set the timers of a restoration."""
    loop, saved = asyncio.get_running_loop(), list[Snapshot]()

    def save() -> None:
        world.note("operator", "takes a snapshot of etcd")
        saved.append(take_snapshot(world))

    def stop() -> None:
        world.on_roster = None
        if loop.time() > FAULTS_END - restoration.down:
            return
        world.note("operator", "stops etcd")
        world.conditions.no_leader = True
        # Whoever cannot reach etcd when it is back notices the restoration later.
        world.invariants.faults_until = max(world.invariants.faults_until, loop.time() + restoration.down)
        loop.call_later(restoration.down, start)

    def start() -> None:
        world.note("operator", f"starts etcd again, restored from the snapshot: {restoration}")
        restore(world, saved[0], restoration.new_cluster_id, restoration.pushed)
        world.conditions.no_leader = False

    def save_and_stop() -> None:
        """Save before the first part of a roster, and stop before the second."""
        if saved:
            stop()
        else:
            save()

    if restoration.during_roster:
        loop.call_at(restoration.at, setattr, world, "on_roster", save_and_stop)
    else:
        loop.call_at(restoration.snapshot_at, save)
        loop.call_at(restoration.at, stop)
