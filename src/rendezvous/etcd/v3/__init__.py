"""etcd's v3 API, over gRPC."""

import os

# gRPC's C core logs to standard error what its callers are told anyway. It looks here when it is first imported, and
# the messages of etcd import it: so this comes before all other modules of this package.
_verbosity = os.environ.get("GRPC_VERBOSITY")
os.environ["GRPC_VERBOSITY"] = _verbosity or "NONE"

import grpc  # noqa: E402, F401

if _verbosity is None:
    del os.environ["GRPC_VERBOSITY"]  # the workers' own gRPC is not ours to silence
