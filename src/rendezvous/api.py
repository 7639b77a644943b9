"""The interface that all backends share: handlers, their parameters, their results and their errors.

Names, signatures and meanings are those of ``torch.distributed.elastic.rendezvous.api``.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rendezvous.utils import format_endpoint, get_free_port

if TYPE_CHECKING:
    from rendezvous.store import Store

__all__ = [
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "rendezvous_handler_registry",
]


class RendezvousError(Exception):
    """Base class of all errors of a rendezvous."""


class RendezvousClosedError(RendezvousError):
    """The rendezvous is closed: no further round will form."""


class RendezvousTimeoutError(RendezvousError):
    """No round became complete within the join timeout, or another operation within its own timeout."""


class RendezvousConnectionError(RendezvousError):
    """etcd cannot be reached, or refused the user.

    Args:
        message: what failed, and where.
        retryable: whether the same call may succeed later; False if etcd refused the user.
    """

    def __init__(self, *message: object, retryable: bool = True) -> None:
        super().__init__(*message)
        self.retryable = retryable


class RendezvousStateError(RendezvousError):
    """What is stored in etcd is damaged, or was written by something else than this rendezvous."""


class RendezvousGracefulExitError(RendezvousError):
    """The rendezvous was closed while this node waited as a spare. Nothing failed."""


@dataclass
class RendezvousStoreInfo:
    """The bootstrap of a round: the address and port of rank 0, where the workers meet."""

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"
    master_addr: str
    master_port: int

    @staticmethod
    def build(rank: int, store: Store, local_addr: str | None, server_port: int | None = None) -> RendezvousStoreInfo:
        """Publish the address from rank 0 and read it on every rank.

        Args:
            rank: the rank of this node.
            store: the store of the round.
            local_addr: the address of this node; its fully qualified host name by default.
            server_port: the port of the store that rank 0 serves; a free port by default.

        Raises:
            LookupError: rank 0 did not publish its address within the timeout of ``store``.
        """
        if rank == 0:
            addr = local_addr or socket.getfqdn()
            port = server_port or get_free_port()
            store.set(RendezvousStoreInfo.MASTER_ADDR_KEY, addr.encode())
            store.set(RendezvousStoreInfo.MASTER_PORT_KEY, str(port).encode())
            return RendezvousStoreInfo(addr, port)
        return RendezvousStoreInfo(
            store.get(RendezvousStoreInfo.MASTER_ADDR_KEY).decode(),
            int(store.get(RendezvousStoreInfo.MASTER_PORT_KEY).decode()),
        )


class RendezvousInfo:
    """The result of a round for one node."""

    def __init__(
        self, store: Store, rank: int, world_size: int, bootstrap_store_info: RendezvousStoreInfo | None
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._bootstrap_store_info = bootstrap_store_info

    def __repr__(self) -> str:
        bootstrap = self._bootstrap_store_info
        at = "None" if bootstrap is None else format_endpoint(bootstrap.master_addr, bootstrap.master_port)
        return f"RendezvousInfo(rank={self._rank}, world_size={self._world_size}, bootstrap={at})"

    @property
    def store(self) -> Store:
        """The round's key-value store."""
        return self._store

    @property
    def rank(self) -> int:
        """The rank of this node, from 0 to ``world_size`` - 1."""
        return self._rank

    @property
    def world_size(self) -> int:
        """The number of nodes in the round."""
        return self._world_size

    @property
    def bootstrap_store_info(self) -> RendezvousStoreInfo | None:
        """The address and port where the workers of the round meet; None if the backend provides none."""
        return self._bootstrap_store_info


class RendezvousHandler(ABC):
    """One node's part in the rounds of a rendezvous."""

    @abstractmethod
    def get_backend(self) -> str:
        """Return the name of the backend."""

    @property
    def use_agent_store(self) -> bool:
        """Whether a store already runs at the address that :meth:`next_rendezvous` returns."""
        return False

    @abstractmethod
    def next_rendezvous(self) -> RendezvousInfo:
        """Leave the current round, if this node is a member of one, and wait until it is a member of a complete round.

        Raises:
            RendezvousClosedError: the rendezvous is closed.
            RendezvousConnectionError: etcd cannot be reached.
            RendezvousGracefulExitError: the rendezvous was closed while this node waited as a spare.
            RendezvousStateError: what is stored in etcd is damaged, or was written by something else.
            RendezvousTimeoutError: no round became complete within the join timeout.
        """

    @abstractmethod
    def is_closed(self) -> bool:
        """Return whether this node knows that the rendezvous is closed. Nodes learn it at different times."""

    @abstractmethod
    def set_closed(self) -> None:
        """Close the rendezvous for all nodes. It cannot be opened again."""

    @abstractmethod
    def num_nodes_waiting(self) -> int:
        """Return the number of nodes that wait for the next round. If it is not 0, the caller should join again."""

    @abstractmethod
    def get_run_id(self) -> str:
        """Return the run id, which is the same on all nodes of the job."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Close the rendezvous and release the handler's resources. Return False if closing failed."""


class RendezvousParameters:
    """The parameters of a handler.

    Args:
        backend: the name of the backend.
        endpoint: ``host[:port]`` of etcd; several endpoints are separated by commas.
        run_id: the name of the job, which is the same on all its nodes.
        min_nodes: the minimum number of nodes of a round, at least 1.
        max_nodes: the maximum number of nodes of a round, at least ``min_nodes``.
        local_addr: the address of this node; its fully qualified host name by default.
        **kwargs: the backend's configuration; ``rendezvous config`` lists the keys.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not backend:
            raise ValueError("The name of the rendezvous backend must not be empty.")
        check_nodes(min_nodes, max_nodes)
        self.backend = backend
        self.endpoint = endpoint
        self.run_id = run_id
        self.min_nodes = min_nodes
        self.max_nodes = max_nodes
        self.config = kwargs
        self.local_addr = local_addr

    def __getstate__(self) -> dict[str, Any]:
        # A pickle may be stored or sent, so it contains no password.
        config = {key: value for key, value in self.config.items() if key != "password"}
        return {**self.__dict__, "config": config}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the configuration value of ``key``, or ``default`` if there is none."""
        return self.config.get(key, default)

    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """Return the value of ``key`` as a boolean: 1/0, true/false, t/f, yes/no or y/n, in any letter case.

        Raises:
            ValueError: the value is none of these.
        """
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        text = str(value).lower() if isinstance(value, (int, str)) else ""
        if text in ("1", "true", "t", "yes", "y"):
            return True
        if text in ("0", "false", "f", "no", "n"):
            return False
        raise ValueError(
            f"The rendezvous configuration option '{key}' must be a truth value such as true or false, not '{value}'."
        )

    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """Return the value of ``key`` as an integer.

        Raises:
            ValueError: the value is not an integer.
        """
        value = self.get(key, default)
        if value is None:
            return value
        try:
            return int(value)
        except (OverflowError, TypeError, ValueError):
            raise ValueError(
                f"The rendezvous configuration option '{key}' must be an integer, not '{value}'."
            ) from None


def check_nodes(min_nodes: int, max_nodes: int) -> None:
    """Raise ValueError if ``1 <= min_nodes <= max_nodes`` does not hold."""
    if min_nodes < 1:
        raise ValueError(f"The minimum number of nodes must be at least 1, not {min_nodes}.")
    if max_nodes < min_nodes:
        raise ValueError(f"The maximum number of nodes ({max_nodes}) must not be less than the minimum ({min_nodes}).")


RendezvousHandlerCreator = Callable[[RendezvousParameters], RendezvousHandler]


class RendezvousHandlerRegistry:
    """Creators of handlers, by the name of their backend."""

    def __init__(self) -> None:
        self._registry: dict[str, RendezvousHandlerCreator] = {}

    def __contains__(self, backend: str) -> bool:
        return backend in self._registry

    def register(self, backend: str, creator: RendezvousHandlerCreator) -> None:
        """Register ``creator`` as the function that creates the handlers of ``backend``.

        Raises:
            ValueError: the name is empty, or is registered with another creator.
        """
        if not backend:
            raise ValueError("The name of the rendezvous backend must not be empty.")
        known = self._registry.setdefault(backend, creator)
        if known != creator:
            raise ValueError(
                f"The rendezvous backend '{backend}' cannot be registered with '{creator}': it is already "
                f"registered with '{known}'."
            )

    def create_handler(self, params: RendezvousParameters) -> RendezvousHandler:
        """Create a handler of the backend ``params.backend``.

        Raises:
            ValueError: no such backend is registered.
            RuntimeError: the creator returned a handler of another backend.
        """
        creator = self._registry.get(params.backend)
        if creator is None:
            raise ValueError(
                f"The rendezvous backend '{params.backend}' is not registered; registered are: "
                f"{', '.join(sorted(self._registry)) or 'none'}."
            )
        handler = creator(params)
        if handler.get_backend() != params.backend:
            raise RuntimeError(
                f"The handler that was created for the rendezvous backend '{params.backend}' is of backend "
                f"'{handler.get_backend()}'."
            )
        return handler


rendezvous_handler_registry = RendezvousHandlerRegistry()
"""The registry that :func:`rendezvous.get_rendezvous_handler` uses."""
