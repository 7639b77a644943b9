"""The counters of an etcd, read from its ``/metrics``."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.request

from rendezvous.bench.checks import Failed

__all__ = ["NAMES", "difference", "load", "version"]

NAMES = ("requests", "watches", "keep_alives", "bytes", "raft", "cpu")


def load(endpoint: str, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> dict[str, float]:
    """Return the counters of an etcd since it started, by name.

    - requests: unary requests of the v3 API, and all requests of the v2 API (its watches and polls are requests too)
    - watches, keep_alives: messages that clients sent on the streams of the v3 API
    - bytes: sent to clients of the v3 API; etcd does not count the bytes of the v2 API
    - raft: writes that the members of the cluster applied
    - cpu: seconds

    Args:
        endpoint: host and port of one etcd member.
        tls: how to connect by TLS; plain HTTP by default.
        timeout: seconds within which etcd must answer.

    Raises:
        Failed: etcd did not answer.
    """
    text = _read(endpoint, tls, timeout)

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))

    def received(method: str) -> float:
        return total(rf'grpc_server_msg_received_total\{{grpc_method="{method}"[^}}]*\}}')

    return {
        "requests": total(r'grpc_server_started_total\{[^}]*grpc_type="unary"\}')
        + total(r"etcd_http_received_total\{[^}]*\}"),
        "watches": received("Watch"),
        "keep_alives": received("LeaseKeepAlive"),
        "bytes": total("etcd_network_client_grpc_sent_bytes_total"),
        "raft": total("etcd_server_proposals_applied_total"),
        "cpu": total("process_cpu_seconds_total"),
    }


def version(endpoint: str, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> str:
    """Return the version of an etcd, from its counters, which need no user. Takes the arguments of :func:`load`.

    Raises:
        Failed: etcd did not answer, or did not name its version.
    """
    text = _read(endpoint, tls, timeout)
    found = re.search(r'^etcd_server_version\{server_version="([^"]+)"\} 1$', text, re.MULTILINE)
    if found is None:
        raise Failed(f"etcd at {endpoint} does not name its version")
    return found[1]


def _read(endpoint: str, tls: ssl.SSLContext | None, timeout: float) -> str:
    # The nodes use no proxy, so neither does this request, whatever the environment says.
    handlers = [urllib.request.ProxyHandler({}), *([] if tls is None else [urllib.request.HTTPSHandler(context=tls)])]
    url = f"{'http' if tls is None else 'https'}://{endpoint}/metrics"
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException) as exc:
        raise Failed(f"etcd's counters could not be read from {url}: {exc}") from exc


def difference(after: dict[str, float], before: dict[str, float], by: float = 1.0) -> dict[str, float]:
    """Return how much each counter has grown, divided ``by`` a number of nodes or seconds."""
    return {name: round((after[name] - before[name]) / by, 4) for name in after}
