"""Turns the bytes that the fuzzer makes into values: every sequence of bytes gives some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

__all__ = ["ODD_NUMBERS", "ODD_TEXTS", "Reader"]

_T = TypeVar("_T")

ODD_NUMBERS = (
    *(0, 1, 2, 3, 5, 127, 128, 255, 256, 1024, 1025, 4096, 4097, 65535, 65536, 131071, 131072, 131073),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 10**10 - 1, 10**10, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30),
)
"""Numbers at the limits of something."""

ODD_TEXTS = (
    *(
        "",
        "a",
        "0",
        "00",
        "node-1",
        "node-10",
        "node-2",
        "node-01",
        "a.b",
        "é",
        "\u0661",
        "²",
        "\u202e",
        "\x00",
        "\x7f",
    ),
    *(
        "\x85",
        "\n",
        "\ud800",
        "\udcff",
        "\U0001f600",
        "..",
        "/",
        "%2F",
        "a/b",
        "a b",
        "a_1_2",
        "+0",
        "=x",
        "0x10",
        "1_0",
    ),
    *("localhost", "[::1]", "host:2379", "http://h", "0123456789abcdef", "true", "1e3", "nan", "-1", " ", "*"),
    *("a" * 255, "é" * 128, "a" * 1024, "a" * 1025, "9" * 300, "9" * 5000),
)
"""Texts that somebody once read wrongly."""


class Reader:
    """Reads values from bytes, front to back. When the bytes are used up, it goes on with zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next bytes, at most ``count``."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def byte(self) -> int:
        taken = self.take(1)
        return taken[0] if taken else 0

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def pick(self, values: Sequence[_T]) -> _T:
        return values[self.byte() % len(values)]

    def number(self) -> int:
        """Return an int of any size, often one at a limit."""
        kind = self.byte()
        if kind < 128:
            return kind - 8
        if kind < 224:
            number = ODD_NUMBERS[kind % len(ODD_NUMBERS)]
            return -number if self.byte() % 8 == 0 else number
        return int.from_bytes(self.take(kind % 9), "little", signed=True)

    def data(self) -> bytes:
        """Return some bytes, at most 255."""
        return self.take(self.byte())

    def text(self) -> str:
        """Return a text; not all of them are valid Unicode."""
        kind = self.byte()
        if kind < 128:
            return ODD_TEXTS[kind % len(ODD_TEXTS)]
        raw = self.take(kind % 32)
        return raw.decode("utf-8", "surrogateescape") if kind & 32 else raw.decode("latin-1")

    def plain(self) -> Any:
        """Return a value that JSON has."""
        kind = self.byte() % 8
        if kind < 3:
            return self.number()
        if kind < 5:
            return self.text()
        return self.pick((None, True, False, [], {}, 1.5, -0.0, 1e300, ["a"], {"a": 1}, [[]] * 3, float("inf")))

    def json(self, template: dict[str, Any]) -> bytes:
        """Return a JSON object like ``template``, with some fields changed; or other bytes."""
        kind = self.byte() % 16
        if kind == 0:
            return self.data()
        fields = dict(template)
        for _ in range(self.byte() % 4):
            names = [*fields, "status", "x"]
            name = self.pick(names)
            change = self.byte() % 8
            if change == 0:
                fields.pop(name, None)
            else:
                fields[name] = self.plain()
        text = json.dumps(fields, ensure_ascii=self.flag(), separators=(",", ":"))
        raw = text.encode("utf-8", "surrogatepass")
        if kind == 1:
            cut = self.byte() % (len(raw) + 1)
            return raw[:cut] + self.data() + raw[cut + self.byte() % 4 :]
        return raw + b" " * (self.byte() % 200 == 199) * 1_000_000
