"""What etcd has done so far, by its own counters."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.request

from benchmarks.crew import Failed

NAMES = ("requests", "watches", "keep_alives", "bytes", "raft", "cpu")


def load(endpoint: str, tls: ssl.SSLContext | None = None, patience: float = 30.0) -> dict[str, float]:
    """Return the counters of the etcd at ``endpoint`` by name, all from its start.

    requests: single requests, of the v3 API and of the v2 API (where watches and polls count too)
    watches, keep_alives: messages on the v3 API's streams
    bytes: sent to clients of the v3 API; etcd does not count those of the v2 API
    raft: writes, which all members of a cluster agree on
    cpu: seconds

    Raises Failed where etcd does not answer within ``patience`` seconds.
    """
    # Not by way of a proxy, whatever the environment says: no more than the nodes.
    handlers = [urllib.request.ProxyHandler({}), *([] if tls is None else [urllib.request.HTTPSHandler(context=tls)])]
    url = f"{'http' if tls is None else 'https'}://{endpoint}/metrics"
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=patience) as answer:
            text = answer.read().decode()
    except (OSError, http.client.HTTPException) as exc:
        raise Failed(f"etcd's counters could not be read from {url}: {exc}") from exc

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


def difference(after: dict[str, float], before: dict[str, float], by: float = 1.0) -> dict[str, float]:
    """Return what was done between two looks, divided ``by``."""
    return {name: round((after[name] - before[name]) / by, 4) for name in after}
