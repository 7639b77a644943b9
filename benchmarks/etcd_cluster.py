"""An etcd cluster of one's own, on loopback, whose members can be killed: for tests, benchmarks and drills."""

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
from rendezvous.etcd.v3.endpoints import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import get_free_port

__all__ = ["EtcdCluster", "send", "unary"]

_PATIENCE = 30.0
_HOST = "127.0.0.1"


def unary(channel: Any, request: Any) -> Any:
    """Return the method of etcd that takes messages of the class ``request``, on a channel of gRPC."""
    for service in rpc_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if method.input_type is request.DESCRIPTOR:
                answer = getattr(rpc_pb2, method.output_type.name)
                path = f"/etcdserverpb.{service.name}/{method.name}"
                return channel.unary_unary(path, request.SerializeToString, answer.FromString)
    raise ValueError(f"{request.__name__} is not what a method of etcd takes")


def send(channel: Any, message: Any, timeout: float = _PATIENCE) -> Any:
    """Send a message to the method that takes it; return the answer, or an awaitable if the channel is grpc.aio's."""
    return unary(channel, type(message))(message, timeout=timeout)


class EtcdCluster:
    """A real etcd of several members. As a context manager it starts on entry, and on exit leaves nothing.

    Args:
        members: how many there are; they go by their numbers, from 0.
        credentials: what clients need to come in; plain text unless given. Peers talk in plain text.
        flags: more flags of etcd, such as those that go with ``credentials``.

    Raises:
        FileNotFoundError: there is no etcd binary.
    """

    def __init__(self, members: int = 3, credentials: Credentials | None = None, flags: Sequence[str] = ()) -> None:
        self._binary = find_etcd()
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
        """Hosts and ports for clients."""
        return [(_HOST, port) for port in self.ports]

    @property
    def endpoint(self) -> str:
        """The same, in the words of a configuration."""
        return ",".join(f"{_HOST}:{port}" for port in self.ports)

    def pid(self, member: int) -> int:
        """Return the process id of a member that runs."""
        return self._processes[member].pid

    # What befalls members.

    def start(self, member: int) -> None:
        """Start a member, on the data that it had if it ran before."""
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
        """Let a paused member go on."""
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
        """Return a bare connection to a member."""
        if member not in self._channels:
            target, known = f"{_HOST}:{self.ports[member]}", self._credentials
            backoff = ((f"grpc.{which}_reconnect_backoff_ms", 200) for which in ("initial", "min", "max"))
            options = (("grpc.use_local_subchannel_pool", 1), *backoff)
            if known.tls:
                secrets = grpc.ssl_channel_credentials(known.ca_cert, known.key, known.cert)
                self._channels[member] = grpc.secure_channel(target, secrets, options)
            else:
                self._channels[member] = grpc.insecure_channel(target, options)
        return self._channels[member]

    def leader_of(self, member: int) -> int:
        """Return the member id of whom ``member`` takes for the leader; 0 if of none, or if it does not answer."""
        return self._status(member)[0]

    def _status(self, member: int) -> tuple[int, int]:
        try:
            status = send(self.channel(member), rpc_pb2.StatusRequest(), timeout=1)
        except grpc.RpcError:
            return 0, 0
        return status.leader, status.header.member_id

    @property
    def leader(self) -> int:
        """The member that leads.

        Raises:
            TimeoutError: there is none for half a minute.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            for member in self.members:
                leads, itself = self._status(member) if member in self._processes else (0, 0)
                if leads and leads == itself:
                    return member
            self._pause_before(deadline, "no member leads")

    def wait(self) -> None:
        """Wait until all members follow one leader.

        Raises:
            RuntimeError: a member has ended.
            TimeoutError: they do not within half a minute.
        """
        deadline = time.monotonic() + _PATIENCE
        while len(leaders := {self._status(member)[0] for member in self.members}) > 1 or 0 in leaders:
            for member, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"etcd m{member} ended with exit code {process.returncode}: {self._log_ends()}")
            self._pause_before(deadline, "the members do not follow one leader")

    def _pause_before(self, deadline: float, complaint: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} after {_PATIENCE:g} s: {self._log_ends()}")
        time.sleep(0.05)

    def _log_ends(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-500:] for log in sorted(self._folder.glob("*.log")))
