"""etcd's v2 API, through python-etcd: served by etcd up to 3.5, and only with ``--enable-v2``."""
