"""Backends by name: those of this project, and those of other packages."""

from __future__ import annotations

from rendezvous.api import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry

__all__ = ["get_rendezvous_handler"]


def _create_etcd_v2_handler(params: RendezvousParameters) -> RendezvousHandler:
    from rendezvous.dynamic.backend_v2 import create_backend
    from rendezvous.dynamic.handler import create_handler

    backend, store = create_backend(params)
    return create_handler(store, backend, params)


def _create_etcd_v3_handler(params: RendezvousParameters) -> RendezvousHandler:
    from rendezvous.coordinated.handler import create_handler

    return create_handler(params)


def _create_etcd_handler(params: RendezvousParameters) -> RendezvousHandler:
    from rendezvous.legacy.handler import create_rdzv_handler

    return create_rdzv_handler(params)


rendezvous_handler_registry.register("etcd", _create_etcd_handler)
rendezvous_handler_registry.register("etcd-v2", _create_etcd_v2_handler)
rendezvous_handler_registry.register("etcd-v3", _create_etcd_v3_handler)


_OUT_OF_TREE_GROUP = "torchrun.handlers"


def _register_out_of_tree(backend: str) -> None:
    """Register what another package offers to torchrun under the name ``backend``, if any does."""
    from importlib.metadata import entry_points  # half the time that importing this package would take

    for entry_point in entry_points(group=_OUT_OF_TREE_GROUP, name=backend):
        try:
            creator = entry_point.load()()
        except Exception as exc:
            raise ValueError(
                f"The rendezvous backend '{backend}' cannot be loaded: the plugin '{entry_point.value}' of the "
                f"entry-point group '{_OUT_OF_TREE_GROUP}' fails with {type(exc).__name__}: {exc}. Update or uninstall "
                f"the package that contains it."
            ) from exc
        rendezvous_handler_registry.register(backend, creator)


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Return a new handler of the backend that ``params`` names.

    A backend that is not registered may be provided by another installed package, in the entry-point group
    ``torchrun.handlers``, which torchrun reads too.

    Raises:
        ValueError: the backend is unknown, its plugin cannot be loaded, or its configuration is wrong.
        RendezvousConnectionError: etcd cannot be reached.
    """
    if params.backend not in rendezvous_handler_registry:
        _register_out_of_tree(params.backend)
    return rendezvous_handler_registry.create_handler(params)
