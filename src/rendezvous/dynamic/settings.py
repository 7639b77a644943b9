"""The settings of a dynamic rendezvous."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["RendezvousSettings", "RendezvousTimeout"]


class RendezvousTimeout:
    """The timeouts of a rendezvous.

    Args:
        join: within which a round must be complete; 600 s by default.
        last_call: how long a round with enough nodes waits for more; 30 s by default.
        close: within which closing must succeed; 30 s by default.
        heartbeat: within which a heartbeat must succeed; 5 s by default.

    Raises:
        ValueError: one is not positive.
    """

    def __init__(
        self,
        join: timedelta | None = None,
        last_call: timedelta | None = None,
        close: timedelta | None = None,
        heartbeat: timedelta | None = None,
    ) -> None:
        self._join = self._positive("join", join, 600)
        self._last_call = self._positive("last call", last_call, 30)
        self._close = self._positive("close", close, 30)
        self._heartbeat = self._positive("heartbeat", heartbeat, 5)

    @staticmethod
    def _positive(name: str, timeout: timedelta | None, default: int) -> timedelta:
        timeout = timedelta(seconds=default) if timeout is None else timeout
        if timeout <= timedelta(0):
            raise ValueError(f"The {name} timeout ({timeout}) must be positive.")
        return timeout

    @property
    def join(self) -> timedelta:
        """Within which a round must be complete."""
        return self._join

    @property
    def last_call(self) -> timedelta:
        """How long a round with enough nodes waits for more."""
        return self._last_call

    @property
    def close(self) -> timedelta:
        """Within which closing must succeed."""
        return self._close

    @property
    def heartbeat(self) -> timedelta:
        """Within which a heartbeat must succeed."""
        return self._heartbeat


@dataclass(repr=False, eq=False, frozen=True)
class RendezvousSettings:
    """The settings of a rendezvous.

    Attributes:
        run_id: the run id.
        min_nodes: the smallest number of nodes in a round.
        max_nodes: the greatest number of nodes in a round.
        timeout: the timeouts.
        keep_alive_interval: how often a node sends a heartbeat.
        keep_alive_max_attempt: after how many missed heartbeats a node is taken for dead.
    """

    run_id: str
    min_nodes: int
    max_nodes: int
    timeout: RendezvousTimeout
    keep_alive_interval: timedelta
    keep_alive_max_attempt: int
