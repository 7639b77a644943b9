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
from rendezvous.etcd.v2.client import etcd_module, key_path, persist, translate_errors
from rendezvous.store import Store

__all__ = ["EtcdStore", "cas_delay"]

_T = TypeVar("_T")


def cas_delay() -> None:
    """Sleep for at most 0.1 s between two tries of a swap, as torch's function does. What is here uses a Backoff."""
    time.sleep(random.uniform(0, 0.1))


class EtcdStore(Store):
    """A store on etcd's v2 API, with the keys and values of torch's ``EtcdStore``: both in base64 under a prefix.

    An operation reads, writes and watches the keys it is given and nothing else. One that fails to reach etcd is
    tried again until the time-out.

    Args:
        etcd_client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        etcd_store_prefix: the directory in etcd.
        timeout: how long operations wait; 300 s unless given, as torch's stores.

    Raises:
        ImportError: python-etcd is not installed.
    """

    def __init__(self, etcd_client: Any, etcd_store_prefix: str, timeout: timedelta | None = None) -> None:
        self._etcd = etcd_module()
        self.client = etcd_client
        self.prefix = etcd_store_prefix if etcd_store_prefix.endswith("/") else etcd_store_prefix + "/"
        if timeout is not None:
            self.set_timeout(timeout)

    # Keys and values, as torch's store writes them.

    def _path(self, key: str | bytes) -> str:
        # base64 may hold slashes and then, for etcd, names a key in a directory. The name is still the key's own.
        return key_path(self.prefix + _encode(key))

    # One request, and what becomes of it when etcd cannot be reached.

    def _deadline(self, timeout: timedelta | None = None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout).total_seconds()

    def _persist(self, what: str, call: Callable[[], _T], deadline: float) -> _T:
        """See :func:`rendezvous.etcd.v2.client.persist`."""
        return persist(f"the etcd store cannot {what}", call, deadline)

    def _read(self, key: str, deadline: float) -> tuple[Any, int]:
        """Return etcd's answer for ``key`` (None where there is none) and etcd's index at that moment."""
        path = self._path(key)
        try:
            result = self._persist(f"read '{key}'", lambda: self.client.read(path), deadline)
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return result, result.etcd_index

    def _watch(self, path: str, index: int, timeout: float) -> Any:
        return translate_errors(
            f"the etcd store cannot watch '{path}'", lambda: self.client.watch(path, index=index, timeout=timeout)
        )

    def _await(self, key: str, deadline: float) -> bytes | None:
        """Return the value of ``key`` once there is one, or None when the time is up."""
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
        """Replace the value of ``key`` by ``change(value)``, atomically and once; return the value there then."""
        path, deadline = self._path(key), self._deadline()
        lost: list[int | None] = []  # the token of a write whose outcome is not known

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
                f"the etcd store lost its connection while it changed '{key}', which has another value now: whether "
                f"the change was made is not known, and it is not made twice"
            )

        value, _, _, _ = compare_and_swap(read, write, change, Backoff(), deadline)
        return value

    # The operations.

    def set(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        path, encoded = self._path(key), _encode(value)
        self._persist(f"write '{key}'", lambda: self.client.write(path, encoded), self._deadline())

    def get(self, key: str, timeout: timedelta | None = None) -> bytes:
        """See :meth:`Store.get`."""
        return self.multi_get([key], timeout)[0]

    def wait(self, keys: Sequence[str], override_timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`. The second argument has the name that torch's ``EtcdStore`` gives it."""
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
            RendezvousConnectionError: the connection broke, and whether the addition was made cannot be known.
            ValueError: the value under ``key`` is not a decimal number.
        """

        def increase(value: bytes | None) -> bytes:
            try:
                return str(int(value or b"0") + num).encode()
            except ValueError:
                raise ValueError(f"the value of '{key}' in the etcd store is not a number: {value!r}") from None

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

        A key that is gone after a deletion whose answer was lost counts as deleted by it: it was there before.
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

        return self._persist(f"delete '{key}'", delete, deadline)

    def num_keys(self) -> int:
        """See :meth:`Store.num_keys`. Lists the whole directory, which jobs share: not for a hot path."""
        try:
            result = self._persist(
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
