"""Real etcd clusters on loopback whose members tests kill, pause and start again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import trustme
from pyetcd.etcdrpc import rpc_pb2, rpc_pb2_grpc

from rendezvous.etcd_server import find_etcd
from rendezvous.utils import get_free_port
from rendezvous.v3.connection import Credentials

BOUND = 30.0
"""Seconds within which anything that must happen in a test happens."""


class Certificates:
    """An authority of its own, and what it signed, as PEM files in ``folder``.

    Args:
        folder: where the files go; it exists.
        mutual: whether etcd asks clients for a certificate.
    """

    def __init__(self, folder: Path, mutual: bool = False) -> None:
        authority = trustme.CA()
        self.mutual = mutual
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        signed = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.ca)
        signed.private_key_pem.write_to_path(self.key)
        for blob in signed.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)

    @property
    def flags(self) -> list[str]:
        """What etcd is told."""
        flags = ["--cert-file", self.cert, "--key-file", self.key]
        return [*flags, "--client-cert-auth", "--trusted-ca-file", self.ca] if self.mutual else flags

    @property
    def credentials(self) -> Credentials:
        """What a client needs."""
        ca, cert, key = (Path(path).read_bytes() for path in (self.ca, self.cert, self.key))
        return Credentials(tls=True, ca_cert=ca, cert=cert if self.mutual else None, key=key if self.mutual else None)


class Cluster:
    """A real etcd of one member or more. As a context manager it starts on entry, and on exit leaves nothing.

    Args:
        members: how many there are.
        tls: what clients need to come in; peers talk in plain text.
        flags: more flags of etcd.
    """

    def __init__(self, members: int = 3, tls: Certificates | None = None, flags: Sequence[str] = ()) -> None:
        try:
            self._binary = find_etcd()
        except FileNotFoundError as exc:
            pytest.skip(str(exc))
        self._tls, self._flags = tls, flags
        self.ports = [get_free_port("127.0.0.1") for _ in range(members)]
        self._peer_ports = [get_free_port("127.0.0.1") for _ in range(members)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self._channels: dict[int, grpc.Channel] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rendezvous-cluster-"))

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                self.start(member)
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()
        for member in self.members:
            self.kill(member)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def members(self) -> range:
        return range(len(self.ports))

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """Hosts and ports for clients."""
        return [("127.0.0.1", port) for port in self.ports]

    @property
    def endpoint(self) -> str:
        """The same, in the words of a configuration."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def pid(self, member: int) -> int:
        return self._processes[member].pid

    # What befalls members.

    def start(self, member: int) -> None:
        """Start a member, on the data that it had if it ran before."""
        scheme = "https" if self._tls is not None else "http"
        client, peer = f"{scheme}://127.0.0.1:{self.ports[member]}", f"http://127.0.0.1:{self._peer_ports[member]}"
        cluster = ",".join(f"m{each}=http://127.0.0.1:{self._peer_ports[each]}" for each in self.members)
        command = [
            self._binary,
            *("--name", f"m{member}", "--data-dir", str(self._folder / f"m{member}")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster, "--initial-cluster-token", self._folder.name, "--log-level", "warn"),
            *(self._tls.flags if self._tls is not None else ()),
            *self._flags,
        ]
        with open(self._folder / f"m{member}.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes[member] = process

    def kill(self, member: int) -> None:
        """End a member without notice."""
        process = self._processes.pop(member, None)
        self._paused.discard(member)
        if process is not None:
            process.kill()
            process.wait()

    def pause(self, member: int) -> None:
        """Stop a member in its tracks: its connections stay, and nothing answers."""
        os.kill(self.pid(member), signal.SIGSTOP)
        os.waitpid(self.pid(member), os.WUNTRACED)  # until it has stopped
        self._paused.add(member)

    def resume(self, member: int) -> None:
        os.kill(self.pid(member), signal.SIGCONT)
        self._paused.discard(member)

    def mend(self) -> None:
        """Have all members up again."""
        for member in self.members:
            if member in self._paused:
                self.resume(member)
            elif member not in self._processes:
                self.start(member)
        self.wait()

    # What they say.

    def channel(self, member: int = 0) -> grpc.Channel:
        """A bare connection to a member."""
        if member not in self._channels:
            target = f"127.0.0.1:{self.ports[member]}"
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
            if self._tls is None:
                self._channels[member] = grpc.insecure_channel(target, options)
            else:
                known = self._tls.credentials
                secrets = grpc.ssl_channel_credentials(known.ca_cert, known.key, known.cert)
                self._channels[member] = grpc.secure_channel(target, secrets, options)
        return self._channels[member]

    def leader_of(self, member: int) -> int:
        """Return the member id of whom ``member`` takes for the leader; 0 if of none, or if it does not answer."""
        return self._status(member)[0]

    def _status(self, member: int) -> tuple[int, int]:
        try:
            status = rpc_pb2_grpc.MaintenanceStub(self.channel(member)).Status(rpc_pb2.StatusRequest(), timeout=1)
        except grpc.RpcError:
            return 0, 0
        return status.leader, status.header.member_id

    @property
    def leader(self) -> int:
        """The member that leads."""
        deadline = time.monotonic() + BOUND
        while True:
            for member in self.members:
                leads, itself = self._status(member) if member in self._processes else (0, 0)
                if leads and leads == itself:
                    return member
            assert time.monotonic() < deadline, f"no leader: {self._end_of_logs()}"
            time.sleep(0.05)

    def wait(self) -> None:
        """Wait until all members follow one leader."""
        deadline = time.monotonic() + BOUND
        while len(leaders := {self._status(member)[0] for member in self.members}) > 1 or 0 in leaders:
            for member, process in self._processes.items():
                assert process.poll() is None, f"etcd m{member} ended: {self._end_of_logs()}"
            assert time.monotonic() < deadline, f"the cluster is not ready: {self._end_of_logs()}"
            time.sleep(0.05)

    def _end_of_logs(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-500:] for log in sorted(self._folder.glob("*.log")))
