"""The legacy rendezvous, ``etcd``: torch's ``EtcdRendezvous``, key for key, so that both mix in one job."""
