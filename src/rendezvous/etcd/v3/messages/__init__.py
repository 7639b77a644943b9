"""The messages of etcd's v3 API: ``rpc_pb2``, generated from ``rpc.proto``."""
