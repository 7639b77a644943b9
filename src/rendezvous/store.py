"""The key-value store of a round: the operations of ``torch.distributed.Store``, without torch.

The functions below the classes hold what all stores on etcd check and report in the same way.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta

from rendezvous.utils import quoted

__all__ = ["PrefixStore", "Store"]

Key = str | bytes

_MAX_NAME = 200  # characters of a key that a message shows
_MAX_DIGITS = 64  # a longer value is not read as a number: reading it may take seconds


class Store(ABC):
    """A key-value store that nodes share. Keys and values are ``str`` or ``bytes``; results are ``bytes``."""

    _timeout = timedelta(seconds=300)  # the default of torch's stores

    @property
    def timeout(self) -> timedelta:
        """How long an operation waits by default: for keys, and for a store that does not answer."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change :attr:`timeout`."""
        self._timeout = timeout

    @abstractmethod
    def set(self, key: str, value: str | bytes) -> None:
        """Write ``value``."""

    @abstractmethod
    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        """Wait until ``key`` exists and return its value. Raises LookupError after ``timeout``."""

    @abstractmethod
    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all ``keys`` exist. Raises LookupError after ``timeout``."""

    @abstractmethod
    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all ``keys`` exist now."""

    @abstractmethod
    def add(self, key: str, num: int) -> int:
        """Add ``num`` to the decimal number under ``key`` (0 if there is none) and return the sum.

        Raises:
            TypeError: ``num`` is not an integer.
            ValueError: the value under ``key`` is not a number, or ``num`` or the sum does not fit into 64 bits.
        """

    @abstractmethod
    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Write ``desired_value`` if the value is ``expected_value``; return the value that is stored afterwards.

        If ``key`` does not exist, an empty ``expected_value`` writes; any other is returned, and nothing is written.
        """

    @abstractmethod
    def append(self, key: str, value: str | bytes) -> None:
        """Append ``value`` to the value of ``key``."""

    @abstractmethod
    def delete_key(self, key: str) -> bool:
        """Delete ``key``; return whether it existed."""

    @abstractmethod
    def num_keys(self) -> int:
        """Return the number of keys in the whole store."""

    @abstractmethod
    def list_keys(self) -> list[str]:
        """Return the keys of the store, sorted by their bytes."""

    @abstractmethod
    def multi_get(self, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        """Wait until all ``keys`` exist and return their values. Raises LookupError after ``timeout``."""

    @abstractmethod
    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write many values. Raises ValueError if there are not as many values as keys."""


class PrefixStore(Store):
    """A part of another store: the keys that begin with ``prefix`` and a slash."""

    def __init__(self, prefix: str, store: Store) -> None:
        self._prefix = prefix
        self._store = store

    @property
    def underlying_store(self) -> Store:
        """The store that holds the keys."""
        return self._store

    @property
    def timeout(self) -> timedelta:
        """The timeout of the underlying store."""
        return self._store.timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change the timeout of the underlying store."""
        self._store.set_timeout(timeout)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _keys(self, keys: Sequence[str]) -> list[str]:
        return [self._key(key) for key in keys]

    def set(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        self._store.set(self._key(key), value)

    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        """See :meth:`Store.get`."""
        return self._store.get(self._key(key), timeout)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`."""
        self._store.wait(self._keys(keys), timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """See :meth:`Store.check`."""
        return self._store.check(self._keys(keys))

    def add(self, key: str, num: int) -> int:
        """See :meth:`Store.add`."""
        return self._store.add(self._key(key), num)

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        return self._store.compare_set(self._key(key), expected_value, desired_value)

    def append(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        self._store.append(self._key(key), value)

    def delete_key(self, key: str) -> bool:
        """See :meth:`Store.delete_key`."""
        return self._store.delete_key(self._key(key))

    def num_keys(self) -> int:
        """Return the number of keys in the underlying store, as torch's ``PrefixStore`` does."""
        return self._store.num_keys()

    def list_keys(self) -> list[str]:
        """Return the keys with the prefix, without it, as torch's ``PrefixStore`` does."""
        prefix = self._key("")
        return [key[len(prefix) :] for key in self._store.list_keys() if key.startswith(prefix)]

    def multi_get(self, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        return self._store.multi_get(self._keys(keys), timeout)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        self._store.multi_set(self._keys(keys), values)


def to_bytes(value: str | bytes) -> bytes:
    """Return a key or a value as bytes. Text becomes UTF-8, and its surrogate escapes the bytes that they stand for.

    Raises:
        ValueError: it is neither ``str`` nor ``bytes``.
    """
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a key or value of the etcd store must be str or bytes, not {type(value).__name__}")


def to_text(key: Key) -> str:
    """Return a key as text, the reverse of :func:`to_bytes`."""
    return key.decode(errors="surrogateescape") if isinstance(key, bytes) else key


def quoted_key(key: Key) -> str:
    """Return a key in quotes, for messages."""
    return quoted(to_text(key), _MAX_NAME)


def to_amount(key: Key, num: object) -> int:
    """Return ``num``, which is to be added to the number under ``key``, as an int.

    Raises:
        TypeError: it is not an integer.
        ValueError: it does not fit into 64 bits.
    """
    try:
        amount = int(operator.index(num))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"the amount added to {quoted_key(key)} in the etcd store must be an int, not {repr(num)[:60]} "
            f"({type(num).__name__})"
        ) from None
    if not _fits(amount):
        raise ValueError(
            f"the amount added to {quoted_key(key)} in the etcd store must fit into 64 bits, but it has "
            f"{amount.bit_length() + 1}"
        )
    return amount


def to_number(key: Key, value: bytes) -> int:
    """Return the number that is stored under ``key``; an empty value is 0.

    Raises:
        ValueError: the value is not a decimal number that fits into 64 bits.
    """
    if len(value) <= _MAX_DIGITS:
        try:
            number = int(value or b"0")
        except ValueError:
            pass
        else:
            if _fits(number):
                return number
            raise ValueError(
                f"the value of {quoted_key(key)} in the etcd store does not fit into 64 bits: {quoted(value)}"
            )
    raise ValueError(f"the value of {quoted_key(key)} in the etcd store is not a number: {quoted(value)}")


def add_up(key: Key, number: int, amount: int) -> int:
    """Return the sum of the number under ``key`` and ``amount``. Raises ValueError if it does not fit into 64 bits."""
    if not _fits(number + amount):
        raise ValueError(
            f"the value of {quoted_key(key)} in the etcd store is {number}; if {amount} is added to it, the sum does "
            f"not fit into 64 bits"
        )
    return number + amount


def missing_keys_message(keys: Sequence[Key], seconds: float) -> str:
    """Return the message of the LookupError for ``keys`` that did not appear within ``seconds``."""
    names = [quoted_key(key) for key in keys[:5]]
    subject = f"the key {names[0]}" if len(keys) == 1 else f"the keys {', '.join(names)}"
    if len(keys) > len(names):
        subject += f" and {len(keys) - len(names)} more"
    return f"{subject} did not appear in the etcd store within {seconds:g} s"


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63
