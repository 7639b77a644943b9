"""The implementations of a rendezvous that can be compared, and how a benchmark makes their handlers."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

__all__ = ["CONTENDERS", "PORT", "Contender", "Job", "make_handler"]

PORT = 29500
"""The port that rank 0 publishes if no handler chooses one."""


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        name: its name in tables and on the command line.
        backend: the name of its backend, in our registry or in torch's.
        coroutines: whether a node is a coroutine, without a handler and a thread.
        torchs: whether the implementation is torch's.
    """

    name: str
    backend: str
    coroutines: bool = False
    torchs: bool = False

    @property
    def v2(self) -> bool:
        """Whether it needs etcd's v2 API."""
        return self.backend in ("etcd-v2", "etcd")

    @property
    def obstacle(self) -> str | None:
        """Why it cannot run in this environment; None if it can."""
        if self.torchs and importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        return None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("etcd-v3", "etcd-v3"),
        Contender("etcd-v2", "etcd-v2"),
        Contender("etcd", "etcd"),
        Contender("torch etcd-v2", "etcd-v2", torchs=True),
        Contender("torch etcd", "etcd", torchs=True),
        Contender("etcd-v3, coroutines", "etcd-v3", coroutines=True),
    )
}
"""The contenders that need nothing but an etcd, by name."""


@dataclass(frozen=True)
class Job:
    """One world to form.

    Attributes:
        contender: the implementation.
        nodes: the number of nodes; all of them must join.
        endpoint: the endpoint of the rendezvous: an etcd or, for c10d, the store.
        timeout: seconds after which the world counts as not formed.
        run_id: the run id.
    """

    contender: Contender
    nodes: int
    endpoint: str
    timeout: float = 120.0
    run_id: str = "benchmark"


def make_handler(job: Job, index: int, *, min_nodes: int | None = None, addr: str | None = None, **options: Any) -> Any:
    """Make the handler of one node.

    Args:
        job: the world that the node joins.
        index: the number of the node, from 0.
        min_nodes: the smallest number of nodes that form a world; all nodes of the job by default.
        addr: the address of the node; by default one that no host has.
        options: the configuration of the handler.

    Returns:
        A handler of our package, or of torch if the contender is torch's.
    """
    backend = job.contender.backend
    # By default torch starts a TCPStore on rank 0. The address is of no host here, and the store is not measured.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    timeout = {"timeout" if backend == "etcd" else "join_timeout": int(job.timeout)}
    arguments = (backend, job.endpoint, job.run_id, min_nodes or job.nodes, job.nodes, addr or f"node-{index:05d}")
    if job.contender.torchs:
        from torch.distributed.elastic.rendezvous import RendezvousParameters
        from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
    else:
        from rendezvous import RendezvousParameters, get_rendezvous_handler
    return get_rendezvous_handler(RendezvousParameters(*arguments, **{**timeout, **options}))
