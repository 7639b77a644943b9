"""The dynamic rendezvous, ``etcd-v2``: all nodes compare-and-swap one state blob."""
