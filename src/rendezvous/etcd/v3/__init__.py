"""etcd's v3 API, over gRPC."""

import os

# gRPC's C core writes to standard error what its callers get as errors anyway. It reads this variable when it is first
# imported, so this comes before all other modules of this package.
_verbosity = os.environ.get("GRPC_VERBOSITY")
os.environ["GRPC_VERBOSITY"] = _verbosity or "NONE"

import grpc  # noqa: E402, F401

if _verbosity is None:
    del os.environ["GRPC_VERBOSITY"]  # the workers inherit the environment, and decide on their own gRPC
