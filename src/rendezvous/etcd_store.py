"""Torch's module name for :mod:`rendezvous.etcd.v2.store`."""

from rendezvous.etcd.v2.store import EtcdStore, cas_delay

__all__ = ["EtcdStore", "cas_delay"]
