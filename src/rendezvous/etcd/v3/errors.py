"""The errors of a request to etcd: one class for each kind that a caller treats differently.

A request that failed may have been applied, whatever the error.
"""

from __future__ import annotations

import re
from typing import ClassVar

import grpc

from rendezvous.utils import escaped

__all__ = [
    "AuthDisabledError",
    "BusyError",
    "CompactedError",
    "EtcdError",
    "FutureRevisionError",
    "LeaseNotFoundError",
    "NoSpaceError",
    "NoUserError",
    "RefusedError",
    "StaleTokenError",
    "TlsError",
    "UnavailableError",
    "translate",
    "translate_watch_cancel",
]


class EtcdError(Exception):
    """etcd, or the connection to it, failed a request.

    Args:
        reason: what etcd answered, or what happened to the connection.
        endpoint: the endpoint that was asked, ``host:port``.
        retryable: whether the same request may succeed later; by default what the class says.
    """

    RETRYABLE: ClassVar[bool] = False
    PAUSE: ClassVar[tuple[float, float]] = (0.02, 2.0)
    """The shortest and the longest pause before the next attempt, in seconds."""

    def __init__(self, reason: str, endpoint: str = "", *, retryable: bool | None = None) -> None:
        super().__init__(f"etcd at {endpoint}: {reason}" if endpoint else reason)
        self.reason = reason
        self.endpoint = endpoint
        self.retryable = self.RETRYABLE if retryable is None else retryable


class LeaseNotFoundError(EtcdError):
    """The request names a lease that etcd does not have."""


class CompactedError(EtcdError):
    """The request asks for a revision that etcd has compacted."""


class RefusedError(EtcdError):
    """etcd does not permit the request: the user, its password or its role is at fault."""


class NoUserError(RefusedError):
    """The request names no user, and etcd requires one."""


class AuthDisabledError(RefusedError):
    """A user cannot be authenticated, because authentication is not enabled."""


class StaleTokenError(EtcdError):
    """etcd does not accept the token of the user any more: authenticate again before the next attempt."""

    RETRYABLE = True


class FutureRevisionError(EtcdError):
    """The member that was asked does not have the revision yet."""

    RETRYABLE = True


class UnavailableError(EtcdError):
    """The endpoint did not answer, or has no leader: another endpoint may."""

    RETRYABLE = True


class TlsError(UnavailableError):
    """No TLS connection came about, because of a certificate. Final if this happens at all endpoints."""


class BusyError(EtcdError):
    """etcd has too many requests: wait longer than usual before the next attempt."""

    RETRYABLE = True
    PAUSE = (0.2, 2.0)


class NoSpaceError(EtcdError):
    """etcd's database has reached its quota. It accepts no writes until an operator makes room."""

    RETRYABLE = True
    PAUSE = (1.0, 10.0)


_GIVE_ROLE = (
    "etcd's user ('username', or the common name of 'ssl_cert') needs a role that may read and write all keys under "
    "'prefix'"
)
_SET_USER = (
    "this etcd requires a user: set 'username' and 'password_file', or 'ssl_cert' if etcd takes users from certificates"
)

# What etcd says, the class of the error, and what a user can do about it. The first text that matches decides.
# The same error comes with different codes from different releases: "too many requests" is RESOURCE_EXHAUSTED by
# etcd's list of errors, and UNKNOWN from etcd 3.5.1.
_BY_TEXT: tuple[tuple[str, type[EtcdError], str], ...] = (
    ("lease not found", LeaseNotFoundError, ""),
    ("has been compacted", CompactedError, ""),
    ("invalid auth token", StaleTokenError, ""),
    ("revision of auth store is old", StaleTokenError, ""),
    ("revision in header is old", StaleTokenError, ""),
    ("too many requests", BusyError, ""),
    (
        "database space exceeded",
        NoSpaceError,
        "compact and defragment etcd, then run 'etcdctl alarm disarm', or give it a higher --quota-backend-bytes",
    ),
    ("future revision", FutureRevisionError, ""),
    ("permission denied", RefusedError, _GIVE_ROLE),
    ("authentication failed", RefusedError, "check 'username' and its password"),
    ("user name is empty", NoUserError, _SET_USER),
    ("authentication is not enabled", AuthDisabledError, "remove 'username', or enable authentication in etcd"),
)

_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}
_TLS_TEXTS = (
    *("handshake failed", "security handshaker", "Hostname Verification", "Peer name"),
    *("CERTIFICATE", "certificate", "tls:"),
)

# etcd 3.5 gives only this as the reason for a cancelled watch if the user is missing or its token is too old.
_WATCH_REFUSED_TEXTS = ("permission denied", "user name is empty", "auth")

# What gRPC and etcd write in front of the reason. The address is the endpoint's, which the message names anyway.
_PREFIX = re.compile(
    r"^(failed to connect to all addresses; last error: )?((UNKNOWN|UNAVAILABLE|INTERNAL): )?"
    r"((ipv[46]|unix):\S+: )?(Failed to connect to remote host: )?(connect: )?"
    r"(rpc error: code = \w+ desc = )?(etcdserver: )?"
)
_WORDS = {"": "no answer", "Deadline Exceeded": "no answer in time"}


def translate(code: grpc.StatusCode, details: str, endpoint: str) -> EtcdError:
    """Return the error for what gRPC reports.

    Args:
        code: the status of the request.
        details: the words that came with it.
        endpoint: the endpoint that was asked, ``host:port``.
    """
    for text, kind, advice in _BY_TEXT:
        if text in details:
            return kind(_reason(details, advice), endpoint)
    if code not in _TRANSIENT:
        return EtcdError(_reason(details or code.name), endpoint)
    if any(text in details for text in _TLS_TEXTS):
        return TlsError(_reason(details), endpoint)
    return UnavailableError(_reason(details), endpoint)


def translate_watch_cancel(reason: str, endpoint: str, has_user: bool) -> EtcdError:
    """Return the error for a watch that etcd has cancelled, for another reason than a compaction.

    Args:
        reason: why, in etcd's words.
        endpoint: the endpoint that was asked, ``host:port``.
        has_user: whether the watch was started in the name of a user.
    """
    if any(text in reason for text in _WATCH_REFUSED_TEXTS):
        return RefusedError(_reason(reason, _GIVE_ROLE if has_user else _SET_USER), endpoint)
    return EtcdError(_reason(reason) if reason else "etcd cancelled a watch", endpoint, retryable=True)


def _reason(details: str, advice: str = "") -> str:
    reason = _PREFIX.sub("", details)
    reason = escaped(_WORDS.get(reason, reason))
    return f"{reason}; {advice}" if advice else reason
