"""The interface of a backend of the dynamic rendezvous: it stores one value with a fencing token."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

__all__ = ["RendezvousBackend", "Token", "index_of"]

Token = Any
"""An opaque fencing token: it changes with every write."""

_POLL_INTERVAL = 1.0
_LARGEST_INDEX = 2**62


def index_of(token: Token) -> int | None:
    """Return the etcd index (v2) or revision (v3) in ``token``; None if it cannot be one."""
    try:
        index = int(token)
    except (TypeError, ValueError, OverflowError):
        return None
    return index if 0 < index <= _LARGEST_INDEX else None


class RendezvousBackend(ABC):
    """Stores the state of a rendezvous for all its nodes, as bytes that it does not interpret."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the backend."""

    @property
    def place(self) -> str:
        """Where the state is stored, for messages."""
        return f"the backend '{self.name}'"

    @abstractmethod
    def get_state(self) -> tuple[bytes, Token] | None:
        """Return the state and its fencing token, or None if no state exists.

        Raises:
            RendezvousConnectionError: the backend cannot be reached.
            RendezvousStateError: what is stored cannot be a state.
        """

    @abstractmethod
    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Compare-and-set: write ``state`` if the stored token equals ``token`` (None means: no state exists).

        Returns:
            The state that is then stored, its token, and whether this call wrote it; None if no state exists.

        Raises:
            RendezvousConnectionError: the backend cannot be reached; the state may have been written.
            RendezvousStateError: what is stored cannot be a state.
        """

    def watch(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        """Wait until the state is newer than ``token``, for at most ``timeout`` seconds.

        Returns:
            A newer state, not necessarily the newest, and its token; None if the caller must read the state. This
            implementation, for backends that cannot watch, waits for at most a second and returns None.

        Raises:
            RendezvousConnectionError: the backend cannot be reached.
        """
        time.sleep(min(timeout, _POLL_INTERVAL))
        return None
