"""The key-value store of a round: the operations of ``torch.distributed.Store``, without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta

__all__ = ["PrefixStore", "Store"]


class Store(ABC):
    """A key-value store that nodes share. Keys and values may be ``str`` or ``bytes``; values come as ``bytes``."""

    # What torch's stores wait by default.
    _timeout = timedelta(seconds=300)

    @property
    def timeout(self) -> timedelta:
        """How long an operation waits for keys, and for a store that does not answer, unless told otherwise."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change :attr:`timeout`."""
        self._timeout = timeout

    @abstractmethod
    def set(self, key: str, value: str | bytes) -> None:
        """Write ``value``."""

    @abstractmethod
    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        """Return the value of ``key``; wait until there is one. Raises LookupError when the time is up."""

    @abstractmethod
    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all ``keys`` exist. Raises LookupError when the time is up."""

    @abstractmethod
    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all ``keys`` exist now."""

    @abstractmethod
    def add(self, key: str, num: int) -> int:
        """Add ``num`` to the decimal number under ``key`` (0 where there is none); return the sum."""

    @abstractmethod
    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Replace ``expected_value`` by ``desired_value``; return the value that is there then.

        Where there is no value yet, an empty ``expected_value`` writes; any other is returned and nothing written.
        """

    @abstractmethod
    def append(self, key: str, value: str | bytes) -> None:
        """Put ``value`` behind the value of ``key``."""

    @abstractmethod
    def delete_key(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""

    @abstractmethod
    def num_keys(self) -> int:
        """Return the number of keys in the whole store."""

    @abstractmethod
    def multi_get(self, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        """Return the values of ``keys``; wait until all exist. Raises LookupError when the time is up."""

    @abstractmethod
    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write many values. Raises ValueError where there are not as many values as keys."""


class PrefixStore(Store):
    """A store whose keys stand in another store behind ``prefix`` and a slash."""

    def __init__(self, prefix: str, store: Store) -> None:
        self._prefix = prefix
        self._store = store

    @property
    def underlying_store(self) -> Store:
        """The store that holds the keys."""
        return self._store

    @property
    def timeout(self) -> timedelta:
        """The time-out of the store that holds the keys."""
        return self._store.timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change the time-out of the store that holds the keys."""
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
        """See :meth:`Store.num_keys`: counts the keys of the underlying store, as torch does."""
        return self._store.num_keys()

    def multi_get(self, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        return self._store.multi_get(self._keys(keys), timeout)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        self._store.multi_set(self._keys(keys), values)
