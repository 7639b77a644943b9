"""Faults of processes, and what their launchers do: they end, stop for a while, leave, join again, or close."""

from __future__ import annotations

from tests.simulation.plan import Fault, Kind
from tests.simulation.scene import Action, Scene
from tests.simulation.world import Node

__all__ = ["ACTIONS"]

_CLOCK_STEP = 3600.0


def _crash(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        scene.world.kill(node)


def _restart(scene: Scene, fault: Fault, seconds: float) -> None:
    _crash(scene, fault, seconds)
    scene.later(seconds, scene.world.start, fault.host)


def _freeze(scene: Scene, fault: Fault, seconds: float) -> None:
    """Stop a process, as SIGSTOP does, and continue it."""
    if (node := scene.node(fault)) is not None:
        scene.note(node.name, f"is frozen for {seconds:.1f} s")
        node.process.freeze()
        scene.later(seconds, _thaw, scene, node)


def _thaw(scene: Scene, node: Node) -> None:
    if node.process.frozen:
        scene.note(node.name, "runs again")
        node.process.thaw()


def _leave(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        scene.world.run(node, _leave_and_start(scene, node))


async def _leave_and_start(scene: Scene, node: Node) -> None:
    await scene.world.leave(node)
    if scene.over:  # the connection was slow, or the process frozen: Faults.end() still found the node
        scene.later(0.0, scene.world.start, node.host)


def _leave_and_join(scene: Scene, fault: Fault, seconds: float) -> None:
    """Let a node leave the run and join again, in the same process."""
    if (node := scene.node(fault)) is None:
        return
    node.excused = True
    if node.place is None:
        scene.world.run(node, node.member.leave(2.0))  # its join ends, and the launcher repeats it
    else:
        node.wants_to_leave = True
        node.link.deliver(node.member.view.wake)


def _rejoin(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        node.wants_to_rejoin = True
        node.link.deliver(node.member.view.wake)


def _close(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        scene.world.run(node, scene.world.close(node))


def _cannot_serve(scene: Scene, fault: Fault, seconds: float) -> None:
    """Let a node fail to start what the workers connect to, if it is rank 0."""
    if (node := scene.node(fault)) is not None:
        node.cannot_serve = True
        scene.later(seconds, setattr, node, "cannot_serve", False)


def _step_clock(scene: Scene, fault: Fault, seconds: float) -> None:
    """Set the wall clock of a node an hour forward or back."""
    if (node := scene.node(fault)) is not None:
        node.process.wall_offset += _CLOCK_STEP if fault.host % 2 else -_CLOCK_STEP
        scene.note(node.name, "its wall clock is set by an hour")


ACTIONS: dict[Kind, Action] = {
    Kind.CRASH: _crash,
    Kind.RESTART: _restart,
    Kind.FREEZE: _freeze,
    Kind.LEAVE: _leave,
    Kind.LEAVE_AND_JOIN: _leave_and_join,
    Kind.LATE: _restart,
    Kind.REJOIN: _rejoin,
    Kind.CLOSE: _close,
    Kind.CANNOT_SERVE: _cannot_serve,
    Kind.STEP_CLOCK: _step_clock,
}
