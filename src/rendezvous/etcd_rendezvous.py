"""Torch's module name for :mod:`rendezvous.legacy`."""

from rendezvous.legacy.handler import EtcdRendezvousHandler
from rendezvous.legacy.rendezvous import (
    EtcdRendezvous,
    EtcdRendezvousRetryableFailure,
    EtcdRendezvousRetryImmediately,
    create_rdzv_handler,
)

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "create_rdzv_handler",
]
