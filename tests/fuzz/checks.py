"""What all targets check: that twins agree, which errors come out, and that messages are fit for a log."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from rendezvous.api import RendezvousStateError
from rendezvous.config.setting import unprintable

__all__ = ["check_message", "outcome", "refusal", "same", "twins"]

_MAX_MESSAGE = 4000  # characters


def twins(name: str) -> list[Any]:
    """Return the pure module of the core, and the compiled one if it is built."""
    modules = [importlib.import_module(f"rendezvous._core._{name}_py")]
    try:
        modules.append(importlib.import_module(f"rendezvous._core._{name}_c"))
    except ModuleNotFoundError:
        pass
    return modules


def outcome(call: Callable[[], Any], *errors: type[Exception]) -> Any:
    """Return what a call returns, or the class and the message of one of ``errors``. All others are faults."""
    try:
        return call()
    except errors as exc:
        return type(exc), str(exc)


def same(outcomes: list[Any], what: str) -> Any:
    """Check that the twins agree, and return what they agree on."""
    first, *others = outcomes
    for other in others:
        equal = first == other and type(first) is type(other)
        assert equal, f"{what}: the twins differ: {first!r:.500} {other!r:.500}"
    return first


def refusal(value: Any) -> str | None:
    """Return the message if an outcome is a RendezvousStateError, checked; else None."""
    failed = isinstance(value, tuple) and value and isinstance(value[0], type)
    if failed and issubclass(value[0], RendezvousStateError):
        check_message(value[1])
        return str(value[1])
    return None


def check_message(message: str) -> None:
    """Check that a message is one line without control characters, and not a long one."""
    assert message, "an error without a message"
    assert unprintable(message) is None, f"a message with characters that cannot be printed: {message!r:.500}"
    assert len(message) <= _MAX_MESSAGE, f"a message of {len(message)} characters: {message:.200}"
