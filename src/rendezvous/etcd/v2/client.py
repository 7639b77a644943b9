"""Connections to etcd's v2 API: python-etcd clients, one an endpoint, and which of their errors mean what."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from rendezvous import config
from rendezvous._core import Backoff
from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints

try:
    import etcd
except ModuleNotFoundError as error:
    if error.name != "etcd":
        raise
    etcd = None

__all__ = ["EtcdClient", "create_client", "etcd_module", "key_path", "persist", "translate_errors"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_DEFAULT_PORT = 2379

# Seconds to connect within: time for TCP to try three times, and then for the next endpoint.
_CONNECT_TIMEOUT = 3.5


def etcd_module() -> Any:
    """Return the module ``etcd`` of python-etcd.

    Raises:
        ImportError: python-etcd is not installed.
    """
    if etcd is None:
        raise ImportError(
            "The etcd v2 rendezvous needs the package python-etcd: install it with 'pip install python-etcd'."
        )
    return etcd


def key_path(key: str) -> str:
    """Return ``key`` as python-etcd takes it: it puts keys into a URL as they are, so they must be quoted.

    Raises:
        ValueError: a part of the key is empty, ``.`` or ``..``, which etcd would resolve to another key.
    """
    if any(part in ("", ".", "..") for part in key.strip("/").split("/")):
        raise ValueError(f"The etcd key '{key}' must not have empty parts nor '.' or '..' for a part.")
    return "/" + quote(key.strip("/"))


def translate_errors(what: str, call: Callable[[], _T]) -> _T:
    """Return ``call()``; turn its failure to reach etcd into RendezvousConnectionError.

    Errors that are an answer of etcd's about the key (not found, exists, compare failed) pass through.
    """
    import urllib3.exceptions

    etcd = etcd_module()
    try:
        return call()
    except (etcd.EtcdKeyError, etcd.EtcdValueError, etcd.EtcdEventIndexCleared, etcd.EtcdWatchTimedOut):
        raise
    except etcd.EtcdInsufficientPermissions as exc:
        refused = RendezvousConnectionError(
            f"{what}: etcd refused the user; check the username, its password and its roles ({exc})",
            retryable=False,
        )
        raise refused from exc
    except (etcd.EtcdException, urllib3.exceptions.HTTPError) as exc:
        raise RendezvousConnectionError(f"{what}: {exc}") from exc


def persist(what: str, call: Callable[[], _T], deadline: float) -> _T:
    """Return ``call()``, tried again while etcd cannot be reached; see :func:`translate_errors`.

    Args:
        what: what fails, for the error.
        call: sends the request; it must be harmless to repeat.
        deadline: until when to try, on the monotonic clock.

    Raises:
        RendezvousConnectionError: etcd could not be reached until then, or refused the user.
    """
    backoff = Backoff(base=0.05, cap=2.0)
    while True:
        try:
            return translate_errors(what, call)
        except RendezvousConnectionError as exc:
            left = deadline - time.monotonic()
            if left <= 0 or not exc.retryable:
                raise
            time.sleep(min(backoff.next(), left))


class EtcdClient:
    """One etcd cluster: the first ``etcd.Client`` that answers serves, and the next takes over when it fails.

    It has the methods of ``etcd.Client`` that this project uses. A request that may have been applied is sent
    again only where that changes nothing: a failed compare-and-swap or deletion is raised, for its caller to look
    what became of it.

    Args:
        endpoints: hosts and ports.
        discover: also use the endpoints that the cluster's members advertise.
        **options: passed to each ``etcd.Client``: protocol, cert, ca_cert, username, password, read_timeout.

    Raises:
        RendezvousConnectionError: no endpoint answers, or etcd does not serve the v2 API.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], discover: bool = True, **options: Any) -> None:
        self._etcd = etcd_module()
        self._options = options
        self._lock = threading.Lock()
        self._current = 0
        self._clients = [self._client(host, port) for host, port in endpoints]
        members = self._members()
        if discover:
            known = set(endpoints)
            for url in map(urlsplit, members):
                if url.hostname and url.port and (url.hostname, url.port) not in known:
                    self._clients.append(self._client(url.hostname, url.port))

    def _client(self, host: str, port: int) -> Any:
        import urllib3

        client = self._etcd.Client(host=f"[{host}]" if ":" in host else host, port=port, **self._options)
        # python-etcd passes its one time-out with each request. As a number it would hold for connecting too.
        client._read_timeout = _timeout(client.read_timeout)
        # By default urllib3 itself sends a failed PUT again, even one that may have been applied.
        client.http.connection_pool_kw["retries"] = urllib3.Retry(total=5, connect=0, read=0, other=0)
        return client

    def _members(self) -> list[str]:
        """Ask the first endpoint that answers for the client URLs of the cluster's members."""
        names = ", ".join(client.base_uri for client in self._clients)
        try:
            members: list[str] = translate_errors(
                f"no etcd answers at {names}", lambda: self._call(lambda client: client.machines)
            )
        except RendezvousConnectionError as exc:
            if "404 page not found" not in str(exc):
                raise
            raise RendezvousConnectionError(
                f"etcd answers at {names}, but does not serve the v2 API: etcd 3.6 removed it, 3.4 and 3.5 need "
                f"--enable-v2"
            ) from exc
        return members

    @property
    def endpoint(self) -> str:
        """The endpoint in use, ``host:port``."""
        url = urlsplit(self._clients[self._current].base_uri)
        return format_endpoint(url.hostname or "", url.port or 0)

    def _call(self, request: Callable[[Any], Any], repeatable: bool = True) -> Any:
        """Send ``request`` by the client in use, and by the others in turn while they cannot be reached."""
        turn = len(self._clients)
        while True:
            current = self._current
            client = self._clients[current]
            try:
                return request(client)
            except self._etcd.EtcdWatchTimedOut:
                raise
            except self._etcd.EtcdException as exc:
                if not self._unreachable(exc):
                    raise
                turn -= 1
                with self._lock:
                    if self._current == current:
                        self._current = (current + 1) % len(self._clients)
                if turn == 0 or not (repeatable or _never_sent(exc)):
                    raise
                logger.info("etcd at %s does not answer (%s); trying the next endpoint", client.base_uri, exc)

    def _unreachable(self, exc: Exception) -> bool:
        # The list of machines is asked for outside python-etcd's own sorting of errors: a bare EtcdException.
        return isinstance(exc, self._etcd.EtcdConnectionFailed) or type(exc) is self._etcd.EtcdException

    def read(self, key: str, **options: Any) -> Any:
        """See ``etcd.Client.read``."""
        return self._call(lambda client: client.read(key, **options))

    def watch(
        self, key: str, index: int | None = None, timeout: float | None = None, recursive: bool | None = None
    ) -> Any:
        """See ``etcd.Client.watch``."""
        limit = None if timeout is None else _timeout(timeout)
        return self._call(lambda client: client.watch(key, index=index, timeout=limit, recursive=recursive))

    def write(self, key: str, value: str | None, ttl: int | None = None, **conditions: Any) -> Any:
        """See ``etcd.Client.write``."""
        return self._call(lambda client: client.write(key, value, ttl, **conditions), repeatable=not conditions)

    def refresh(self, key: str, ttl: int) -> Any:
        """See ``etcd.Client.refresh``."""
        return self._call(lambda client: client.refresh(key, ttl))

    def delete(self, key: str, **conditions: Any) -> Any:
        """See ``etcd.Client.delete``."""
        # Sent again, it would not find what it has deleted itself.
        return self._call(lambda client: client.delete(key, **conditions), repeatable=False)


def _timeout(seconds: float) -> Any:
    """Return urllib3's time-out for an etcd that must answer within ``seconds``."""
    import urllib3

    return urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, seconds), read=seconds)


def _never_sent(exc: Any) -> bool:
    """Return whether the connection was not even made, so that etcd cannot have seen the request."""
    import urllib3.exceptions

    cause = getattr(exc, "cause", None)
    reason = getattr(cause, "reason", cause)
    return isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))


def create_client(params: RendezvousParameters, backend: config.Backend = config.Backend.DYNAMIC_V2) -> EtcdClient:
    """Connect to the cluster that a configuration names.

    Args:
        params: the configuration.
        backend: the backend whose names the configuration keys have.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: no endpoint answers, or etcd does not serve the v2 API.
        ValueError: a value is malformed or out of range.
    """
    endpoints = parse_rendezvous_endpoints(params.endpoint, _DEFAULT_PORT)
    connection = config.connection(params, backend)
    cert: str | tuple[str, str] | None = connection.cert
    if connection.cert and connection.key:
        cert = (connection.cert, connection.key)
    try:
        return EtcdClient(
            endpoints,
            protocol=connection.protocol,
            read_timeout=config.READ_TIMEOUT.read(params),
            cert=cert,
            ca_cert=connection.ca_cert,
            username=connection.username,
            password=connection.password,
        )
    except OSError as exc:
        raise RendezvousConnectionError(f"the connection to etcd at '{params.endpoint}' failed: {exc}") from exc
