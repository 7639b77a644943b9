"""The requests to etcd that have one answer."""

from __future__ import annotations

from enum import Enum
from typing import Any

from rendezvous.etcd.v3.messages import rpc_pb2

__all__ = ["Call"]


class Call(Enum):
    """The requests that have one answer. A user with a role for the prefix may make all of them.

    Attributes:
        method: the service and the method.
        request: the class of the request message.
        response: the class of the answer.
        task: what the method does, in words that follow "etcd did not".
    """

    RANGE = ("KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, "read the keys")
    PUT = ("KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse, "write the key")
    DELETE = ("KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse, "delete the keys")
    TXN = ("KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, "carry out a transaction")
    GRANT = ("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse, "grant a lease")
    REVOKE = ("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse, "revoke a lease")
    AUTHENTICATE = (
        "Auth/Authenticate",
        rpc_pb2.AuthenticateRequest,
        rpc_pb2.AuthenticateResponse,
        "authenticate the user",
    )

    def __init__(self, method: str, request: Any, response: Any, task: str) -> None:
        self.method = method
        self.request = request
        self.response = response
        self.task = task
