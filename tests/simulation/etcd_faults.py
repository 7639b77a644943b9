"""Faults of etcd, and what operators and other programs do with it."""

from __future__ import annotations

import random

from rendezvous.coordinated.records import Bootstrap, NodeRecord
from tests.simulation.plan import Fault, Kind
from tests.simulation.scene import Action, Scene
from tests.simulation.world import Node

__all__ = ["ACTIONS"]

_MAX_ELECTION = 4.0
_COMPACT_INTERVAL = 0.25
_NO_SPACE_PAUSE = 10.0  # seconds after which a client tries again, at most
_OVERLOAD = 0.7
_ID = "0123456789abcdef"


def _no_leader(scene: Scene, fault: Fault, seconds: float) -> None:
    scene.world.conditions.no_leader = True
    for node in scene.world.nodes:
        node.link.break_streams()
    scene.note("etcd", "has no leader")
    scene.later(min(seconds, _MAX_ELECTION), _new_leader, scene)


def _new_leader(scene: Scene) -> None:
    scene.world.conditions.no_leader = False
    scene.world.etcd.change_leader()
    scene.note("etcd", "has a new leader")


def _overload(scene: Scene, fault: Fault, seconds: float) -> None:
    conditions = scene.world.conditions
    conditions.overload = _OVERLOAD
    scene.note("etcd", f"is overloaded for {seconds:.1f} s")
    scene.later(seconds, setattr, conditions, "overload", 0.0)


def _compact(scene: Scene, fault: Fault, seconds: float) -> None:
    etcd = scene.world.etcd
    scene.note("etcd", f"compacts its history again and again for {seconds:.1f} s")
    for number in range(1 + int(seconds / _COMPACT_INTERVAL)):
        scene.later(number * _COMPACT_INTERVAL, lambda: etcd.compact(etcd.revision))


def _no_space(scene: Scene, fault: Fault, seconds: float) -> None:
    scene.world.etcd.no_space = True
    scene.note("etcd", f"has no space for {seconds:.1f} s")
    scene.fault_for(seconds + _NO_SPACE_PAUSE)
    scene.later(seconds, setattr, scene.world.etcd, "no_space", False)


def _refuse_one(scene: Scene, fault: Fault, seconds: float) -> None:
    """Refuse the user of one node, for example because its password is not the new one yet."""
    if (node := scene.node(fault)) is not None:
        _refuse(scene, node, seconds)


def _refuse_all(scene: Scene, fault: Fault, seconds: float) -> None:
    """Change the password; each node gets it at another time."""
    for node in scene.world.nodes:
        if node.alive:
            _refuse(scene, node, node.link.rng.uniform(0, seconds))


def _refuse(scene: Scene, node: Node, seconds: float) -> None:
    scene.note(node.name, f"etcd refuses its user for {seconds:.1f} s")
    node.excused = True
    node.link.refuse()
    scene.later(seconds, setattr, node.link, "refused", False)


def _end_run_lease(scene: Scene, fault: Fault, seconds: float) -> None:
    """Revoke the run lease, as an operator may. The key that closes the run is left alone: closed is final."""
    world = scene.world
    record = world.etcd.current.get(world.keys.round)
    if record is not None and record.lease in world.etcd.leases and world.keys.closed not in world.etcd.current:
        world.invariants.run_lease_lost = True
        scene.note("operator", "revokes the run lease")
        world.etcd.end_lease(record.lease)


def _plant(scene: Scene, fault: Fault, seconds: float) -> None:
    """Write a key that does not belong to the protocol."""
    world, keys = scene.world, scene.world.keys
    rng = random.Random(fault.when)
    some_lease = rng.choice(list(world.etcd.leases) or [0])
    record = NodeRecord("evil", 1, 0).encode()
    nodes = [
        (keys.nodes + b"-5", record, 0),
        (keys.nodes + b"9" * 20, record, some_lease),
        (keys.nodes + b"%016x" % 77, record, 0),
        (keys.nodes + b"%016x" % 78, record, some_lease),
        (keys.nodes + b"%016x" % 79, b'{"addr": "\xff"}', some_lease),
    ]
    others = [(keys.ctl + b"unknown", b"?", 0), (keys.roster(1, _ID) + b"0000", b"?", 0)]
    bootstraps = [
        (keys.bootstrap, Bootstrap(0, _ID, _ID, "evil", 7).encode(), 0),
        (keys.bootstrap, Bootstrap(10**9, _ID, _ID, "evil", 7).encode(), some_lease),
        (keys.bootstrap, b"?", 0),
    ]
    control = [
        (keys.coordinator, b"?", 0),
        (keys.coordinator, b'{"node": "%s"}' % _ID.encode(), some_lease),
        (keys.round, b"?", 0),
        (keys.round, b'{"round": 1000000000, "phase": "complete"}', 0),
    ]
    kinds = [nodes, others, bootstraps]
    if world.keys.coordinator in world.etcd.current:  # which writes its own again
        kinds.append(control)
    planted = rng.choice(kinds)
    if not world.etcd.no_space:
        world.plant(*rng.choice(planted))


ACTIONS: dict[Kind, Action] = {
    Kind.NO_LEADER: _no_leader,
    Kind.OVERLOAD: _overload,
    Kind.COMPACT: _compact,
    Kind.NO_SPACE: _no_space,
    Kind.REFUSE_ONE: _refuse_one,
    Kind.REFUSE_ALL: _refuse_all,
    Kind.END_RUN_LEASE: _end_run_lease,
    Kind.PLANT: _plant,
}
