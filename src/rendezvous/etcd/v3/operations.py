"""Conditions, operations and ranges: what requests to etcd's v3 API are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rendezvous.etcd.v3.messages import rpc_pb2

__all__ = [
    "DELETE",
    "PUT",
    "Condition",
    "Event",
    "KeyValue",
    "Message",
    "Operation",
    "absent",
    "compare",
    "delete_op",
    "get_op",
    "prefix_end",
    "put_op",
    "txn_op",
]

KeyValue = rpc_pb2.KeyValue
Event = rpc_pb2.Event
Condition = rpc_pb2.Compare
Operation = rpc_pb2.RequestOp
Message = Any
"""A request or an answer of any method; ``Call`` names their classes."""

PUT = rpc_pb2.Event.PUT
DELETE = rpc_pb2.Event.DELETE


def compare(key: bytes, field: str, value: Any, relation: str = "EQUAL") -> Condition:
    """Return a condition: ``field`` of ``key`` (``value``, ``version``, ``create_revision``, ...) against ``value``."""
    target = {"create_revision": "CREATE", "mod_revision": "MOD", "version": "VERSION", "value": "VALUE"}[field]
    return rpc_pb2.Compare(key=key, target=target, result=relation, **{field: value})


def absent(key: bytes) -> Condition:
    """Return the condition that ``key`` does not exist."""
    return compare(key, "create_revision", 0)


def get_op(key: bytes, end: bytes = b"") -> Operation:
    """Return the operation that reads ``key``, or all keys from ``key`` to before ``end``."""
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=end))


def put_op(key: bytes, value: bytes, lease: int = 0, **options: Any) -> Operation:
    """Return the operation that writes ``key``."""
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease, **options))


def delete_op(key: bytes, end: bytes = b"") -> Operation:
    """Return the operation that deletes ``key``, or all keys from ``key`` to before ``end``."""
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end))


def txn_op(
    conditions: Sequence[Condition], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
) -> Operation:
    """Return the operation that is a transaction within the transaction."""
    return rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(compare=conditions, success=then, failure=otherwise))


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with ``prefix``."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"
