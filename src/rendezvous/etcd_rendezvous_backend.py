"""Torch's module name for :mod:`rendezvous.dynamic.backend_v2`."""

from rendezvous.dynamic.backend_v2 import EtcdRendezvousBackend, create_backend

__all__ = ["EtcdRendezvousBackend", "create_backend"]
