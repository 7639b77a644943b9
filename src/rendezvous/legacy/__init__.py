"""The legacy rendezvous, ``etcd``: torch's ``EtcdRendezvous``, key for key, so that both kinds of nodes mix in one job.

``rendezvous.etcd_rendezvous`` has the names that torch's module has.
"""
