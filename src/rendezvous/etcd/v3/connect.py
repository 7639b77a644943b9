"""How a configuration becomes a client, and the keys of a run."""

from __future__ import annotations

import asyncio
import random

from rendezvous import config
from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connection import Credentials, GrpcEtcdClient
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints

__all__ = ["connect"]

_DEFAULT_PORT = 2379

# How long an etcd that does not answer is tried at first, in seconds.
_FIRST_CONTACT = 10.0


_clients: dict[tuple[object, ...], EtcdClient] = {}


def connect(params: RendezvousParameters) -> EtcdClient:
    """Return the client for the etcd that ``params`` name: one a process for the same endpoints and credentials.

    It begins with any of the endpoints, so that the nodes of a job spread over them.

    Raises:
        RendezvousConnectionError: no endpoint answers, or etcd refused the user.
        ValueError: a value is malformed.
    """
    endpoints = parse_rendezvous_endpoints(params.endpoint, _DEFAULT_PORT)
    connection = config.connection(params, config.Backend.COORDINATED)
    credentials = Credentials(
        tls=connection.protocol == "https",
        ca_cert=config.CA_CERT.content(params),
        cert=config.SSL_CERT.content(params),
        key=config.SSL_CERT_KEY.content(params),
        username=connection.username,
        password=connection.password,
    )
    patience = min(_FIRST_CONTACT, config.READ_TIMEOUT.read(params))
    return background.run(_connect(endpoints, credentials, patience))


async def _connect(endpoints: list[tuple[str, int]], credentials: Credentials, patience: float) -> EtcdClient:
    identity = (tuple(endpoints), credentials)
    client = _clients.get(identity)
    if client is None:
        # Nodes that all asked the first would load one member alone.
        start = random.randrange(len(endpoints))
        client = GrpcEtcdClient(endpoints[start:] + endpoints[:start], credentials)
        try:
            await client.check(asyncio.get_running_loop().time() + patience)
        except RendezvousConnectionError as exc:
            await client.close()
            if not exc.retryable:
                raise
            names = ", ".join(format_endpoint(*endpoint) for endpoint in endpoints)
            raise RendezvousConnectionError(f"no etcd answers at {names}: {exc}") from exc
        _clients[identity] = client
    return client
