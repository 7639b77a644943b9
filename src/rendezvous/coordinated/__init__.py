"""The coordinated rendezvous, ``etcd-v3``. Start reading in :mod:`rendezvous.coordinated.handler`."""
