"""Torch's module name for :mod:`rendezvous.legacy`."""

from rendezvous.legacy.handler import EtcdRendezvousHandler, create_rdzv_handler
from rendezvous.legacy.rendezvous import (
    EtcdRendezvous,
    EtcdRendezvousRetryableFailure,
    EtcdRendezvousRetryImmediately,
)

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "create_rdzv_handler",
]
