"""The errors of a request to etcd: one class for each kind that a caller treats differently.

A request that failed may have been applied, whatever the error.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CompactedError",
    "EtcdError",
    "LeaseNotFoundError",
    "NoSpaceError",
    "RefusedError",
    "UnavailableError",
]


class EtcdError(Exception):
    """etcd, or the connection to it, failed a request.

    Args:
        message: the endpoint and what it answered.
        retryable: whether the same request may succeed later.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class LeaseNotFoundError(EtcdError):
    """The request names a lease that etcd does not have."""


class CompactedError(EtcdError):
    """The request asks for a revision that etcd has compacted."""


class RefusedError(EtcdError):
    """etcd does not permit the request: the user, its password or its role is at fault."""


class _RetryableError(EtcdError):
    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message, retryable=retryable)


class UnavailableError(_RetryableError):
    """The endpoint did not answer, or has no leader."""


class BusyError(_RetryableError):
    """etcd has too many requests: wait longer than usual before the next attempt."""


class NoSpaceError(_RetryableError):
    """etcd's database has reached its quota and takes no writes until an operator makes room."""
