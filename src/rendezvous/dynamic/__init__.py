"""The dynamic rendezvous, ``etcd-v2``: all nodes share one state and change it by compare-and-swap."""
