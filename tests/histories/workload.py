"""What the clients of a history do: random operations, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

SUM = "sum"
"""Nothing but additions change this key."""

LOG = "log"
"""Nothing but appends change this key; each appends a name that no other does, and a semicolon."""

NUMBERS, TEXTS = ("n0", "n1"), ("t/first", "t/second")

WHOLE = ("a1", "a2", "a3", "b")
"""The keys of histories with operations on the whole store."""


class Operation(NamedTuple):
    """An operation of the store.

    Attributes:
        op: the name of the method.
        keys: the keys, as many as the method takes.
        values: the values to store.
        amount: of an addition.
        expected: of a compare-and-set.
        seconds: how long a blocking read may wait.
        hasty: whether it gives up early if etcd does not answer.
    """

    op: str
    keys: list[str]
    values: list[str] = []  # noqa: RUF012
    amount: int = 0
    expected: str = ""
    seconds: float = 0.0
    hasty: bool = False

    def fields(self) -> dict[str, Any]:
        """Return what the history says about the call."""
        fields = {"op": self.op, "keys": self.keys}
        if self.values:
            fields["values"] = self.values
        if self.op == "add":
            fields["amount"] = self.amount
        if self.op == "compare_set":
            fields["expected"] = self.expected
        return fields


def _wait(op: str, keys: list[str], rng: random.Random) -> Operation:
    return Operation(op, keys, seconds=rng.choice((0.0, 0.05, 0.5)))


def _number(rng: random.Random, name: str) -> Operation:
    """Return an operation on a number: on a counter as well as on a plain value."""
    key = rng.choice(NUMBERS)
    kind = rng.choice(("add", "add", "add", "set", "compare_set", "delete_key", "get", "get", "wait"))
    if kind == "add":
        return Operation("add", [key], amount=rng.choice((1, 1, 1, 5, -2)))
    if kind == "set":
        return Operation("set", [key], [str(rng.randrange(20))])
    if kind == "compare_set":
        expected = rng.choice(("", str(rng.randrange(20))))
        return Operation("compare_set", [key], [str(rng.randrange(20))], expected=expected)
    return _wait(kind, [key], rng) if kind in ("get", "wait") else Operation(kind, [key])


def _text(rng: random.Random, name: str) -> Operation:
    key = rng.choice(TEXTS)
    kind = rng.choice(("set", "append", *["compare_set"] * 2, *["delete_key"] * 2, "get", "get", "check"))
    if kind in ("set", "append"):
        return Operation(kind, [key], [name])
    if kind == "compare_set":
        return Operation(kind, [key], [name], expected=rng.choice(("", "", "x")))
    return _wait(kind, [key], rng) if kind == "get" else Operation(kind, [key])


def _several(rng: random.Random, name: str) -> Operation:
    kind = rng.choice(("multi_set", "multi_get", "wait"))
    keys = sorted(rng.sample(NUMBERS + TEXTS, 2))
    if kind == "multi_set":
        return Operation(kind, keys, [str(rng.randrange(20)) if key in NUMBERS else name for key in keys])
    return _wait(kind, keys, rng)


def _once(rng: random.Random, name: str) -> Operation:
    """Return an operation on the keys that tell whether a change was lost or applied twice."""
    kind = rng.choice(("add", "append", "get"))
    if kind == "append":
        return Operation("append", [LOG], [f"{name};"])
    if kind == "get":
        return Operation("get", [rng.choice((SUM, LOG, LOG))])
    # 1 is added by one write, without a read; other amounts by compare-and-swap.
    return Operation("add", [SUM], amount=rng.choice((1, 3)))


def by_key(rng: random.Random, name: str) -> Operation:
    """Return an operation of a history that is checked key by key."""
    make: Callable[[random.Random, str], Operation] = rng.choice((_number, _number, _text, _text, _several, _once))
    return make(rng, name)._replace(hasty=rng.random() < 0.15)


def whole(rng: random.Random, name: str) -> Operation:
    """Return an operation of a history that is checked as a whole."""
    kind = rng.choice(("set", "set", "delete_key", "delete_key", "multi_set", *["check"] * 2, "num_keys", "list_keys"))
    if kind in ("num_keys", "list_keys"):
        return Operation(kind, [])
    keys = sorted(rng.sample(WHOLE, 2 if kind in ("multi_set", "check") else 1))
    values = [name for _ in keys] if kind in ("set", "multi_set") else []
    return Operation(kind, keys, values, hasty=rng.random() < 0.1)


MIXES = {"by key": by_key, "whole": whole}


def final(mix: str) -> list[Operation]:
    """Return the reads at the end of a history, after all faults."""
    if mix == "whole":
        return [Operation("num_keys", []), Operation("list_keys", [])]
    return [Operation("get", [key], seconds=0.0) for key in (SUM, LOG, *NUMBERS, *TEXTS)]
