"""The coordinated rendezvous, ``etcd-v3``; :mod:`rendezvous.coordinated.handler` is where to begin."""
