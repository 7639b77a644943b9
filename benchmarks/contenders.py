"""Who is measured: our rendezvous and torch's, and the floor."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rendezvous.utils import get_free_port


class Kind(Enum):
    """How the nodes of a contender run."""

    HANDLERS = "a blocking handler in a thread for each node"
    COROUTINES = "the protocol in a coroutine for each node"
    FLOOR = "bare requests"


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        name: what the tables call it.
        backend: the name in its registry.
        kind: how its nodes run.
        torchs: whether it is torch's.
        pure: whether our core is the pure twin.
    """

    name: str
    backend: str
    kind: Kind = Kind.HANDLERS
    torchs: bool = False
    pure: bool = False

    @property
    def v2(self) -> bool:
        """Whether it needs etcd's v2 API."""
        return self.backend in ("etcd-v2", "etcd")

    @property
    def environment(self) -> dict[str, str]:
        """What its processes must find in their environment."""
        return {"RENDEZVOUS_NO_EXTENSIONS": "1" if self.pure else ""}

    @property
    def obstacle(self) -> str | None:
        """Why it cannot run here, if it cannot."""
        if self.torchs and importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        compiled = self.kind is not Kind.FLOOR and not self.torchs and not self.pure
        if compiled and importlib.util.find_spec("rendezvous._core._state_c") is None:
            return "the compiled core is not built"
        return None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("etcd-v3", "etcd-v3"),
        Contender("etcd-v3, pure", "etcd-v3", pure=True),
        Contender("etcd-v2", "etcd-v2"),
        Contender("etcd-v2, pure", "etcd-v2", pure=True),
        Contender("etcd", "etcd"),
        Contender("etcd, pure", "etcd", pure=True),
        Contender("torch etcd-v2", "etcd-v2", torchs=True),
        Contender("torch etcd", "etcd", torchs=True),
        Contender("torch c10d", "c10d", torchs=True),
        Contender("etcd-v3, coroutines", "etcd-v3", Kind.COROUTINES),
        Contender("floor", "", Kind.FLOOR),
    )
}


@dataclass(frozen=True)
class Job:
    """One world to form, and to let run.

    Attributes:
        contender: a name of :data:`CONTENDERS`.
        nodes: how many nodes there are, all of which must join.
        endpoint: where they meet: the etcd's, or for c10d the store's.
        timeout: seconds after which the world counts as not formed.
        run_id: the name of the job.
    """

    contender: str
    nodes: int
    endpoint: str
    timeout: float = 120.0
    run_id: str = "benchmark"


def meeting_point(contender: Contender, etcd: str) -> str:
    """Return the endpoint for a contender: c10d needs no etcd, but a port for its store."""
    return f"localhost:{get_free_port('localhost')}" if contender.backend == "c10d" else etcd


def make_handler(job: Job, index: int, least: int | None = None, name: str | None = None, **options: Any) -> Any:
    """Make the handler of node ``index``; worlds of from ``least`` nodes count, of all unless given.

    Its address is ``name``, or one that no host has. ``options`` are its configuration.
    """
    contender = CONTENDERS[job.contender]
    # torch would start a TCPStore on each rank 0; 'node-00000' is no host of this machine, and it is not the subject.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    timeout = {"timeout" if contender.backend == "etcd" else "join_timeout": int(job.timeout)}
    name = name or f"node-{index:05d}"
    arguments = (contender.backend, job.endpoint, job.run_id, least or job.nodes, job.nodes, name)
    if contender.torchs:
        from torch.distributed.elastic.rendezvous import RendezvousParameters
        from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
    else:
        from rendezvous import RendezvousParameters, get_rendezvous_handler
    return get_rendezvous_handler(RendezvousParameters(*arguments, **{**timeout, **options}))
