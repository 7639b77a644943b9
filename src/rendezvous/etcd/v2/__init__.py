"""etcd's v2 API, through python-etcd. Only etcd 3.4 and 3.5 serve it, and only with ``--enable-v2``."""
