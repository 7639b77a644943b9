"""Torch's module name for :mod:`rendezvous.dynamic`."""

from rendezvous.dynamic.backend import RendezvousBackend, Token
from rendezvous.dynamic.handler import DynamicRendezvousHandler, create_handler
from rendezvous.dynamic.settings import RendezvousSettings, RendezvousTimeout

__all__ = [
    "DynamicRendezvousHandler",
    "RendezvousBackend",
    "RendezvousSettings",
    "RendezvousTimeout",
    "Token",
    "create_handler",
]
