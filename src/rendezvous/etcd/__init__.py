"""Clients of etcd's two APIs, and a server of one's own. They do not depend on a rendezvous protocol."""
