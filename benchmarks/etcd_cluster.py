"""A local etcd cluster whose members can be killed and paused, for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from rendezvous.etcd.server import find_etcd
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import get_free_port

__all__ = ["EtcdCluster", "send", "unary"]

_TIMEOUT = 30.0
_HOST = "127.0.0.1"


def unary(channel: Any, request: Any) -> Any:
    """Return etcd's method for messages of the class ``request``, as a callable on a gRPC channel."""
    for service in rpc_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if method.input_type is request.DESCRIPTOR:
                answer = getattr(rpc_pb2, method.output_type.name)
                path = f"/etcdserverpb.{service.name}/{method.name}"
                return channel.unary_unary(path, request.SerializeToString, answer.FromString)
    raise ValueError(f"{request.__name__} is not the request of a method of etcd")


def send(channel: Any, message: Any, timeout: float = _TIMEOUT) -> Any:
    """Send a request to etcd's method for it; return the answer, or an awaitable if the channel is of grpc.aio."""
    return unary(channel, type(message))(message, timeout=timeout)


class EtcdCluster:
    """A real etcd of several members on loopback.

    As a context manager, it starts on entry; on exit it stops and deletes its data.

    Args:
        members: the number of members; they are numbered from 0.
        credentials: how clients connect; without TLS and users by default. Peers connect without TLS.
        flags: further flags of etcd, such as those that ``credentials`` require.
        binary: the etcd binary; by default the one that :func:`find_etcd` finds.

    Raises:
        FileNotFoundError: there is no etcd binary.
    """

    def __init__(
        self,
        members: int = 3,
        credentials: Credentials | None = None,
        flags: Sequence[str] = (),
        binary: str | None = None,
    ) -> None:
        self._binary = find_etcd(binary)
        self._credentials = credentials or Credentials()
        self._flags = flags
        self.ports = [get_free_port(_HOST) for _ in range(members)]
        self._peer_ports = [get_free_port(_HOST) for _ in range(members)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self._channels: dict[int, grpc.Channel] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rendezvous-cluster-"))

    def __enter__(self) -> EtcdCluster:
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
        """The numbers of the members."""
        return range(len(self.ports))

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """Hosts and ports of the members, for clients."""
        return [(_HOST, port) for port in self.ports]

    @property
    def endpoint(self) -> str:
        """The endpoints as one string, as in a configuration."""
        return ",".join(f"{_HOST}:{port}" for port in self.ports)

    def pid(self, member: int) -> int:
        """Return the process id of a running member."""
        return self._processes[member].pid

    # Faults.

    def start(self, member: int) -> None:
        """Start a member, with its old data if it ran before."""
        scheme = "https" if self._credentials.tls else "http"
        client, peer = f"{scheme}://{_HOST}:{self.ports[member]}", f"http://{_HOST}:{self._peer_ports[member]}"
        cluster = ",".join(f"m{each}=http://{_HOST}:{self._peer_ports[each]}" for each in self.members)
        command = [
            self._binary,
            *("--name", f"m{member}", "--data-dir", str(self._folder / f"m{member}")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster, "--initial-cluster-token", self._folder.name, "--log-level", "warn"),
            *self._flags,
        ]
        with open(self._folder / f"m{member}.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes[member] = process

    def kill(self, member: int) -> None:
        """End a member with SIGKILL."""
        process = self._processes.pop(member, None)
        self._paused.discard(member)
        if process is not None:
            process.kill()
            process.wait()

    def pause(self, member: int) -> None:
        """Suspend a member with SIGSTOP: its connections stay open, and it answers nothing."""
        os.kill(self.pid(member), signal.SIGSTOP)
        os.waitpid(self.pid(member), os.WUNTRACED)  # until it has stopped
        self._paused.add(member)

    def resume(self, member: int) -> None:
        """Continue a paused member."""
        os.kill(self.pid(member), signal.SIGCONT)
        self._paused.discard(member)

    def mend(self) -> None:
        """Continue or start all members that are paused or were killed, and wait until they work together."""
        for member in self.members:
            if member in self._paused:
                self.resume(member)
            elif member not in self._processes:
                self.start(member)
        self.wait()

    # Status.

    def channel(self, member: int = 0) -> grpc.Channel:
        """Return a gRPC channel to a member."""
        if member not in self._channels:
            target, known = f"{_HOST}:{self.ports[member]}", self._credentials
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
            if known.tls:
                secrets = known.read().channel_credentials()
                self._channels[member] = grpc.secure_channel(target, secrets, options)
            else:
                self._channels[member] = grpc.insecure_channel(target, options)
        return self._channels[member]

    def _status(self, member: int) -> tuple[int, int]:
        """Return the member ids of the leader that ``member`` follows and of itself; 0 if unknown."""
        try:
            # Before grpcio 1.80, a blocking channel connects again only while a request waits for it.
            status = unary(self.channel(member), rpc_pb2.StatusRequest)(
                rpc_pb2.StatusRequest(), timeout=1, wait_for_ready=True
            )
        except grpc.RpcError:
            return 0, 0
        return status.leader, status.header.member_id

    @property
    def leader(self) -> int:
        """The number of the leader.

        Raises:
            TimeoutError: there was none for 30 s.
        """
        deadline = time.monotonic() + _TIMEOUT
        while True:
            for member in self.members:
                leads, itself = self._status(member) if member in self._processes else (0, 0)
                if leads and leads == itself:
                    return member
            self._pause_before(deadline, "there is no leader")

    def wait(self) -> None:
        """Wait until all members follow one leader.

        Raises:
            RuntimeError: a member has ended.
            TimeoutError: they do not within 30 s.
        """
        deadline = time.monotonic() + _TIMEOUT
        while len(leaders := {self._status(member)[0] for member in self.members}) > 1 or 0 in leaders:
            for member, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"etcd m{member} ended with exit code {process.returncode}: {self._log_ends()}")
            self._pause_before(deadline, "the members do not follow one leader")

    def _pause_before(self, deadline: float, complaint: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} after {_TIMEOUT:g} s: {self._log_ends()}")
        time.sleep(0.05)

    def _log_ends(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-500:] for log in sorted(self._folder.glob("*.log")))
