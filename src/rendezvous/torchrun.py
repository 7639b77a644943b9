"""Handlers for torchrun, and stores as ``torch.distributed.Store``.

This is the only module that imports torch. torchrun reaches it through ``rendezvous.plugins``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import api as torch_api

from rendezvous import api, config
from rendezvous.coordinated import handler as coordinated_handler
from rendezvous.dynamic import handler as dynamic_handler
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.store import Store

__all__ = ["TorchHandler", "TorchStore", "TorchStoreTimeoutError", "create_etcd_v2_watch", "create_etcd_v3"]


class TorchStoreTimeoutError(dist.DistStoreError, LookupError):
    """A key did not appear in time. The base classes are what torch's C++ stores and its ``EtcdStore`` raise."""


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except LookupError as exc:
        raise TorchStoreTimeoutError(str(exc)) from None
    except api.RendezvousConnectionError as exc:
        raise dist.DistNetworkError(str(exc)) from None


# Within this many seconds the TCP store of rank 0 must start, and connect to itself at the node's address.
# Name servers may need some time to learn the name of a host that was just started.
_LONGEST_START = 30.0

# torch's C++ code may keep a store, for example in a PrefixStore, without keeping its Python object: when that is
# collected, every call fails. Stores are small and there is one for each round, so all are kept until the process ends.
_stores: list[TorchStore] = []


class TorchStore(dist.Store):
    """A :class:`rendezvous.store.Store` for torch, for example as ``store=`` of ``init_process_group``.

    It raises torch's errors: :class:`TorchStoreTimeoutError` if a key did not appear in time, ``DistNetworkError`` if
    etcd could not be reached. Queues are not supported.

    Args:
        store: the store that holds the keys.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        super().set_timeout(store.timeout)
        _stores.append(self)

    def set(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.set`."""
        with _as_store_error():
            self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """See :meth:`Store.get`."""
        with _as_store_error():
            return self._store.get(key, self.timeout)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """See :meth:`Store.wait`."""
        with _as_store_error():
            self._store.wait(keys, self.timeout if timeout is None else timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """See :meth:`Store.check`."""
        with _as_store_error():
            return self._store.check(keys)

    def add(self, key: str, value: int) -> int:
        """See :meth:`Store.add`."""
        with _as_store_error():
            return self._store.add(key, value)

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """See :meth:`Store.compare_set`."""
        with _as_store_error():
            return self._store.compare_set(key, expected_value, desired_value)

    def append(self, key: str, value: str | bytes) -> None:
        """See :meth:`Store.append`."""
        with _as_store_error():
            self._store.append(key, value)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """See :meth:`Store.multi_get`."""
        with _as_store_error():
            return self._store.multi_get(keys, self.timeout)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """See :meth:`Store.multi_set`."""
        with _as_store_error():
            self._store.multi_set(keys, values)

    def delete_key(self, key: str) -> bool:
        """See :meth:`Store.delete_key`."""
        with _as_store_error():
            return self._store.delete_key(key)

    def num_keys(self) -> int:
        """See :meth:`Store.num_keys`."""
        with _as_store_error():
            return self._store.num_keys()

    def list_keys(self) -> list[str]:
        """See :meth:`Store.list_keys`."""
        with _as_store_error():
            return self._store.list_keys()

    def has_extended_api(self) -> bool:
        """Return that ``append``, ``multi_get`` and ``multi_set`` are supported."""
        return True

    def clone(self) -> TorchStore:
        """Return this store, which threads may share."""
        return self

    # torch's C++ code looks for these operations under the names of its own methods.
    deleteKey = delete_key
    getNumKeys = num_keys


class TorchHandler(torch_api.RendezvousHandler):
    """A handler of this package for torchrun. Its errors become torch's errors of the same name.

    Args:
        backend: the name of the backend in torchrun.
        create: makes the handler. Its argument is the function that starts the TCP store that rank 0 shares with the
            workers, or None if ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` disables it.
        join_timeout: the join timeout in seconds: the TCP store must start within it, or within 30 s if it is longer.
    """

    def __init__(
        self,
        backend: str,
        create: Callable[[Callable[[str], int] | None], api.RendezvousHandler],
        join_timeout: float,
    ) -> None:
        self._backend = backend
        self._start_timeout = timedelta(seconds=min(join_timeout, _LONGEST_START))
        self._shares = os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"
        self._server: dist.TCPStore | None = None
        with _as_torch():
            self._handler = create(self._serve if self._shares else None)

    def _serve(self, addr: str) -> int:
        # Each round gets a new store: its workers must not find the keys of the last round, and the port of an older
        # store may be closed by now.
        try:
            self._server = dist.TCPStore(
                host_name=addr, port=0, is_master=True, wait_for_workers=False, timeout=self._start_timeout
            )
        except dist.DistError as exc:
            raise api.RendezvousError(
                f"The TCP store that the workers connect to could not be started at '{addr}', the address of this "
                f"node: {_why_unreachable(addr, exc)}. Set an address of this host that all nodes can resolve with "
                f"--local-addr."
            ) from None
        return int(self._server.port)

    def get_backend(self) -> str:
        """Return the name of the backend in torchrun."""
        return self._backend

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers use the TCP store that the agent of rank 0 shares."""
        return self._shares

    def next_rendezvous(self) -> torch_api.RendezvousInfo:
        """See :meth:`rendezvous.api.RendezvousHandler.next_rendezvous`."""
        with _as_torch():
            info = self._handler.next_rendezvous()
        bootstrap = info.bootstrap_store_info
        if info.rank != 0:
            self._server = None
        return torch_api.RendezvousInfo(
            TorchStore(info.store),
            info.rank,
            info.world_size,
            bootstrap and torch_api.RendezvousStoreInfo(bootstrap.master_addr, bootstrap.master_port),
        )

    def is_closed(self) -> bool:
        """See :meth:`rendezvous.api.RendezvousHandler.is_closed`."""
        with _as_torch():
            return self._handler.is_closed()

    def set_closed(self) -> None:
        """See :meth:`rendezvous.api.RendezvousHandler.set_closed`."""
        with _as_torch():
            self._handler.set_closed()

    def num_nodes_waiting(self) -> int:
        """See :meth:`rendezvous.api.RendezvousHandler.num_nodes_waiting`."""
        with _as_torch():
            return self._handler.num_nodes_waiting()

    def get_run_id(self) -> str:
        """See :meth:`rendezvous.api.RendezvousHandler.get_run_id`."""
        return self._handler.get_run_id()

    def shutdown(self) -> bool:
        """See :meth:`rendezvous.api.RendezvousHandler.shutdown`."""
        with _as_torch():
            return self._handler.shutdown()


def _why_unreachable(addr: str, error: Exception) -> str:
    """Return why a TCP store could not connect to itself, in one line."""
    try:
        socket.getaddrinfo(addr, None)
    except (OSError, UnicodeError) as exc:
        return f"the address cannot be resolved ({exc})"
    return str(error).partition("\n")[0]


@contextmanager
def _as_torch() -> Iterator[None]:
    try:
        yield
    except api.RendezvousError as exc:
        kind: type[Exception] = getattr(torch_api, type(exc).__name__, torch_api.RendezvousError)
        # The message says everything; the cause would add a long traceback of the background loop.
        raise kind(str(exc)) from None


def create_etcd_v2_watch(params: torch_api.RendezvousParameters) -> TorchHandler:
    """Make the handler of torchrun's backend ``etcd-v2-watch``."""
    parameters = _parameters(params)

    def create(serve: Callable[[str], int] | None) -> api.RendezvousHandler:
        backend, store = create_backend(parameters)
        return dynamic_handler.create_handler(store, backend, parameters, serve)

    return TorchHandler(params.backend, create, config.JOIN_TIMEOUT.read(parameters))


def create_etcd_v3(params: torch_api.RendezvousParameters) -> TorchHandler:
    """Make the handler of torchrun's backend ``etcd-v3``."""
    parameters = _parameters(params)
    return TorchHandler(
        params.backend,
        lambda serve: coordinated_handler.create_handler(parameters, serve),
        config.JOIN_TIMEOUT.read(parameters),
    )


def _parameters(params: Any) -> api.RendezvousParameters:
    return api.RendezvousParameters(
        params.backend,
        params.endpoint,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        **params.config,
    )
