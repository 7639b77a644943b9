"""Since when the last call of a round goes on, and since when no node has joined."""

from __future__ import annotations

import asyncio

from rendezvous.coordinated.rules import LastCall

__all__ = ["LastCallTimer"]


class LastCallTimer:
    """Measures the last call of the round that forms.

    Attributes:
        began: when it began, in seconds of the event loop's clock; None if there is no last call.
    """

    def __init__(self) -> None:
        self.began: float | None = None
        self._joined = 0  # how many nodes had joined, and when the last one did
        self._joined_at = 0.0
        self._confirmed = -1  # how many had joined when etcd confirmed that it has no other

    def begin(self) -> None:
        """Begin the last call now. What etcd confirmed in an earlier one does not count."""
        self.began, self._confirmed = asyncio.get_running_loop().time(), -1

    def end(self) -> None:
        """End the last call."""
        self.began = None

    def confirm(self, joined: int, no_other: bool) -> None:
        """Record whether etcd had no other node when ``joined`` nodes were known; if it had, it has joined now."""
        if no_other:
            self._confirmed = joined
        else:
            self._joined_at = asyncio.get_running_loop().time()

    def measure(self, joined: int) -> LastCall | None:
        """Return what the rules decide by; None if there is no last call.

        Args:
            joined: how many nodes have joined, those that are gone again included.
        """
        if self.began is None:
            return None
        now = asyncio.get_running_loop().time()
        if joined != self._joined:
            self._joined, self._joined_at = joined, now
        return LastCall(now - self.began, now - max(self.began, self._joined_at), self._confirmed == joined)
