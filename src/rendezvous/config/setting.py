"""The kinds of settings: how a value is read from a configuration and checked.

Values may be strings, as torchrun passes them: ``"30"``, ``"true"``.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rendezvous.api import RendezvousParameters

__all__ = ["Backend", "Boolean", "Choice", "File", "Integer", "Secret", "Setting", "Text", "unprintable"]

_T = TypeVar("_T")
_N = TypeVar("_N", int, "int | None")

_LARGEST = 10**9


class Backend(enum.Enum):
    """A protocol, and for the dynamic one the API of etcd that it uses."""

    COORDINATED = "etcd-v3"
    DYNAMIC_V2 = "etcd-v2"
    DYNAMIC_V3 = "etcd-v2 on the v3 API"
    LEGACY = "etcd"


@dataclass(frozen=True)
class Setting(ABC, Generic[_T]):
    """One configuration key.

    Attributes:
        name: the key.
        default: the value if the key is absent.
        help: one sentence that says what it does.
        backends: the backends that have it.
        unit: the unit of the value, if it has one.
        default_help: how the default is described, if the value alone does not say it.
    """

    name: str
    default: _T
    help: str
    backends: tuple[Backend, ...]
    unit: str = field(default="", kw_only=True)
    default_help: str = field(default="", kw_only=True)

    @property
    @abstractmethod
    def type(self) -> str:
        """The type of the value, or its choices, in words."""

    @property
    def type_text(self) -> str:
        """The type, the range and the unit of the value, in words."""
        return f"{self.type}, in {self.unit}" if self.unit else self.type

    @property
    def default_text(self) -> str:
        """The default in words; empty if there is none."""
        if self.default_help:
            return self.default_help
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default or "")

    @property
    def backend_names(self) -> list[str]:
        """The names of the backends that have it: ``etcd-v2`` stands for both APIs."""
        both = {Backend.DYNAMIC_V2, Backend.DYNAMIC_V3} <= set(self.backends)
        return [backend.value for backend in self.backends if not (both and backend is Backend.DYNAMIC_V3)]

    @abstractmethod
    def parse(self, params: RendezvousParameters, value: Any) -> _T:
        """Return the value that was given, which is not None. Raises ValueError."""

    def read(self, params: RendezvousParameters) -> _T:
        """Return the value in ``params``, or the default.

        Raises:
            ValueError: the value is malformed or out of range; the message names the key, the value and the range.
        """
        value = params.get(self.name)
        return self.default if value is None else self.parse(params, value)

    def error(self, problem: str) -> ValueError:
        """Return the error for a wrong value."""
        return ValueError(f"The rendezvous configuration option '{self.name}' {problem}.")


@dataclass(frozen=True)
class Integer(Setting[_N]):
    """An integer from ``least`` to ``most``."""

    least: int = field(default=1, kw_only=True)
    most: int = field(default=_LARGEST, kw_only=True)

    @property
    def type(self) -> str:
        """See :attr:`Setting.type`."""
        return "integer"

    @property
    def type_text(self) -> str:
        """See :attr:`Setting.type_text`."""
        least = f" from {self.least}" if self.least >= 0 else ""
        return f"integer{least}, in {self.unit}" if self.unit else f"integer{least}"

    def parse(self, params: RendezvousParameters, value: Any) -> _N:
        """See :meth:`Setting.parse`."""
        number = params.get_as_int(self.name)
        if isinstance(value, float) and number != value:
            raise self.error(f"must be an integer, not {value}")
        if number is None or not self.least <= number <= self.most:
            raise self.error(f"must be an integer from {self.least} to {self.most}, not {number}")
        return number


@dataclass(frozen=True)
class Boolean(Setting[bool]):
    """``true`` or ``false``, in the spellings of :meth:`RendezvousParameters.get_as_bool`."""

    @property
    def type(self) -> str:
        """See :attr:`Setting.type`."""
        return "true or false"

    def parse(self, params: RendezvousParameters, value: Any) -> bool:
        """See :meth:`Setting.parse`."""
        return params.get_as_bool(self.name) is True


@dataclass(frozen=True)
class Text(Setting[str]):
    """A text without control characters. Blanks around it are dropped; a blank text means the default."""

    @property
    def type(self) -> str:
        """See :attr:`Setting.type`."""
        return "text"

    def parse(self, params: RendezvousParameters, value: Any) -> str:
        """See :meth:`Setting.parse`."""
        text = str(value).strip()
        if (problem := unprintable(text)) is not None:
            raise self.error(f"must not contain {problem}; it is {text!r}")
        return text or self.default


@dataclass(frozen=True)
class Choice(Text):
    """One of ``choices``, in any letter case."""

    choices: tuple[str, ...] = field(kw_only=True)

    @property
    def type(self) -> str:
        """See :attr:`Setting.type`."""
        return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"

    def parse(self, params: RendezvousParameters, value: Any) -> str:
        """See :meth:`Setting.parse`."""
        choice = super().parse(params, value).lower()
        if choice not in self.choices:
            raise self.error(f"must be one of {', '.join(self.choices)}, not '{choice}'")
        return choice


@dataclass(frozen=True)
class File(Text):
    """The path of a file that exists; empty for none."""

    @property
    def type(self) -> str:
        """See :attr:`Setting.type`."""
        return "path"

    def parse(self, params: RendezvousParameters, value: Any) -> str:
        """See :meth:`Setting.parse`."""
        path = super().parse(params, value)
        if path and not os.path.isfile(path):
            raise self.error(f"names '{path}', which is not a file")
        return path

    def content(self, params: RendezvousParameters) -> bytes | None:
        """Return what the file contains, or None if none is given. Raises ValueError if it cannot be read."""
        path = self.read(params)
        if not path:
            return None
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as exc:
            raise self.error(f"names '{path}', which cannot be read: {exc.strerror}") from None


@dataclass(frozen=True)
class Secret(Text):
    """A text that is never shown."""

    def parse(self, params: RendezvousParameters, value: Any) -> str:
        """See :meth:`Setting.parse`."""
        text = str(value).strip()
        if (problem := unprintable(text)) is not None:
            raise self.error(f"must not contain {problem}")
        return text


def unprintable(text: str) -> str | None:
    """Return what makes ``text`` unfit for a key in etcd or a line of a log, or None."""
    for character in text:
        if character < " " or "\x7f" <= character < "\xa0":
            return "control characters"
        if "\ud800" <= character <= "\udfff":
            return "bytes that are not UTF-8"
    return None
