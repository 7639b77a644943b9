"""The legacy rendezvous, ``etcd``: torch's ``EtcdRendezvous``, with the same keys, so that both can share a round."""
