"""The coordinated rendezvous on etcd's v3 API; ``handler`` is where to begin."""
