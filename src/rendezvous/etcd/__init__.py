"""What speaks with etcd. Nothing here knows of a rendezvous."""
