"""The checks of a measurement's outcome, and the error for a measurement that does not count."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Failed", "check_places", "explain"]


class Failed(RuntimeError):
    """A measurement does not count; the message says why."""


def explain(exc: BaseException) -> str:
    """Return the type and the message of an error; for :class:`Failed` only the message."""
    if isinstance(exc, Failed):
        return str(exc)
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def check_places(places: Sequence[tuple[int, int]], nodes: int) -> None:
    """Check that all nodes are in one world.

    Args:
        places: the rank and the world size that each node got.
        nodes: the number of nodes.

    Raises:
        Failed: the ranks are not 0 to ``nodes`` - 1, or a world size is not ``nodes``.
    """
    if sorted(rank for rank, _ in places) != list(range(nodes)):
        raise Failed("the ranks are not 0..n-1")
    if {size for _, size in places} != {nodes}:
        raise Failed("the nodes do not agree on the size of the world")
