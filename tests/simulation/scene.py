"""What all faults need: the world, and until when something is wrong in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.plan import FAULTS_END, Fault
from tests.simulation.virtual import now
from tests.simulation.world import Node, World

__all__ = ["Action", "Scene"]

Action = Callable[["Scene", Fault, float], None]
"""Injects a fault, for some seconds."""


class Scene:
    """A world in which faults happen.

    Args:
        world: the nodes, etcd and the network.

    Attributes:
        over: whether all faults have ended.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.over = False

    def node(self, fault: Fault) -> Node | None:
        """Return the node that a fault happens to, if it runs."""
        return self.world.running(fault.host)

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Do something after some seconds."""
        asyncio.get_running_loop().call_later(seconds, callback, *arguments)

    def fault_until(self, when: float) -> None:
        """Record that something is wrong until ``when``, a time in seconds."""
        invariants = self.world.invariants
        invariants.faults_until = max(invariants.faults_until, when)

    def fault_for(self, seconds: float) -> None:
        """Record that something is wrong for some seconds."""
        self.fault_until(now() + seconds)

    def fault_to_the_end(self) -> None:
        """Record that something is wrong until all faults end."""
        self.fault_until(FAULTS_END)

    def note(self, who: str, what: str) -> None:
        """Add a line to the transcript."""
        self.world.note(who, what)
