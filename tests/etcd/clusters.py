"""Real etcd clusters, and certificates for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trustme

from benchmarks.etcd_cluster import EtcdCluster, send, unary
from rendezvous.etcd.server import etcd_version
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from tests import etcds

BOUND = 30.0
"""Seconds within which everything that a test waits for must happen."""


class Certificates:
    """A certificate authority and a certificate that it has signed, as PEM files in ``folder``.

    Args:
        folder: an existing folder for the files.
        mutual: whether etcd asks clients for a certificate.
        names: the names and addresses in the certificate.
    """

    def __init__(self, folder: Path, mutual: bool = False, names: Sequence[str] = ("127.0.0.1", "localhost")) -> None:
        self.mutual = mutual
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        self._names = names
        self.renew()

    def renew(self) -> None:
        """Replace all files by those of a new authority."""
        self.authority = trustme.CA()
        signed = self.authority.issue_cert(*self._names)
        self.authority.cert_pem.write_to_path(self.ca)
        signed.private_key_pem.write_to_path(self.key)
        for number, blob in enumerate(signed.cert_chain_pems):
            blob.write_to_path(self.cert, append=number > 0)

    @property
    def flags(self) -> list[str]:
        """The flags of etcd."""
        flags = ["--cert-file", self.cert, "--key-file", self.key]
        return [*flags, "--client-cert-auth", "--trusted-ca-file", self.ca] if self.mutual else flags

    @property
    def credentials(self) -> Credentials:
        """The credentials of a client."""
        cert, key = (self.cert, self.key) if self.mutual else (None, None)
        return Credentials(tls=True, ca_cert=self.ca, cert=cert, key=key)


class Cluster(EtcdCluster):
    """A cluster for a test, which is skipped if there is no etcd. With ``tls`` it serves TLS."""

    def __init__(
        self,
        members: int = 3,
        tls: Certificates | None = None,
        flags: Sequence[str] = (),
        binary: str | None = None,
    ) -> None:
        more = () if tls is None else tls.flags
        credentials = None if tls is None else tls.credentials
        super().__init__(members, credentials, (*flags, *more), binary or etcds.newest())

    def have_lead(self, member: int) -> None:
        """Make ``member`` the leader."""
        target = self._status(member)[1]
        while (leader := self.leader) != member:
            request = rpc_pb2.MoveLeaderRequest(targetID=target)
            send(self.channel(leader), request, BOUND)

    def forget_channels(self) -> None:
        """Connect anew, with the certificates that the files contain now."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


ADMINISTRATOR = "root-and-branch"


def guard(cluster: EtcdCluster, user: str, password: str, prefix: str) -> None:
    """Enable authentication: ``user`` may read and write the keys under ``prefix``, and nothing else."""
    add_user(cluster, user, password, prefix)
    channel = cluster.channel()
    send(channel, rpc_pb2.AuthUserAddRequest(name="root", password=ADMINISTRATOR), BOUND)
    send(channel, rpc_pb2.AuthRoleAddRequest(name="root"), BOUND)
    send(channel, rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"), BOUND)
    send(channel, rpc_pb2.AuthEnableRequest(), BOUND)


def add_user(cluster: EtcdCluster, user: str, password: str, prefix: str) -> None:
    """Create a user with a role of its own, before authentication is enabled."""
    channel, key = cluster.channel(), prefix.encode()
    send(channel, rpc_pb2.AuthUserAddRequest(name=user, password=password), BOUND)
    send(channel, rpc_pb2.AuthRoleAddRequest(name=f"{user}-role"), BOUND)
    permission = rpc_pb2.Permission(permType=rpc_pb2.Permission.READWRITE, key=key, range_end=prefix_end(key))
    send(channel, rpc_pb2.AuthRoleGrantPermissionRequest(name=f"{user}-role", perm=permission), BOUND)
    send(channel, rpc_pb2.AuthUserGrantRoleRequest(user=user, role=f"{user}-role"), BOUND)


def administer(cluster: EtcdCluster, message: object) -> object:
    """Send a request as the user root, which :func:`guard` created."""
    login = rpc_pb2.AuthenticateRequest(name="root", password=ADMINISTRATOR)
    token = send(cluster.channel(), login, BOUND).token
    return unary(cluster.channel(), type(message))(message, metadata=(("token", token),), timeout=BOUND)


def progress_flags(interval: str) -> list[str]:
    """Return the flags that have etcd report the progress of watches at this interval."""
    version = etcd_version(etcds.newest()) or ""
    new = tuple(map(int, version.split("-")[0].split(".")))[:2] >= (3, 6)
    return [f"--{'' if new else 'experimental-'}watch-progress-notify-interval", interval]
