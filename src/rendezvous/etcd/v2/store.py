"""A key-value store on etcd's v2 API."""

from __future__ import annotations

import random
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from rendezvous._core import Backoff, compare_and_swap
from rendezvous.api import RendezvousConnectionError, RendezvousStateError
from rendezvous.etcd.v2.client import etcd_module, key_path, retry, translate_errors
from rendezvous.store import (
    Key,
    Store,
    add_up,
    missing_keys_message,
    quoted_key,
    to_amount,
    to_bytes,
    to_number,
    to_text,
)
from rendezvous.utils import quoted

__all__ = ["EtcdStore", "cas_delay"]

_T = TypeVar("_T")


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

    def _path(self, key: Key) -> str:
        # base64 may contain slashes, and etcd then stores the key in a directory. The path is unique all the same.
        return key_path(self.prefix + _encode(key))

    def _key(self, path: str) -> str | None:
        """Return the key for an etcd key, the reverse of :meth:`_path`; None if it is not a key of this store."""
        directory = f"/{self.prefix.strip('/')}/"
        encoded = path[len(directory) :]
        if len(encoded) % 4 == 3:
            encoded += "/"  # etcd removes a slash at the end
        try:
            return to_text(b64decode(encoded, validate=True)) if path.startswith(directory) else None
        except ValueError:
            return None

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
            result = self._retry(f"read {quoted_key(key)}", lambda: self.client.read(path), deadline)
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return result, result.etcd_index

    def _watch(self, path: str, index: int, timeout: float) -> Any:
        return translate_errors(
            f"the etcd store cannot watch {quoted_key(path)}",
            lambda: self.client.watch(path, index=index, timeout=timeout),
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
                return _decode(key, result.value)

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
            return None if result is None else (_decode(key, result.value), token)

        def write(value: bytes | None, token: int | None) -> tuple[bytes | None, Any, bool] | None:
            encoded = _encode(value or b"")
            condition = {"prevExist": False} if token is None else {"prevIndex": token}
            try:
                result = translate_errors(
                    f"the etcd store cannot write {quoted_key(key)}",
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
                f"the etcd store lost its connection while it changed {quoted_key(key)}, whose value is a different "
                f"one now: it is not known whether the change was applied, and it is not repeated"
            )

        value, _, _, _ = compare_and_swap(read, write, change, Backoff(), deadline)
        return value

    # Operations.

    def set(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        path, encoded = self._path(key), _encode(value)
        self._retry(f"write {quoted_key(key)}", lambda: self.client.write(path, encoded), self._deadline())

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
                raise LookupError(missing_keys_message([key], seconds))
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
            ValueError: the value under ``key`` is not a number, or ``num`` or the sum does not fit into 64 bits.
        """
        amount = to_amount(key, num)

        def increase(value: bytes | None) -> bytes:
            return b"%d" % add_up(key, to_number(key, value or b""), amount)

        return int(self._change(key, increase) or b"0")

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        expected, desired = to_bytes(expected_value), to_bytes(desired_value)

        def replace(value: bytes | None) -> bytes | None:
            return desired if (value or b"") == expected and (value is not None or not expected) else None

        value = self._change(key, replace)
        return expected if value is None else value

    def append(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        tail = to_bytes(value)
        self._change(key, lambda old: (old or b"") + tail)

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

        return self._retry(f"delete {quoted_key(key)}", delete, deadline)

    def num_keys(self) -> int:
        """See :meth:`Store.num_keys`. Reads the whole directory, which runs share: use it rarely."""
        return len(self._leaves())

    def list_keys(self) -> list[str]:
        """See :meth:`Store.list_keys`. Reads the whole directory, which runs share: use it rarely."""
        keys = (self._key(leaf.key) for leaf in self._leaves())
        return sorted((key for key in keys if key is not None), key=to_bytes)

    def _leaves(self) -> list[Any]:
        try:
            result = self._retry(
                "list its keys", lambda: self.client.read(key_path(self.prefix), recursive=True), self._deadline()
            )
        except self._etcd.EtcdKeyNotFound:
            return []
        return [leaf for leaf in result.leaves if not leaf.dir]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set needs as many values as keys, not {len(values)} for {len(keys)}")
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)


def _encode(value: str | bytes) -> str:
    return b64encode(to_bytes(value)).decode()


def _decode(key: str, stored: str) -> bytes:
    try:
        return b64decode(stored)
    except ValueError:
        raise RendezvousStateError(
            f"the key {quoted_key(key)} of the etcd store contains {quoted(stored)}, which is not base64: another "
            f"program wrote it"
        ) from None
