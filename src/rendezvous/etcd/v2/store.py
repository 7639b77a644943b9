"""A key-value store on etcd's v2 API."""

from __future__ import annotations

import random
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from rendezvous._core import Backoff, compare_and_swap
from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v2.client import etcd_module, key_path, retry, translate_errors
from rendezvous.store import Store

__all__ = ["EtcdStore", "cas_delay"]

_T = TypeVar("_T")

# How much of a value an error quotes, in bytes.
_QUOTED = 60


def cas_delay() -> None:
    """Sleep for a random time of at most 0.1 s, as torch's function of this name does. This module does not use it."""
    time.sleep(random.uniform(0, 0.1))


class EtcdStore(Store):
    """A store on etcd's v2 API. Keys and values are stored in base64 under a prefix, as torch's ``EtcdStore`` does.

    An operation only reads, writes and watches the keys that are its arguments. While etcd cannot be reached, it is
    repeated until the timeout.

    Args:
        etcd_client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        etcd_store_prefix: the directory in etcd.
        timeout: how long an operation waits; 300 s by default, as for torch's stores.

    Raises:
        ImportError: python-etcd is not installed.
    """

    def __init__(self, etcd_client: Any, etcd_store_prefix: str, timeout: timedelta | None = None) -> None:
        self._etcd = etcd_module()
        self.client = etcd_client
        self.prefix = etcd_store_prefix if etcd_store_prefix.endswith("/") else etcd_store_prefix + "/"
        if timeout is not None:
            self.set_timeout(timeout)

    def _path(self, key: str | bytes) -> str:
        # base64 may contain slashes, and etcd then stores the key in a directory. The path is unique all the same.
        return key_path(self.prefix + _encode(key))

    # Requests.

    def _deadline(self, timeout: timedelta | None = None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout).total_seconds()

    def _retry(self, what: str, call: Callable[[], _T], deadline: float) -> _T:
        """See :func:`rendezvous.etcd.v2.client.retry`."""
        return retry(f"the etcd store cannot {what}", call, deadline)

    def _read(self, key: str, deadline: float) -> tuple[Any, int]:
        """Return etcd's response for ``key`` (None if it does not exist), and etcd's index at that moment."""
        path = self._path(key)
        try:
            result = self._retry(f"read '{key}'", lambda: self.client.read(path), deadline)
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return result, result.etcd_index

    def _watch(self, path: str, index: int, timeout: float) -> Any:
        return translate_errors(
            f"the etcd store cannot watch '{path}'", lambda: self.client.watch(path, index=index, timeout=timeout)
        )

    def _await(self, key: str, deadline: float) -> bytes | None:
        """Return the value of ``key`` once it exists, or None at the deadline."""
        path = self._path(key)
        while True:
            result, index = self._read(key, deadline)
            while result is None or result.value is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    result = self._watch(path, index + 1, left)
                except (self._etcd.EtcdWatchTimedOut, self._etcd.EtcdEventIndexCleared, RendezvousConnectionError):
                    break
                index = result.modifiedIndex
            else:
                return b64decode(result.value)

    def _change(self, key: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Replace the value of ``key`` by ``change(value)``, atomically and once; return the value that is then stored.

        Raises:
            RendezvousConnectionError: etcd could not be reached, or it is not known whether a write was applied.
        """
        path, deadline = self._path(key), self._deadline()
        lost: list[int | None] = []  # the index that a write with an unknown outcome should have replaced

        def read() -> tuple[bytes | None, Any] | None:
            result, _ = self._read(key, deadline)
            token = None if result is None else result.modifiedIndex
            if lost and lost != [token]:
                raise unknown()
            return None if result is None else (b64decode(result.value), token)

        def write(value: bytes | None, token: int | None) -> tuple[bytes | None, Any, bool] | None:
            encoded = _encode(value or b"")
            condition = {"prevExist": False} if token is None else {"prevIndex": token}
            try:
                result = translate_errors(
                    f"the etcd store cannot write '{key}'",
                    lambda: self.client.write(path, encoded, **condition),
                )
                return value, result.modifiedIndex, True
            except (self._etcd.EtcdCompareFailed, self._etcd.EtcdAlreadyExist, self._etcd.EtcdKeyNotFound):
                if lost:
                    raise unknown() from None
                return None
            except RendezvousConnectionError as exc:
                if not exc.retryable:
                    raise
                lost[:] = [token]
                return None

        def unknown() -> RendezvousConnectionError:
            return RendezvousConnectionError(
                f"the etcd store lost its connection while it changed '{key}', whose value is a different one now: it "
                f"is not known whether the change was applied, and it is not repeated"
            )

        value, _, _, _ = compare_and_swap(read, write, change, Backoff(), deadline)
        return value

    # The operations.

    def set(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        path, encoded = self._path(key), _encode(value)
        self._retry(f"write '{key}'", lambda: self.client.write(path, encoded), self._deadline())

    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        """See :meth:`Store.get`."""
        return self.multi_get([key], timeout)[0]

    def wait(self, keys: Sequence[str], override_timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`. The second parameter has the same name as in torch's ``EtcdStore``."""
        self.multi_get(keys, override_timeout)

    def multi_get(self, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        deadline = self._deadline(timeout)
        values = []
        for key in keys:
            value = self._await(key, deadline)
            if value is None:
                seconds = (self.timeout if timeout is None else timeout).total_seconds()
                raise LookupError(f"the key '{key}' did not appear in the etcd store within {seconds:g} s")
            values.append(value)
        return values

    def check(self, keys: Sequence[str]) -> bool:
        """See :meth:`Store.check`."""
        deadline = self._deadline()
        return all(self._read(key, deadline)[0] is not None for key in keys)

    def add(self, key: str, num: int) -> int:
        """See :meth:`Store.add`.

        Raises:
            RendezvousConnectionError: etcd could not be reached, or it is not known whether the amount was added.
            TypeError: ``num`` is not an integer.
            ValueError: the value under ``key`` is not a decimal number.
        """
        if not isinstance(num, int):
            raise TypeError(
                f"the amount added to '{key}' in the etcd store must be an int, not {repr(num)[:_QUOTED]} "
                f"({type(num).__name__})"
            )

        def increase(value: bytes | None) -> bytes:
            try:
                return str(int(value or b"0") + num).encode()
            except ValueError:
                raise ValueError(
                    f"the value of '{key}' in the etcd store is not a number: {(value or b'')[:_QUOTED]!r}"
                ) from None

        return int(self._change(key, increase) or b"0")

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        expected, desired = _as_bytes(expected_value), _as_bytes(desired_value)

        def replace(value: bytes | None) -> bytes | None:
            return desired if (value or b"") == expected and (value is not None or not expected) else None

        value = self._change(key, replace)
        return expected if value is None else value

    def append(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        self._change(key, lambda old: (old or b"") + _as_bytes(value))

    def delete_key(self, key: str) -> bool:
        """See :meth:`Store.delete_key`.

        If the response to a deletion is lost and the key no longer exists afterwards, this call has deleted it.
        """
        path, deadline = self._path(key), self._deadline()
        if self._read(key, deadline)[0] is None:
            return False
        attempts = 0

        def delete() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self.client.delete(path)
            except self._etcd.EtcdKeyNotFound:
                return attempts > 1
            return True

        return self._retry(f"delete '{key}'", delete, deadline)

    def num_keys(self) -> int:
        """See :meth:`Store.num_keys`. Lists the whole directory, which runs share: use it rarely."""
        try:
            result = self._retry(
                "list its keys", lambda: self.client.read(key_path(self.prefix), recursive=True), self._deadline()
            )
        except self._etcd.EtcdKeyNotFound:
            return 0
        return sum(1 for leaf in result.leaves if not leaf.dir)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set needs as many values as keys, not {len(values)} for {len(keys)}")
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)


def _as_bytes(value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a key or value of the etcd store must be str or bytes, not {type(value).__name__}")


def _encode(value: str | bytes) -> str:
    return b64encode(_as_bytes(value)).decode()
