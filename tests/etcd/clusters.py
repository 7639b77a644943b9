"""Real etcd clusters, and certificates for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trustme

from benchmarks.etcd_cluster import EtcdCluster, send
from rendezvous.etcd.v3.endpoints import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from tests import etcds

BOUND = 30.0
"""Seconds within which everything that a test waits for must happen."""


class Certificates:
    """A certificate authority and a certificate that it has signed, as PEM files in ``folder``.

    Args:
        folder: an existing folder for the files.
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
        """The flags of etcd."""
        flags = ["--cert-file", self.cert, "--key-file", self.key]
        return [*flags, "--client-cert-auth", "--trusted-ca-file", self.ca] if self.mutual else flags

    @property
    def credentials(self) -> Credentials:
        """The credentials of a client."""
        ca, cert, key = (Path(path).read_bytes() for path in (self.ca, self.cert, self.key))
        return Credentials(tls=True, ca_cert=ca, cert=cert if self.mutual else None, key=key if self.mutual else None)


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
