"""The handlers of this project by the name of their backend."""

from __future__ import annotations

from rendezvous.api import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry

__all__ = ["get_rendezvous_handler"]


def _create_etcd_v2_handler(params: RendezvousParameters) -> RendezvousHandler:
    from rendezvous.dynamic_rendezvous import create_handler
    from rendezvous.etcd_rendezvous_backend import create_backend

    backend, store = create_backend(params)
    return create_handler(store, backend, params)


def _create_etcd_v3_handler(params: RendezvousParameters) -> RendezvousHandler:
    from rendezvous.v3.handler import create_handler

    return create_handler(params)


rendezvous_handler_registry.register("etcd-v2", _create_etcd_v2_handler)
rendezvous_handler_registry.register("etcd-v3", _create_etcd_v3_handler)


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Return a new handler of the backend that ``params`` names.

    Raises:
        ValueError: the backend is not known, or its configuration is wrong.
        RendezvousConnectionError: the backend cannot be reached.
    """
    return rendezvous_handler_registry.create_handler(params)
