"""A backend that stores the state on etcd's v2 API, and how it is created from a configuration."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Any

from rendezvous import config
from rendezvous.api import RendezvousParameters, RendezvousStateError
from rendezvous.dynamic.backend import RendezvousBackend, Token, index_of
from rendezvous.etcd.v2.client import create_client, etcd_module, key_path, translate_errors
from rendezvous.etcd.v2.store import EtcdStore
from rendezvous.utils import quoted

__all__ = ["EtcdRendezvousBackend", "create_backend"]

_DEFAULT_TTL = 7200
_KEY_PREFIX = "/torch/elastic/rendezvous"
_STORE_PREFIX = "/torch/elastic/store"


class EtcdRendezvousBackend(RendezvousBackend):
    """Stores the state under one key of etcd's v2 API, in base64, as torch's backend of the same name does.

    The fencing token is the key's modified index. The backend does not interpret the state, so that torch's own
    ``DynamicRendezvousHandler`` can use it too.

    Args:
        client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        run_id: the run id.
        key_prefix: the directory of the key.
        ttl: after how many seconds without a write etcd deletes the state; two hours by default.

    Raises:
        ImportError: python-etcd is not installed.
        ValueError: the run id is empty, or has a part that etcd would resolve to another key (``..``).
    """

    def __init__(self, client: Any, run_id: str, key_prefix: str | None = None, ttl: int | None = None) -> None:
        if not run_id:
            raise ValueError("The run id must not be empty.")
        self._etcd = etcd_module()
        self._client = client
        self._key = f"{key_prefix}/{run_id}" if key_prefix else run_id
        self._path = key_path(self._key)
        self._ttl = ttl if ttl and ttl > 0 else _DEFAULT_TTL
        self._seen: tuple[Token, int] = (None, 0)
        self._index = 0  # the newest index of etcd that this backend has received

    @property
    def name(self) -> str:
        """See :attr:`RendezvousBackend.name`."""
        return "etcd-v2"

    @property
    def place(self) -> str:
        """See :attr:`RendezvousBackend.place`."""
        return f"the etcd key '{self._key}'"

    def get_state(self) -> tuple[bytes, Token] | None:
        """See :meth:`RendezvousBackend.get_state`."""
        known = self._index  # taken before the request: with two threads, the older response may arrive last
        result, index = self._read()
        if index < known:
            # The member that answered is behind the others, or etcd has lost its data: use a quorum read. Not for
            # every read, because it costs the cluster a raft proposal.
            result, index = self._read(quorum=True)
            self._index = index
        self._index = max(self._index, index)
        if result is None:
            return None
        self._seen = (result.modifiedIndex, index)
        return self._decode(result)

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """See :meth:`RendezvousBackend.set_state`."""
        condition: dict[str, Any] = {"prevExist": False}
        if token:
            if (index := index_of(token)) is None:
                return self._not_written()
            condition = {"prevIndex": index}
        value = b64encode(state).decode()
        try:
            result = self._request("write", lambda: self._client.write(self._path, value, self._ttl, **condition))
        except (self._etcd.EtcdAlreadyExist, self._etcd.EtcdCompareFailed, self._etcd.EtcdKeyNotFound):
            return self._not_written()
        self._index = max(self._index, result.modifiedIndex)
        return state, result.modifiedIndex, True

    def watch(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        """See :meth:`RendezvousBackend.watch`. Returns the oldest change since ``token``."""
        known = index_of(token)
        if known is None or timeout <= 0:
            return None
        # etcd keeps the last 1,000 changes of all keys. The index of this key may be older than these; etcd's index at
        # the last read of the key is newer.
        seen, index = self._seen
        since = index if seen == known else known
        try:
            result = self._request("watch", lambda: self._client.watch(self._path, index=since + 1, timeout=timeout))
        except (self._etcd.EtcdWatchTimedOut, self._etcd.EtcdEventIndexCleared):
            return None
        return self._decode(result) if result.value is not None else None

    def _read(self, **options: Any) -> tuple[Any, int]:
        """Return etcd's response for the key (None if it does not exist), and etcd's index at that moment."""
        try:
            result = self._request("read", lambda: self._client.read(self._path, **options))
        except self._etcd.EtcdKeyNotFound as exc:
            return None, int((exc.payload or {}).get("index", 0))
        return result, max(result.etcd_index, result.modifiedIndex)

    def _not_written(self) -> tuple[bytes, Token, bool] | None:
        current = self.get_state()
        return None if current is None else (*current, False)

    def _request(self, verb: str, call: Any) -> Any:
        try:
            return translate_errors(f"cannot {verb} the rendezvous state '{self._key}' in etcd", call)
        except (self._etcd.EtcdNotFile, self._etcd.EtcdNotDir) as exc:
            raise RendezvousStateError(
                f"the etcd key '{self._key}' is a directory or is below another key: the run id of another job starts "
                f"with this one and a slash, or the other way round; choose another run id ({exc})"
            ) from None

    def _decode(self, result: Any) -> tuple[bytes, Token]:
        if result.dir or result.value is None:
            raise RendezvousStateError(
                f"the etcd key '{self._key}' is a directory: the run id of another job starts with this one and a "
                f"slash; choose another run id"
            )
        try:
            return b64decode(result.value, validate=True), result.modifiedIndex
        except (binascii.Error, ValueError):
            raise RendezvousStateError(
                f"the etcd key '{self._key}' contains {quoted(result.value)}, which is not base64: another "
                f"program wrote it; choose another run id"
            ) from None


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """Connect to etcd and return the backend and the store of a job.

    ``rendezvous config --backend etcd-v2`` lists the configuration keys.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: no endpoint answers, or etcd does not serve the v2 API.
        ValueError: a value is malformed or out of range.
    """
    config.check(params, config.Backend.DYNAMIC_V2)
    key_path(f"{_KEY_PREFIX}/{params.run_id}")
    client = create_client(params)
    return EtcdRendezvousBackend(client, params.run_id, _KEY_PREFIX), EtcdStore(client, _STORE_PREFIX)
