"""Finds out why no connection to etcd comes about, if TLS is the reason.

gRPC says no more than "Socket closed" in some of these cases. So the handshake is tried once more, with :mod:`ssl`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.errors import TlsError
from rendezvous.utils import format_endpoint

__all__ = ["diagnose"]

# How long the attempts may take, and how long each may wait for an answer, in seconds.
_TIMEOUT = 2.0

# The beginning of a connection in HTTP/2, and its empty settings. etcd answers with its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_REQUEST = b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"


async def diagnose(endpoints: Sequence[tuple[str, int]], credentials: Credentials) -> TlsError | None:
    """Return the error of TLS that makes all endpoints unusable, or None if there is no such error."""
    loop = asyncio.get_running_loop()
    probes = [loop.run_in_executor(None, _problem, endpoint, credentials) for endpoint in endpoints]
    _, running = await asyncio.wait(probes, timeout=_TIMEOUT)
    if running:
        return None
    reasons = [probe.result() for probe in probes]
    if None in reasons:
        return None
    return TlsError(str(reasons[0]), format_endpoint(*endpoints[0]), retryable=False)


def _problem(endpoint: tuple[str, int], credentials: Credentials) -> str | None:
    try:
        if credentials.tls:
            return _tls_problem(endpoint, credentials)
        return _plain_problem(endpoint)
    except (OSError, ValueError):
        return None  # whatever it is, TLS is not to blame for it


def _plain_problem(endpoint: tuple[str, int]) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connect(endpoint) as connection:
        try:
            context.wrap_socket(connection).close()
        except ssl.SSLError as exc:
            if "ALERT" not in (exc.reason or ""):
                return None
    return "it uses TLS; set 'protocol=https', and 'ca_cert' if the authority is not one of the system's"


def _tls_problem(endpoint: tuple[str, int], credentials: Credentials) -> str | None:
    context = credentials.context()
    context.set_alpn_protocols(["h2"])
    try:
        with (
            _connect(endpoint) as connection,
            context.wrap_socket(connection, server_hostname=endpoint[0]) as secure,
        ):
            secure.sendall(_PREFACE)
            secure.recv(1)  # with TLS 1.3, etcd refuses a client's certificate only after the handshake
    except ssl.SSLCertVerificationError as exc:
        if "mismatch" in exc.verify_message:
            advice = f"'{endpoint[0]}' is not a name in etcd's certificate; use an endpoint that is"
        elif credentials.ca_cert is None:
            advice = "name the authority of etcd's certificate with 'ca_cert'"
        else:
            advice = f"'{credentials.ca_cert}', which 'ca_cert' names, does not make etcd's certificate valid"
        return f"CERTIFICATE_VERIFY_FAILED: {exc.verify_message.rstrip('.')}; {advice}"
    except ssl.SSLError as exc:
        if "ALERT" not in (exc.reason or ""):
            return _unless_tls(endpoint)
        if credentials.cert is None:
            return "it requires the certificate of a client; set 'ssl_cert' and 'ssl_cert_key'"
        return f"it does not accept the certificate '{credentials.cert}', which 'ssl_cert' names: {exc.reason}"
    except ConnectionError:
        return _unless_tls(endpoint)
    return None


def _unless_tls(endpoint: tuple[str, int]) -> str | None:
    with _connect(endpoint) as connection:
        connection.sendall(_REQUEST)
        answer = connection.recv(12)
    # A server that uses TLS answers with status 400, or not at all.
    if answer.startswith(b"HTTP/1.") and not answer.endswith(b" 400"):
        return "it does not use TLS; set 'protocol=http', or have etcd serve https"
    return None


def _connect(endpoint: tuple[str, int]) -> socket.socket:
    return socket.create_connection(endpoint, _TIMEOUT)
