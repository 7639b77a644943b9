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

__all__ = ["CONNECTION_KEYS", "connect"]

CONNECTION_KEYS = (*config.CLIENT_KEYS, "prefix")
"""The keys of the configuration that say how to reach etcd, and where a run's keys are."""

_DEFAULT_PORT = 2379

# How long etcd is given for its first answer, in seconds.
_FIRST_CONTACT = 10.0

_clients: dict[tuple[object, ...], EtcdClient] = {}


def connect(params: RendezvousParameters) -> EtcdClient:
    """Return the client for the etcd that ``params`` name: one per process for the same endpoints and credentials.

    It starts with a random endpoint, so that the nodes of a job spread over all of them.

    Configuration: ``protocol`` (http or https), ``ssl_cert``, ``ssl_cert_key``, ``ca_cert`` (paths of PEM files),
    ``username``, and ``password_file`` or the environment variable ``RENDEZVOUS_ETCD_PASSWORD``; ``read_timeout``,
    the seconds within which etcd must answer at first (60, but not more than 10).

    Raises:
        RendezvousConnectionError: no endpoint answers, or etcd refused the user.
        ValueError: a value is malformed.
    """
    endpoints = parse_rendezvous_endpoints(params.endpoint, _DEFAULT_PORT)
    username, password = config.user(params) or (None, None)
    credentials = Credentials(
        tls=config.one_of(params, "protocol", ("http", "https")) == "https",
        ca_cert=_content(params, "ca_cert"),
        cert=_content(params, "ssl_cert"),
        key=_content(params, "ssl_cert_key"),
        username=username,
        password=password,
    )
    if (credentials.cert is None) != (credentials.key is None):
        raise ValueError(
            "The rendezvous configuration options 'ssl_cert' and 'ssl_cert_key' go together: give both or none."
        )
    timeout = min(_FIRST_CONTACT, config.positive_int(params, "read_timeout", 60))
    return background.run(_connect(endpoints, credentials, timeout))


def _content(params: RendezvousParameters, key: str) -> bytes | None:
    path = config.existing_file(params, key)
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


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
