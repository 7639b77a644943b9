"""The bridge to torch: our handlers under torchrun, our stores as ``torch.distributed.Store``.

The only module that imports torch; ``rendezvous.plugins`` leads torchrun here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import api as torch_api

from rendezvous import api
from rendezvous.coordinated import handler as coordinated_handler
from rendezvous.dynamic import handler as dynamic_handler
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.store import Store

__all__ = ["TorchHandler", "TorchStore", "TorchStoreTimeoutError", "create_etcd_v2_watch", "create_etcd_v3"]


class TorchStoreTimeoutError(dist.DistStoreError, LookupError):
    """A key did not appear in time: what torch's C++ stores raise, and what its ``EtcdStore`` raises."""


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except LookupError as exc:
        raise TorchStoreTimeoutError(str(exc)) from exc
    except api.RendezvousConnectionError as exc:
        raise dist.DistNetworkError(str(exc)) from exc


# torch's C++ side may hold a store, behind a PrefixStore for example, without holding its Python half; once that is
# collected, every call fails. A store is small, and there is one a round: they are kept until the process ends.
_stores: list[TorchStore] = []


class TorchStore(dist.Store):
    """A :class:`rendezvous.store.Store` as torch takes it, for example as ``store=`` of ``init_process_group``.

    Its errors are torch's: :class:`TorchStoreTimeoutError` where a key did not appear in time, ``DistNetworkError``
    where etcd could not be reached.

    Args:
        store: the store that does the work.
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

    def has_extended_api(self) -> bool:
        """Whether ``append``, ``multi_get`` and ``multi_set`` work: they do."""
        return True

    def clone(self) -> TorchStore:
        """Return this store: threads may share it."""
        return self

    # torch's C++ side looks two operations up under the names of its own methods.
    deleteKey = delete_key
    getNumKeys = num_keys


class TorchHandler(torch_api.RendezvousHandler):
    """A handler of ours as torchrun takes it. Its errors become torch's of the same name.

    Args:
        backend: the name that torchrun knows the handler by.
        create: makes the handler; it is given what starts the store that rank 0 shares with the workers, or None
            where ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` says that nothing is shared.
    """

    def __init__(self, backend: str, create: Callable[[Callable[[str], int] | None], api.RendezvousHandler]) -> None:
        self._backend = backend
        self._shares = os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"
        self._server: dist.TCPStore | None = None
        with _as_torch():
            self._handler = create(self._serve if self._shares else None)

    def _serve(self, addr: str) -> int:
        # A new one each round: the workers of a round must not find the keys of the round before, and a node that
        # was rank 0 before must not hand out an address that nobody listens at any more.
        self._server = dist.TCPStore(host_name=addr, port=0, is_master=True, wait_for_workers=False)
        return int(self._server.port)

    def get_backend(self) -> str:
        """Return the name that torchrun knows the handler by."""
        return self._backend

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers are to meet at the store that rank 0's launcher shares."""
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


@contextmanager
def _as_torch() -> Iterator[None]:
    try:
        yield
    except api.RendezvousError as exc:
        kind: type[Exception] = getattr(torch_api, type(exc).__name__, torch_api.RendezvousError)
        raise kind(str(exc)) from exc


def create_etcd_v2_watch(params: torch_api.RendezvousParameters) -> TorchHandler:
    """Make the handler of torchrun's backend ``etcd-v2-watch``."""
    ours = _parameters(params)

    def create(serve: Callable[[str], int] | None) -> api.RendezvousHandler:
        backend, store = create_backend(ours)
        return dynamic_handler.create_handler(store, backend, ours, serve)

    return TorchHandler(params.backend, create)


def create_etcd_v3(params: torch_api.RendezvousParameters) -> TorchHandler:
    """Make the handler of torchrun's backend ``etcd-v3``."""
    ours = _parameters(params)
    return TorchHandler(params.backend, lambda serve: coordinated_handler.create_handler(ours, serve))


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
