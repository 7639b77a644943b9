"""Endpoints, the natural order of host names, free ports, the keys of a run, and text for messages."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from urllib.parse import quote

__all__ = [
    "escaped",
    "format_endpoint",
    "get_free_port",
    "listed",
    "natural_key",
    "parse_rendezvous_endpoint",
    "parse_rendezvous_endpoints",
    "quoted",
    "run_root",
]

_DIGITS = re.compile(rb"([0-9]+)")
_NAMES_SHOWN = 8
_HOST = re.compile(r"[\w.:%-]+", re.ASCII)


def parse_rendezvous_endpoint(endpoint: str | None, default_port: int) -> tuple[str, int]:
    """Split one endpoint into its host and port.

    Args:
        endpoint: ``host``, ``host:port``, ``[ipv6]`` or ``[ipv6]:port``; None or a blank text means ``localhost``.
        default_port: the port if the endpoint does not contain one.

    Returns:
        The host (an IPv6 address without its brackets) and the port.

    Raises:
        ValueError: the endpoint is not of that form.
    """
    text = (endpoint or "").strip()
    if not text:
        return "localhost", default_port
    if "://" in text:
        raise ValueError(
            f"The rendezvous endpoint '{text}' starts with a scheme; give host:port only and choose the scheme "
            f"with the configuration option 'protocol' (http or https)."
        )
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"The rendezvous endpoint '{text}' must be of the form [ipv6-address]:port.")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        raise ValueError(
            f"The rendezvous endpoint '{text}' contains more than one colon; put an IPv6 address into brackets: "
            f"[address]:port."
        )
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"The host of the rendezvous endpoint '{text}' must be a host name, an IPv4 address, or an IPv6 "
            f"address in brackets."
        )
    return host, default_port if port is None else _parse_port(port, text)


def _parse_port(port: str, endpoint: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 2**16):
        raise ValueError(
            f"The port of the rendezvous endpoint '{endpoint}' must be an integer from 0 to 65535, not '{port}'."
        )
    return int(port)


def parse_rendezvous_endpoints(endpoints: str | None, default_port: int) -> list[tuple[str, int]]:
    """Split a comma-separated list of endpoints, each of the form that :func:`parse_rendezvous_endpoint` takes.

    Returns:
        At least one host and port, in their order, without duplicates.

    Raises:
        ValueError: an endpoint is malformed or empty.
    """
    parts = (endpoints or "").split(",")
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise ValueError(f"The list of rendezvous endpoints '{endpoints}' contains an empty one.")
    return list(dict.fromkeys(parse_rendezvous_endpoint(part, default_port) for part in parts))


def format_endpoint(host: str, port: int) -> str:
    """Join host and port: the inverse of :func:`parse_rendezvous_endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def natural_key(host: str) -> tuple[bytes | int, ...]:
    """Return a sort key that puts ``node-2`` before ``node-10``: text and numbers alternate, text first."""
    parts: list[bytes | int] = list(_DIGITS.split(host.encode()))
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts)


def get_free_port(host: str = "") -> int:
    """Return a TCP port that was free just now on ``host`` (by default: on all interfaces)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def listed(names: Sequence[str], count: int | None = None) -> str:
    """Return the first of ``names`` in one line, and how many more there are.

    Args:
        names: the names, or the first of them.
        count: the number of all names; ``len(names)`` by default.
    """
    shown = names[:_NAMES_SHOWN]
    more = (len(names) if count is None else count) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def quoted(value: str | bytes, limit: int = 60) -> str:
    """Return ``value`` in quotes, for a message: what is not printable is escaped, and a long value is cut.

    Args:
        value: the value. It may come from anyone who can write to etcd.
        limit: how many bytes or characters are shown; the message names the length of a longer value.
    """
    if len(value) <= limit:
        return repr(value)
    unit = "bytes" if isinstance(value, bytes) else "characters"
    return f"{value[:limit]!r}... ({len(value)} {unit})"


def escaped(text: str, limit: int = 300) -> str:
    """Return ``text`` for a message, without quotes: what is not printable is escaped, and what is too long is cut.

    Args:
        text: the text. It may come from anyone who can write to etcd, or from a proxy in between.
        limit: how many characters are shown.
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit])
    return shown + ("..." if len(text) > limit else "")


def run_root(prefix: str, run_id: str) -> bytes:
    """Return the prefix of all keys of a run on etcd's v3 API: ``<prefix>/<run id>/``, with the run id quoted."""
    return f"{prefix.rstrip('/')}/{quote(run_id, safe='')}/".encode()
