"""What the benchmarks of one machine compare: the contenders of the cluster's benchmark, and some more."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import Enum

from rendezvous.bench import contenders
from rendezvous.utils import get_free_port

__all__ = ["CONTENDERS", "Contender", "Kind", "endpoint_for"]


class Kind(Enum):
    """How the nodes of a contender run."""

    HANDLERS = "a blocking handler in a thread for each node"
    COROUTINES = "the protocol in a coroutine for each node"
    FLOOR = "bare requests"


@dataclass(frozen=True)
class Contender(contenders.Contender):
    """One implementation, or the floor.

    Attributes:
        pure: whether it uses the pure twin of our core.
        floor: whether its nodes only send the requests of ``etcd-v3``, without any logic.
    """

    pure: bool = False
    floor: bool = False

    @property
    def kind(self) -> Kind:
        """How its nodes run."""
        return Kind.FLOOR if self.floor else Kind.COROUTINES if self.coroutines else Kind.HANDLERS

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that its processes need."""
        return {"RENDEZVOUS_NO_EXTENSIONS": "1" if self.pure else ""}

    @property
    def obstacle(self) -> str | None:
        """Why it cannot run in this environment; None if it can."""
        compiled = not (self.floor or self.torchs or self.pure)
        if compiled and importlib.util.find_spec("rendezvous._core._state_c") is None:
            return "the compiled core is not built"
        return super().obstacle


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
        Contender("etcd-v3, coroutines", "etcd-v3", coroutines=True),
        Contender("floor", "", floor=True),
    )
}
"""All contenders by name, in the order of the tables."""


def endpoint_for(contender: Contender, etcd: str) -> str:
    """Return the endpoint of a contender: the etcd, or for c10d a free port, since its store is not etcd."""
    return f"localhost:{get_free_port('localhost')}" if contender.backend == "c10d" else etcd
