"""How records are decoded: an error names the key, what it contains, and the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from rendezvous.api import RendezvousStateError
from rendezvous.utils import escaped, quoted

__all__ = ["bad_record", "decode_record", "printable", "problem_of"]

_T = TypeVar("_T")

_QUOTED_PROBLEM = 120  # characters of what msgspec says


def printable(data: bytes, limit: int = 200) -> str:
    """Return ``data`` as text for a message: at most ``limit`` bytes, with everything that is not printable escaped."""
    shown = escaped(data[:limit].decode("utf-8", "backslashreplace"), 4 * limit)
    return shown + ("..." if len(data) > limit else "")


def decode_record(key: bytes, data: bytes, decode: Callable[[bytes], _T]) -> _T:
    """Return what ``decode`` makes of the record under ``key``. Raises RendezvousStateError if it is not valid."""
    try:
        return decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:  # no ValueError before msgspec 0.21
        raise bad_record(key, data, problem_of(exc)) from None


_JSON_TYPES = {
    "array": "an array",
    "bool": "true or false",
    "bytes": "base64",
    "float": "a fraction",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
}


def problem_of(exc: Exception) -> str:
    """Return in one short line what is wrong, with the name of the field first."""
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    if isinstance(exc, UnicodeDecodeError):
        return "it is not UTF-8"
    text, _, path = str(exc).rpartition(" - at `$")  # msgspec's form: Expected `int` >= 0 - at `$.pid`
    text, name = (text, path.rstrip("`").lstrip(".")) if text else (str(exc), "")
    missing = re.match("Object missing required field `(.*)`", text)
    if missing:
        return f"field '{missing[1]}' is missing"
    text = re.sub("`([a-z]+)`", lambda word: _JSON_TYPES.get(word[1], f"'{word[1]}'"), text[:_QUOTED_PROBLEM])
    text = printable(text.replace("Expected", "expected", 1).encode("utf-8", "backslashreplace"))
    return f"field '{printable(name.encode())}': {text}" if name else text


def bad_record(key: bytes, data: bytes, problem: str) -> RendezvousStateError:
    """Return the error of a record that is not valid, and of which ``problem`` says why."""
    return RendezvousStateError(
        f"the etcd key '{printable(key)}' contains {quoted(data)}, which is not a valid record ({problem}); "
        f"another program or another version wrote it"
    )
