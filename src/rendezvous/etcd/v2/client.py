"""A client of etcd's v2 API with several endpoints, built on python-etcd, and the translation of its errors."""

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

__all__ = ["EtcdClient", "create_client", "etcd_module", "key_path", "retry", "translate_errors"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_DEFAULT_PORT = 2379

# Seconds for one endpoint to accept a connection: TCP sends its first packet three times within it.
_CONNECT_TIMEOUT = 3.5


def etcd_module() -> Any:
    """Return the module ``etcd`` of python-etcd, which is only imported when it is first used.

    Raises:
        ImportError: python-etcd is not installed.
    """
    try:
        import etcd
    except ModuleNotFoundError as exc:
        if exc.name != "etcd":
            raise
        raise ImportError(
            "The package python-etcd is not installed. The rendezvous backends 'etcd' and 'etcd-v2' need it for "
            "etcd's v2 API; install it with 'pip install python-etcd', or use the backend 'etcd-v3'."
        ) from None
    return etcd


def key_path(key: str) -> str:
    """Return ``key`` percent-encoded, because python-etcd copies keys into a URL without quoting them.

    Raises:
        ValueError: a part of the key is empty, ``.`` or ``..``, which etcd would resolve to another key.
    """
    if any(part in ("", ".", "..") for part in key.strip("/").split("/")):
        raise ValueError(f"The etcd key '{key}' must not have empty parts, and no part may be '.' or '..'.")
    return "/" + quote(key.strip("/"))


def translate_errors(what: str, call: Callable[[], _T]) -> _T:
    """Return ``call()``, and raise RendezvousConnectionError if it cannot reach etcd.

    Errors with which etcd answers about the key (not found, exists, compare failed) are raised unchanged.

    Args:
        what: what was not possible, for the message.
        call: sends the request.
    """
    import urllib3.exceptions

    etcd = etcd_module()
    try:
        return call()
    except (etcd.EtcdKeyError, etcd.EtcdValueError, etcd.EtcdEventIndexCleared, etcd.EtcdWatchTimedOut):
        raise
    except etcd.EtcdInsufficientPermissions as exc:
        raise RendezvousConnectionError(
            f"{what}: etcd refused the user; check the username, its password and its roles ({exc})", retryable=False
        ) from None
    except (etcd.EtcdException, urllib3.exceptions.HTTPError) as exc:
        raise RendezvousConnectionError(f"{what}: {exc}") from None


def retry(what: str, call: Callable[[], _T], deadline: float) -> _T:
    """Return ``call()``, repeated while etcd cannot be reached; see :func:`translate_errors`.

    Args:
        what: what was not possible, for the message.
        call: sends the request; repeating it must be harmless.
        deadline: when to give up, on the monotonic clock.

    Raises:
        RendezvousConnectionError: etcd could not be reached until the deadline, or refused the user.
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


def _first_cause(exc: BaseException) -> str:
    """Return the message of the error that began the chain of ``exc``, such as "Connection refused"."""
    while (earlier := exc.__cause__ or exc.__context__) is not None:
        exc = earlier
    return getattr(exc, "strerror", None) or str(exc)


class EtcdClient:
    """A client of an etcd cluster: one ``etcd.Client`` for each endpoint, of which it uses the next when one fails.

    It has the methods of ``etcd.Client`` that this project uses. A request that may have been applied is only
    repeated on another endpoint if that is harmless. The error of a failed compare-and-swap or deletion is raised,
    and the caller must find out whether it was applied.

    Args:
        endpoints: hosts and ports.
        discover: whether to use the endpoints that the cluster's members advertise as well.
        **options: arguments for each ``etcd.Client``: protocol, cert, ca_cert, username, password, read_timeout.

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
        # python-etcd passes its only timeout with each request. A plain number would apply to connecting as well.
        client._read_timeout = _timeout(client.read_timeout)
        # By default urllib3 repeats a failed PUT, even if it may have been applied.
        client.http.connection_pool_kw["retries"] = urllib3.Retry(total=5, connect=0, read=0, other=0)
        return client

    def _members(self) -> list[str]:
        """Return the client URLs that the cluster's members advertise, as the first endpoint that answers has them."""
        names = ", ".join(client.base_uri for client in self._clients)
        try:
            members: list[str] = translate_errors(
                f"no etcd answers at {names}", lambda: self._call(lambda client: client.machines)
            )
        except RendezvousConnectionError as exc:
            if not exc.retryable:
                raise
            if "404 page not found" not in str(exc):
                raise RendezvousConnectionError(
                    f"no etcd answers at {names}: {_first_cause(exc)}; check the endpoint, and that etcd runs there"
                ) from None
            raise RendezvousConnectionError(
                f"etcd answers at {names}, but does not serve the v2 API: etcd 3.6 removed it, 3.4 and 3.5 need "
                f"--enable-v2; use the backend 'etcd-v3', which needs no v2 API"
            ) from None
        return members

    @property
    def endpoint(self) -> str:
        """The endpoint in use, ``host:port``."""
        url = urlsplit(self._clients[self._current].base_uri)
        return format_endpoint(url.hostname or "", url.port or 0)

    def _call(self, request: Callable[[Any], Any], repeatable: bool = True) -> Any:
        """Send ``request`` to the current endpoint, and to the next ones while they cannot be reached."""
        left = len(self._clients)
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
                left -= 1
                with self._lock:
                    if self._current == current:
                        self._current = (current + 1) % len(self._clients)
                if left == 0 or not (repeatable or _never_sent(exc)):
                    raise
                logger.info("etcd at %s does not answer (%s); trying the next endpoint", client.base_uri, exc)

    def _unreachable(self, exc: Exception) -> bool:
        # python-etcd raises a plain EtcdException if it cannot get the list of members.
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
        # A repeated deletion would not find the key that the first one has deleted.
        return self._call(lambda client: client.delete(key, **conditions), repeatable=False)


def _timeout(seconds: float) -> Any:
    """Return the timeout for urllib3 if etcd must answer within ``seconds``."""
    import urllib3

    return urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, seconds), read=seconds)


def _never_sent(exc: Any) -> bool:
    """Return whether no connection was established, so that etcd cannot have received the request."""
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
