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

__all__ = ["CONNECTION_KEYS", "connect"]

CONNECTION_KEYS = (*config.CLIENT_KEYS, "prefix")
"""The keys of the configuration that are read here."""

_DEFAULT_PORT = 2379

# How long an etcd that does not answer is tried at first, in seconds.
_FIRST_CONTACT = 10.0


_clients: dict[tuple[object, ...], EtcdClient] = {}


def connect(params: RendezvousParameters) -> EtcdClient:
    """Return the client for the etcd that ``params`` name: one a process for the same endpoints and credentials.

    It begins with any of the endpoints, so that the nodes of a job spread over them.

    Configuration: ``protocol`` (http or https), ``ssl_cert``, ``ssl_cert_key``, ``ca_cert`` (paths of PEM files),
    ``username``, and ``password_file`` or the environment variable ``RENDEZVOUS_ETCD_PASSWORD``; ``read_timeout``,
    the seconds for which an etcd that does not answer at first is tried (60, but not more than 10).

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
    patience = min(_FIRST_CONTACT, config.positive_int(params, "read_timeout", 60))
    return background.run(_connect(endpoints, credentials, patience))


def _content(params: RendezvousParameters, key: str) -> bytes | None:
    path = config.existing_file(params, key)
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


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
