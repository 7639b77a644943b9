"""The faults. Each begins, lasts, and ends: afterwards etcd serves again, and a node that was suspended runs again."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from tests.chaos.clusters import ChaosCluster, Guarded, Limited, Restorable, Secured
from tests.chaos.job import Node
from tests.chaos.scene import Failed, Scene
from tests.etcd.clusters import BOUND

__all__ = ["FAULTS", "Fault"]

_FILLER = b"/filler/"
_MIB = 1 << 20

_RETENTION = 10.0
"""Seconds of history that compaction keeps. An addition to a store fails if its answer is lost for longer."""


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: its name on the command line.
        act: makes it happen to a scene, from its beginning to its end.
        cluster: makes the cluster that it needs.
        stops_etcd: whether etcd may accept no writes while it lasts.
        hits_node: whether it hits a node, and not etcd.
        refuses_nodes: whether etcd refuses nodes that start while it lasts, so that all must be connected before.
        proxied: whether the nodes connect through proxies.
        lease: ``keep_alive_interval`` and ``keep_alive_max_attempt`` of the nodes.
    """

    name: str
    act: Callable[[Scene], None]
    cluster: Callable[[], ChaosCluster] = ChaosCluster
    stops_etcd: bool = False
    hits_node: bool = False
    refuses_nodes: bool = False
    proxied: bool = False
    lease: tuple[int, int] = (1, 5)


def _kill_member(scene: Scene, member: int) -> None:
    scene.begin(f"SIGKILL to m{member}")
    scene.cluster.kill(member)
    scene.hold(0, 10)
    scene.cluster.start(member)


def _kill_leader(scene: Scene) -> None:
    _kill_member(scene, scene.cluster.leader)


def _kill_follower(scene: Scene) -> None:
    _kill_member(scene, scene.follower())


def _pause_leader(scene: Scene) -> None:
    member = scene.cluster.leader
    scene.begin(f"SIGSTOP to m{member}, the leader")
    scene.cluster.pause(member)
    if scene.hold(1, 30) >= scene.job.shortest_lease:
        scene.leases_end = time.monotonic()
    scene.cluster.resume(member)


def _pause_follower(scene: Scene) -> None:
    member = scene.follower()
    scene.begin(f"SIGSTOP to m{member}, a follower")
    scene.cluster.pause(member)
    scene.hold(1, 30)
    scene.cluster.resume(member)


def _kill_process(scene: Scene, node: Node) -> None:
    scene.victim = node
    node.kill()
    scene.begin(f"SIGKILL to {node.name}")


def _kill_coordinator(scene: Scene) -> None:
    _kill_process(scene, scene.coordinator())


def _kill_node(scene: Scene) -> None:
    _kill_process(scene, scene.other_node())


def _pause_process(scene: Scene, node: Node) -> None:
    scene.victim = node
    node.freeze()
    scene.begin(f"SIGSTOP to {node.name}")
    scene.hold(1, 30)
    node.thaw()


def _pause_coordinator(scene: Scene) -> None:
    _pause_process(scene, scene.coordinator())


def _pause_node(scene: Scene) -> None:
    _pause_process(scene, scene.other_node())


def _cut_member(scene: Scene) -> None:
    """Break all connections of the nodes to a member, or keep them and let nothing through."""
    member = scene.any_member()
    proxy, stalls = scene.proxies[member], scene.rng.random() < 0.5
    scene.begin(f"m{member} is {'silent' if stalls else 'cut off'}")
    if stalls:
        proxy.stall()
    else:
        proxy.cut()
    scene.hold(1, 30)
    proxy.resume()
    proxy.restore()


def _fill_disk(scene: Scene) -> None:
    """Write until etcd's quota is exceeded; then do what an operator does about it."""
    cluster = scene.cluster
    scene.begin("the quota is exceeded soon")
    for number in range(64):
        try:
            cluster.request(rpc_pb2.PutRequest(key=_FILLER + b"%d" % number, value=bytes(_MIB)))
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            break
    else:
        raise Failed("64 MiB did not exceed the quota")
    scene.say(f"it is exceeded after {number} MiB")
    scene.hold(1, 15)
    _free_disk(cluster)


def _free_disk(cluster: ChaosCluster) -> None:
    deleted = cluster.request(rpc_pb2.DeleteRangeRequest(key=_FILLER, range_end=prefix_end(_FILLER)))
    cluster.request(rpc_pb2.CompactionRequest(revision=deleted.header.revision, physical=True))
    for member in cluster.members:
        cluster.request(rpc_pb2.DefragmentRequest(), member)
    raised = cluster.request(rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)).alarms
    for alarm in raised:
        disarm = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
        )
        cluster.request(disarm)


def _restart_all(scene: Scene) -> None:
    """Restart one member after the other, as for an upgrade."""
    members = list(scene.cluster.members)
    scene.rng.shuffle(members)
    scene.begin(f"a rolling restart: {members}")
    for member in members:
        scene.cluster.stop(member)
        scene.hold(0, 2)
        scene.cluster.start(member)
        scene.cluster.wait()
        scene.hold(0, 2)


def _restore(scene: Scene) -> None:
    """Go on for a while after a snapshot; then restore the cluster from it, with the old cluster id or another."""
    cluster, snapshot = scene.cluster, scene.folder / "snapshot.db"
    assert isinstance(cluster, Restorable)
    cluster.snapshot(snapshot)
    scene.begin("a snapshot was taken")
    scene.hold(0, 6)
    scene.leases_end = time.monotonic()
    token = f"restored-{scene.rng.getrandbits(32):08x}" if scene.rng.random() < 0.5 else cluster.token
    cluster.restore(snapshot, token)
    snapshot.unlink()
    scene.say(f"the cluster was restored from it, with {'the same' if token == cluster.token else 'another'} token")


def _rotate_password(scene: Scene) -> None:
    """Replace the password at etcd and in the nodes' file, one some seconds after the other; connections break too."""
    cluster = scene.cluster
    assert isinstance(cluster, Guarded)
    password = f"password-{scene.rng.getrandbits(32):08x}"
    steps: list[tuple[str, Callable[[], object]]] = [
        ("at etcd", lambda: cluster.request(rpc_pb2.AuthUserChangePasswordRequest(name="node", password=password))),
        ("in the file", lambda: cluster.password_file.write_text(password)),
    ]
    scene.rng.shuffle(steps)
    scene.begin(f"the password is replaced {steps[0][0]}")
    steps[0][1]()
    if scene.rng.random() < 0.5:
        member = scene.any_member()
        scene.say(f"m{member} is restarted")
        cluster.kill(member)
        cluster.start(member)
    scene.hold(0, 8)
    steps[1][1]()
    scene.say(f"and {steps[1][0]}")


def _rotate_certificates(scene: Scene) -> None:
    """Replace all certificates by those of another authority, and restart one member after the other."""
    cluster = scene.cluster
    assert isinstance(cluster, Secured)
    members = list(cluster.members)
    scene.rng.shuffle(members)
    scene.begin(f"the certificates are replaced, and the members restarted: {members}")
    cluster.certificates.renew()
    for member in members:
        cluster.stop(member)
        cluster.forget_channels()
        cluster.start(member)
        cluster.wait_for(member)
        scene.hold(0, 1)


def _compact(scene: Scene) -> None:
    """Write a lot, compact what is older than some seconds, defragment, and break the connections meanwhile.

    A watch that has received nothing for longer than that resumes at a revision that does not exist any more.
    """
    cluster, stopped = scene.cluster, threading.Event()
    scene.begin("compaction and defragmentation under load")
    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(_write, cluster, stopped), pool.submit(_compact_often, cluster, stopped)]
        try:
            time.sleep(scene.rng.uniform(1, 1.5) * _RETENTION)
            for proxy in scene.proxies:
                scene.hold(0, 2)
                proxy.stall()
                scene.say("a member is silent")
                scene.hold(0, 1)
                proxy.cut()
                proxy.resume()
                scene.say("and its connections are broken")
                scene.hold(0, 1)
                proxy.restore()
        finally:
            stopped.set()
        for task in tasks:
            task.result(BOUND)


def _write(cluster: ChaosCluster, stopped: threading.Event) -> None:
    number = 0
    while not stopped.wait(0.005):
        cluster.request(rpc_pb2.PutRequest(key=_FILLER + b"%d" % (number % 100), value=bytes(4096)), number % 3)
        number += 1


def _compact_often(cluster: ChaosCluster, stopped: threading.Event) -> None:
    member, defragmented = 0, time.monotonic()
    known: deque[tuple[float, int]] = deque()
    while not stopped.wait(0.2):
        known.append((time.monotonic(), cluster.request(rpc_pb2.RangeRequest(key=_FILLER)).header.revision))
        if known[0][0] < time.monotonic() - _RETENTION:
            cluster.request(rpc_pb2.CompactionRequest(revision=known.popleft()[1], physical=True))
        if time.monotonic() > defragmented + 1:
            member, defragmented = (member + 1) % 3, time.monotonic()
            cluster.request(rpc_pb2.DefragmentRequest(), member)


FAULTS = [
    Fault("kill-leader", _kill_leader),
    Fault("kill-follower", _kill_follower),
    Fault("kill-coordinator", _kill_coordinator, hits_node=True),
    Fault("kill-node", _kill_node, hits_node=True),
    Fault("pause-leader", _pause_leader),
    Fault("pause-follower", _pause_follower),
    Fault("pause-coordinator", _pause_coordinator, hits_node=True),
    Fault("pause-node", _pause_node, hits_node=True),
    Fault("cut-member", _cut_member, proxied=True),
    Fault("rolling-restart", _restart_all),
    Fault("compaction", _compact, proxied=True),
    Fault("full-disk", _fill_disk, Limited, stops_etcd=True),
    Fault("restore", _restore, Restorable, stops_etcd=True),
    # Until the nodes have the new password or certificates they cannot renew their leases.
    Fault("password", _rotate_password, Guarded, stops_etcd=True, refuses_nodes=True, lease=(2, 10)),
    Fault("certificates", _rotate_certificates, Secured, stops_etcd=True, refuses_nodes=True, lease=(2, 10)),
]
