"""Creates a client from a configuration."""

from __future__ import annotations

import asyncio
import random
import traceback
from functools import partial

from rendezvous import config
from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import EtcdClient
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.diagnosis import diagnose
from rendezvous.etcd.v3.errors import EtcdError, UnavailableError
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints, run_root

__all__ = ["connect"]

_DEFAULT_PORT = 2379

# How long etcd is given for its first answer, in seconds.
_FIRST_CONTACT = 10.0

# If there is no answer within this time, in seconds, errors of TLS are looked for.
_BEFORE_DIAGNOSIS = 1.0

_Endpoints = list[tuple[str, int]]

_clients: dict[tuple[object, ...], EtcdClient] = {}
_connecting: dict[tuple[object, ...], asyncio.Task[EtcdClient]] = {}


def connect(params: RendezvousParameters) -> EtcdClient:
    """Return the client for the etcd that ``params`` name: one per process for the same endpoints and credentials.

    It starts with a random endpoint, so that the nodes of a job spread over all of them.

    Raises:
        RendezvousConnectionError: no endpoint answers, etcd refused the user, or no TLS connection comes about.
        ValueError: a value is malformed, or a file does not contain what it should.
    """
    endpoints = parse_rendezvous_endpoints(params.endpoint, _DEFAULT_PORT)
    connection = config.connection(params, config.Backend.COORDINATED)
    credentials = Credentials(
        tls=connection.protocol == "https",
        ca_cert=connection.ca_cert,
        cert=connection.cert,
        key=connection.key,
        username=connection.username,
        password=connection.password_source,
    )
    if credentials.tls:
        credentials.context()  # checks the files
    key = run_root(config.PREFIX.read(params), params.run_id)
    timeout = min(_FIRST_CONTACT, config.READ_TIMEOUT.read(params))
    return background.run(_share(endpoints, credentials, key, timeout))


async def _share(endpoints: _Endpoints, credentials: Credentials, key: bytes, timeout: float) -> EtcdClient:
    """Return the client, which all callers that ask for it at the same time wait for together."""
    identity = (tuple(endpoints), credentials)
    client = _clients.get(identity)
    if client is not None:
        return client
    connecting = _connecting.get(identity)
    if connecting is None:
        connecting = asyncio.get_running_loop().create_task(_connect(endpoints, credentials, key, timeout))
        _connecting[identity] = connecting
        connecting.add_done_callback(partial(_connected, identity))
    try:
        return await asyncio.shield(connecting)
    except EtcdError as exc:
        failure = _failure(exc, endpoints, key, timeout)
        _release_frames(exc)
    raise failure


def _release_frames(error: BaseException | None) -> None:
    """Drop the variables of the frames that an exception has passed through.

    gRPC goes on to connect until the last reference to a channel and its calls is gone. Callers may keep the exception.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _connected(identity: tuple[object, ...], connecting: asyncio.Task[EtcdClient]) -> None:
    _connecting.pop(identity, None)
    # Callers that were interrupted do not retrieve the exception.
    if not connecting.cancelled() and connecting.exception() is None:
        _clients[identity] = connecting.result()


async def _connect(endpoints: _Endpoints, credentials: Credentials, key: bytes, timeout: float) -> EtcdClient:
    # If all nodes started with the first endpoint, one member would carry the whole load.
    start = random.randrange(len(endpoints))
    client = GrpcEtcdClient(endpoints[start:] + endpoints[:start], credentials)
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    try:
        try:
            await client.check(key, min(deadline, clock() + _BEFORE_DIAGNOSIS))
        except EtcdError as exc:
            if isinstance(exc, UnavailableError):
                problem = await diagnose(endpoints, credentials)
                if problem is not None:
                    raise problem from None
            if not exc.retryable:
                raise
            await client.check(key, deadline)
    except BaseException:
        await client.close()  # or it would go on to connect
        raise
    return client


def _failure(error: EtcdError, endpoints: _Endpoints, key: bytes, timeout: float) -> RendezvousConnectionError:
    if not error.retryable:
        return RendezvousConnectionError(
            f"etcd at {error.endpoint} cannot be used for the keys under '{key.decode()}': {error.reason}",
            retryable=False,
        )
    names = ", ".join(format_endpoint(*endpoint) for endpoint in endpoints)
    reason = error.reason if len(endpoints) == 1 else f"{error.endpoint}: {error.reason}"
    return RendezvousConnectionError(
        f"no etcd answers at {names}: {reason} (tried for {timeout:g} s); check the endpoint, and that etcd runs there"
    )
