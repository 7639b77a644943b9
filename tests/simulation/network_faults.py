"""Faults of the connection between one process and etcd."""

from __future__ import annotations

from tests.simulation.network import Link
from tests.simulation.plan import Fault, Kind
from tests.simulation.scene import Action, Scene
from tests.simulation.world import Node, World

__all__ = ["ACTIONS", "cut", "reconnect", "repair"]

_SLOWNESS = 50.0


def cut(world: World, node: Node) -> None:
    """Cut a node off from etcd."""
    node.link.cut = True
    node.link.break_streams()
    world.note(node.name, "is cut off from etcd")


def reconnect(world: World, node: Node) -> None:
    """Let a node reach etcd again."""
    if node.link.requests_cut or node.link.answers_cut:
        node.link.cut = False
        node.link.break_streams()
        world.note(node.name, "can reach etcd again")


def repair(link: Link) -> None:
    """End all faults of a connection."""
    link.cut, link.slowness, link.behind, link.silent, link.refused = False, 1.0, 0.0, False, False


def _cut(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        cut(scene.world, node)
        scene.later(seconds, reconnect, scene.world, node)


def _cut_and_compact(scene: Scene, fault: Fault, seconds: float) -> None:
    """Cut a node off, and compact the history before it can reach etcd again."""
    etcd = scene.world.etcd
    scene.later(seconds, lambda: etcd.compact(etcd.revision))
    _cut(scene, fault, seconds)


def _cut_requests(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        node.link.requests_cut = True
        scene.note(node.name, "its requests do not reach etcd")
        scene.later(seconds, reconnect, scene.world, node)


def _cut_answers(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        node.link.answers_cut = True
        scene.note(node.name, "etcd's answers do not reach it")
        scene.later(seconds, reconnect, scene.world, node)


def _slow(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        node.link.slowness = _SLOWNESS
        scene.fault_to_the_end()
        scene.note(node.name, "its connection is slow")


def _silent_keep_alives(scene: Scene, fault: Fault, seconds: float) -> None:
    if (node := scene.node(fault)) is not None:
        node.link.silent = True
        scene.note(node.name, f"its keep-alives are not answered for {seconds:.1f} s")
        scene.later(seconds, setattr, node.link, "silent", False)


def _behind(scene: Scene, fault: Fault, seconds: float) -> None:
    """Let the member of etcd that a node uses be behind the others."""
    if (node := scene.node(fault)) is not None:
        node.link.behind = seconds / 2
        scene.note(node.name, f"its etcd is {seconds / 2:.1f} s behind")
        scene.later(seconds, setattr, node.link, "behind", 0.0)


ACTIONS: dict[Kind, Action] = {
    Kind.CUT: _cut,
    Kind.CUT_AND_COMPACT: _cut_and_compact,
    Kind.CUT_REQUESTS: _cut_requests,
    Kind.CUT_ANSWERS: _cut_answers,
    Kind.SLOW: _slow,
    Kind.SILENT_KEEP_ALIVES: _silent_keep_alives,
    Kind.BEHIND: _behind,
}
