"""The kinds of nodes of :mod:`tests.torchrun.mixed`, imported once and before any of them starts."""

from __future__ import annotations

from typing import Any

from torch.distributed.elastic.rendezvous import api as torch_api
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as torch_dynamic
from torch.distributed.elastic.rendezvous import etcd_rendezvous as torch_etcd  # noqa: F401
from torch.distributed.elastic.rendezvous import etcd_rendezvous_backend as torch_backend  # noqa: F401
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler as get_torch_handler

from rendezvous import RendezvousParameters, get_rendezvous_handler
from rendezvous import etcd_rendezvous as our_etcd  # noqa: F401
from rendezvous.dynamic.backend_v2 import create_backend
from rendezvous.torchrun import TorchStore


def _torch(backend: str) -> Any:
    def create(endpoint: str, run_id: str, least: int, most: int, config: dict[str, Any]) -> Any:
        params = torch_api.RendezvousParameters(backend, endpoint, run_id, least, most, "127.0.0.1", **config)
        return get_torch_handler(params)

    return create


def _ours(backend: str) -> Any:
    def create(endpoint: str, run_id: str, least: int, most: int, config: dict[str, Any]) -> Any:
        params = RendezvousParameters(backend, endpoint, run_id, least, most, "127.0.0.1", **config)
        return get_rendezvous_handler(params)

    return create


def _torch_over_ours(endpoint: str, run_id: str, least: int, most: int, config: dict[str, Any]) -> Any:
    params = torch_api.RendezvousParameters("etcd-v2", endpoint, run_id, least, most, "127.0.0.1", **config)
    backend, store = create_backend(RendezvousParameters("etcd-v2", endpoint, run_id, least, most, **config))
    return torch_dynamic.create_handler(TorchStore(store), backend, params)


KINDS = {
    "torch": _torch("etcd"),
    "ours": _ours("etcd"),
    "torch-v2": _torch("etcd-v2"),
    "ours-v2": _ours("etcd-v2"),
    "torch-v2-over-ours": _torch_over_ours,
}


def version_of(store: Any) -> str:
    """Return the round whose store this is: the legacy store's directory is named after it."""
    prefix = getattr(store, "prefix", "")
    return prefix.partition("/v_")[2].partition("/")[0]
