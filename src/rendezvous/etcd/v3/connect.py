"""Creates a client from a configuration."""

from __future__ import annotations

import asyncio
import random

from rendezvous import config
from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.endpoints import Credentials
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints

__all__ = ["connect"]

_DEFAULT_PORT = 2379

# How long etcd is given for its first answer, in seconds.
_FIRST_CONTACT = 10.0

_clients: dict[tuple[object, ...], EtcdClient] = {}


def connect(params: RendezvousParameters) -> EtcdClient:
    """Return the client for the etcd that ``params`` name: one per process for the same endpoints and credentials.

    It starts with a random endpoint, so that the nodes of a job spread over all of them.

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
    timeout = min(_FIRST_CONTACT, config.READ_TIMEOUT.read(params))
    return background.run(_connect(endpoints, credentials, timeout))


async def _connect(endpoints: list[tuple[str, int]], credentials: Credentials, timeout: float) -> EtcdClient:
    identity = (tuple(endpoints), credentials)
    client = _clients.get(identity)
    if client is None:
        # If all nodes started with the first endpoint, one member would carry the whole load.
        start = random.randrange(len(endpoints))
        client = GrpcEtcdClient(endpoints[start:] + endpoints[:start], credentials)
        try:
            await client.check(asyncio.get_running_loop().time() + timeout)
        except EtcdError as exc:
            await client.close()
            raise _failure(exc, endpoints, timeout) from None
        _clients[identity] = client
    return client


def _failure(error: EtcdError, endpoints: list[tuple[str, int]], timeout: float) -> RendezvousConnectionError:
    if not error.retryable:
        return RendezvousConnectionError(f"etcd at {error.endpoint} cannot be used: {error.reason}", retryable=False)
    names = ", ".join(format_endpoint(*endpoint) for endpoint in endpoints)
    reason = error.reason if len(endpoints) == 1 else f"{error.endpoint}: {error.reason}"
    return RendezvousConnectionError(
        f"no etcd answers at {names}: {reason} (tried for {timeout:g} s); check the endpoint, and that etcd runs there"
    )
