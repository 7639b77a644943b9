"""What a backend of the dynamic rendezvous is: one value with a fencing token."""

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
    """Return the index (v2) or revision (v3) of etcd's that ``token`` stands for, or None where it can be none."""
    try:
        index = int(token)
    except (TypeError, ValueError, OverflowError):
        return None
    return index if 0 < index <= _LARGEST_INDEX else None


class RendezvousBackend(ABC):
    """Holds the state of a rendezvous for all its nodes. What the bytes mean is not its concern."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the backend."""

    @abstractmethod
    def get_state(self) -> tuple[bytes, Token] | None:
        """Return the state and its fencing token, or None where there is no state.

        Raises:
            RendezvousConnectionError: the backend cannot be reached.
            RendezvousStateError: the backend holds something that cannot be a state.
        """

    @abstractmethod
    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Write ``state`` if ``token`` is the one of the state that is there, or is None and there is none.

        Returns:
            The state that is there then, its token, and whether it is the one written; None where there is none.

        Raises:
            RendezvousConnectionError: the backend cannot be reached; the state may have been written.
            RendezvousStateError: the backend holds something that cannot be a state.
        """

    def watch(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        """Wait until the state is not the one of ``token`` any more, or ``timeout`` seconds are over.

        Returns:
            A state since then, not necessarily the newest, and its token; None where the caller must ask. This
            implementation, for backends that cannot watch, waits a second at most.

        Raises:
            RendezvousConnectionError: the backend cannot be reached.
        """
        time.sleep(min(timeout, _POLL_INTERVAL))
        return None
