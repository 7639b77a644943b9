"""Torch's module name for :mod:`rendezvous.etcd.server`."""

from rendezvous.etcd.server import EtcdServer, find_etcd

__all__ = ["EtcdServer", "find_etcd"]
