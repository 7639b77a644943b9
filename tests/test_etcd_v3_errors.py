"""The table that turns the errors of gRPC and etcd into ours."""

from __future__ import annotations

import grpc
import pytest

from rendezvous.etcd.v3 import errors
from rendezvous.etcd.v3.errors import EtcdError, translate, translate_watch_cancel

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "kind", "retryable"),
    [
        (Code.NOT_FOUND, "etcdserver: requested lease not found", errors.LeaseNotFoundError, False),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", errors.CompactedError, False),
        (Code.OUT_OF_RANGE, "mvcc: required revision is a future revision", errors.FutureRevisionError, True),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", errors.StaleTokenError, True),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", errors.StaleTokenError, True),
        (Code.UNKNOWN, "auth: revision in header is old", errors.StaleTokenError, True),
        # The first code is that of etcd's list of errors, the second one is sent by etcd 3.5.1.
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", errors.BusyError, True),
        (Code.UNKNOWN, "etcdserver: too many requests", errors.BusyError, True),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", errors.NoSpaceError, True),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", errors.RefusedError, False),
        (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID", errors.RefusedError, False),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", errors.NoUserError, False),
        (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", errors.AuthDisabledError, False),
        (Code.UNAVAILABLE, "etcdserver: no leader", errors.UnavailableError, True),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.UnavailableError, True),
        (Code.CANCELLED, "", errors.UnavailableError, True),
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Ssl handshake "
         "failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", errors.TlsError, True),
        (Code.INVALID_ARGUMENT, "etcdserver: key is not provided", EtcdError, False),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max", EtcdError, False),
        (Code.UNIMPLEMENTED, "", EtcdError, False),
    ],
)  # fmt: skip
def test_each_error_has_its_class(code, details, kind, retryable):
    error = translate(code, details, "host:2379")
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.endpoint == "host:2379"
    assert str(error) == f"etcd at host:2379: {error.reason}"
    assert error.reason


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        (
            Code.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: Failed to connect to remote "
            "host: Connection refused",
            "Connection refused",
        ),
        (
            Code.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote "
            "host: connect: Connection refused (111)",
            "Connection refused (111)",
        ),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", "no answer in time"),
        (Code.CANCELLED, "", "no answer"),
        (Code.UNAVAILABLE, "etcdserver: no leader", "no leader"),
        (Code.UNIMPLEMENTED, "", "UNIMPLEMENTED"),
    ],
)
def test_the_reason_is_what_a_user_needs(code, details, reason):
    assert translate(code, details, "host:2379").reason == reason


@pytest.mark.parametrize(
    ("details", "advice"),
    [
        ("etcdserver: mvcc: database space exceeded", "etcdctl alarm disarm"),
        ("etcdserver: permission denied", "role"),
        ("etcdserver: authentication failed, invalid user ID or password", "check 'username' and its password"),
        ("etcdserver: user name is empty", "set 'username'"),
        ("etcdserver: authentication is not enabled", "remove 'username'"),
    ],
)
def test_the_reason_says_what_to_do(details, advice):
    assert advice in translate(Code.UNKNOWN, details, "host:2379").reason


@pytest.mark.parametrize(
    ("reason", "kind", "retryable"),
    [
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", errors.RefusedError, False),
        ("etcdserver: user name is empty", errors.RefusedError, False),
        ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", errors.RefusedError, False),
        ("etcdserver: mvcc: watcher is gone", EtcdError, True),
        ("", EtcdError, True),
    ],
)
def test_a_cancelled_watch(reason, kind, retryable):
    error = translate_watch_cancel(reason, "host:2379", has_user=True)
    assert type(error) is kind
    assert "code =" not in error.reason
    assert error.retryable is retryable
    assert error.reason


def test_a_refused_watch_says_what_to_do():
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    with_user, without_user = (translate_watch_cancel(reason, "host:2379", has_user) for has_user in (True, False))
    assert with_user.reason.startswith("permission denied; etcd's user (")
    assert "needs a role" in with_user.reason
    assert without_user.reason.startswith(
        "permission denied; this etcd requires a user: set 'username' and 'password_file'"
    )


def test_a_class_says_whether_a_retry_helps_and_the_argument_overrides_it():
    assert errors.UnavailableError("gone").retryable
    assert not errors.UnavailableError("gone", retryable=False).retryable
    assert not EtcdError("bad").retryable
    assert EtcdError("bad", retryable=True).retryable
    assert str(EtcdError("bad")) == "bad"


def test_what_is_not_printable_in_a_reason_is_escaped_and_what_is_long_is_cut():
    said = "user name \x1b[2J\r\n\u202e" + "x" * 1_000_000
    for error in (
        translate(Code.UNAVAILABLE, said, "host:2379"),
        translate(Code.INVALID_ARGUMENT, said, "host:2379"),
        translate(Code.PERMISSION_DENIED, f"permission denied {said}", "host:2379"),
        translate_watch_cancel(f"permission denied {said}", "host:2379", True),
        translate_watch_cancel(said, "host:2379", True),
    ):
        assert str(error).isprintable()
        assert r"user name \x1b[2J\r\n\u202exxx" in error.reason
        assert len(error.reason) < 500
