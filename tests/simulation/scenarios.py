"""Nine scripted scenarios of the protocol, and their transcripts.

A script starts nodes, injects faults, and waits for conditions. The lines of a transcript come from what is written to
etcd, and from what the calls of the nodes return or raise. The invariants are checked as in the other runs.
"""

from __future__ import annotations

import asyncio
import random
import textwrap
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rendezvous.coordinated.lifecycle import State
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.rules import Limits
from rendezvous.etcd.v3.calls import Call
from tests.simulation.network import Conditions
from tests.simulation.network_faults import cut, reconnect
from tests.simulation.run import quiet
from tests.simulation.snapshots import restore, take_snapshot
from tests.simulation.virtual import make_loop, run
from tests.simulation.world import TTL, Node, World

__all__ = ["COMMAND", "FOLDER", "SCENARIOS", "Scenario", "regenerate", "transcript"]

FOLDER = Path(__file__).with_name("transcripts")
COMMAND = "python -m tests.simulation --transcripts"

_SMALL_ROSTERS = Options(inline_nodes=1, shard_nodes=1, operations=1)
"""Each shard of a roster has one node, and each shard needs a transaction of its own."""

Script = Callable[[World], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Scenario:
    """A script with its introduction.

    Attributes:
        name: the name of the transcript's file, without ``.txt``.
        shows: what the scenario shows.
        limits: the configuration of the rules.
        script: what happens.
        options: intervals and limits of all members.
    """

    name: str
    shows: str
    limits: Limits
    script: Script
    options: Options = Options()  # noqa: RUF009, it is immutable


SCENARIOS: list[Scenario] = []


def _scenario(limits: Limits, options: Options = Options()) -> Callable[[Script], Script]:  # noqa: B008
    def register(script: Script) -> Script:
        assert script.__doc__ is not None
        shows = " ".join(script.__doc__.split())
        SCENARIOS.append(Scenario(script.__name__.strip("_"), shows, limits, script, options))
        return script

    return register


def transcript(scenario: Scenario) -> str:
    """Run a scenario and return its transcript."""
    lines: list[str] = []
    world = World(scenario.limits, Conditions(latency=0.002), scenario.options, random.Random(0), lines)
    with quiet():
        run(_play(scenario, world), make_loop())
    limits = scenario.limits
    nodes = (
        str(limits.min_nodes) if limits.min_nodes == limits.max_nodes else f"{limits.min_nodes} to {limits.max_nodes}"
    )
    title = scenario.name.replace("_", " ").capitalize()
    head = [
        *textwrap.wrap(f"{title}. {scenario.shows}", 100, initial_indent="# ", subsequent_indent="# "),
        f"# A round has {nodes} nodes. The last call is {limits.last_call:g} s, the time to live of a lease {TTL} s.",
        f"# Columns: seconds, who, what. Written by `{COMMAND}`.",
        "",
    ]
    return "\n".join([*head, *lines, ""])


async def _play(scenario: Scenario, world: World) -> None:
    await scenario.script(world)
    world.raise_violation()
    world.transcript = None
    for node in world.nodes:
        world.kill(node)


def regenerate() -> None:
    """Write the transcripts of all scenarios, and delete those of others."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for scenario in SCENARIOS:
        (FOLDER / f"{scenario.name}.txt").write_text(transcript(scenario), encoding="utf-8")


# What scripts do.


async def _until(world: World, condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    for _ in range(1000):
        world.raise_violation()
        if condition():
            return
        await _pause(0.1)
    raise AssertionError("the condition did not become true within 100 s")


async def _pause(seconds: float) -> None:
    """Let time pass in the story."""
    await asyncio.sleep(seconds)


async def _start(world: World, *hosts: int) -> None:
    """Start nodes, one after the other."""
    for host in hosts:
        world.start(host)
        await _pause(0.25)


def _node(world: World, host: int) -> Node:
    node = world.running(host)
    assert node is not None
    return node


def _in_round(world: World, number: int, *hosts: int) -> Callable[[], bool]:
    """Return the condition that the join of each of the hosts has returned from a round."""

    def condition() -> bool:
        nodes = [world.running(host) for host in hosts]
        places = [None if node is None else node.place for node in nodes]
        return all(place is not None and place.round == number for place in places)

    return condition


async def _form(world: World, *hosts: int) -> None:
    """Start nodes and wait until they are in round 0."""
    await _start(world, *hosts)
    await _until(world, _in_round(world, 0, *hosts))


async def _becomes_spare(world: World, host: int) -> None:
    node = _node(world, host)
    await _until(world, lambda: node.member.state is State.STANDING_BY)
    world.note(node.name, f"is {node.member.state.value}")


# The scenarios.


@_scenario(Limits(2, 3, last_call=5.0))
async def _formation(world: World) -> None:
    """Three nodes start. The first one becomes the coordinator. With the third one the round has its maximum and is
    complete without a last call.
    """
    await _form(world, 0, 1, 2)


@_scenario(Limits(2, 3, last_call=5.0))
async def _last_call(world: World) -> None:
    """With two nodes, enough for a round, the last call begins. One of them leaves, which cancels the last call. It
    starts again, and the next last call ends without a third node: the round has two members.
    """
    await _start(world, 0, 1)
    await _pause(2.0)
    await world.leave(_node(world, 1))
    await _pause(2.0)
    await _start(world, 1)
    await _until(world, _in_round(world, 0, 0, 1))


@_scenario(Limits(2, 3, last_call=2.0))
async def _late_node(world: World) -> None:
    """A third node starts when the round is complete. The round has room for it, so the members leave the round and
    form the next one with it.
    """
    await _form(world, 0, 1)
    await _pause(2.0)
    await _start(world, 2)
    await _until(world, _in_round(world, 1, 0, 1, 2))


@_scenario(Limits(2, 3, last_call=2.0))
async def _node_lost(world: World) -> None:
    """A member is killed. Its lease ends, the other members leave the round, and the next round is complete without it
    after the last call.
    """
    await _form(world, 0, 1, 2)
    await _pause(2.0)
    world.kill(_node(world, 2))
    await _until(world, _in_round(world, 1, 0, 1))


@_scenario(Limits(2, 3, last_call=2.0), _SMALL_ROSTERS)
async def _coordinator_lost(world: World) -> None:
    """The coordinator is killed when it has written a part of the roster. The round is not complete, so no node uses
    that part. The next coordinator makes another attempt, which has an id of its own, and completes the round. (Here
    each shard of a roster has one node.)
    """

    def kill_after_first_shard(node: Node, stage: str, call: Call, request: Any) -> None:
        prefix = world.keys.of_round("roster", 0)
        written = [op.request_put.key for op in request.success] if call is Call.TXN else []
        if stage == "after" and any(key.startswith(prefix) for key in written):
            world.hook = lambda node, stage, call, request: None
            world.kill(node)

    world.hook = kill_after_first_shard
    await _start(world, 0, 1, 2)
    await _until(world, _in_round(world, 0, 1, 2))


@_scenario(Limits(2, 3, last_call=2.0))
async def _partition(world: World) -> None:
    """The coordinator is cut off from etcd. Its lease ends, and the others elect another coordinator and form a round
    without it. When it can reach etcd again, it sees the later round and joins; the next round has all three nodes.
    """
    await _form(world, 0, 1, 2)
    await _pause(2.0)
    cut(world, _node(world, 0))
    await _until(world, _in_round(world, 1, 1, 2))
    await _pause(2.0)
    reconnect(world, _node(world, 0))
    await _until(world, _in_round(world, 2, 0, 1, 2))


@_scenario(Limits(2, 2, last_call=2.0))
async def _spare_promoted(world: World) -> None:
    """A round has room for two nodes, so the third one is a spare and its join waits. When a member is killed, the
    spare becomes a member of the next round.
    """
    await _form(world, 0, 1)
    await _start(world, 2)
    await _becomes_spare(world, 2)
    await _pause(2.0)
    world.kill(_node(world, 1))
    await _until(world, _in_round(world, 1, 0, 2))


@_scenario(Limits(2, 2, last_call=2.0))
async def _close(world: World) -> None:
    """A member closes the rendezvous. The join of a spare ends with RendezvousGracefulExitError, the join of a node
    that comes later with RendezvousClosedError. The members stay in their round.
    """
    await _form(world, 0, 1)
    await _start(world, 2)
    await _becomes_spare(world, 2)
    await _pause(2.0)
    await world.close(_node(world, 1))
    await _until(world, lambda: _node(world, 2).ended)
    await _start(world, 3)
    await _until(world, lambda: _node(world, 3).ended)
    assert _node(world, 0).member.is_closed()


@_scenario(Limits(2, 3, last_call=2.0))
async def _restored_etcd(world: World) -> None:
    """etcd is restored from a snapshot that was taken in an earlier round, and other programs have written so much
    since then that the revision does not show it. Each node sees it in the keys that it reads when its watch continues,
    gives up its lease, and joins again. The next round has a higher number than all rounds that a node was in.
    """
    await _form(world, 0, 1, 2)
    world.note("operator", "takes a snapshot of etcd")
    snapshot = take_snapshot(world)
    await _pause(2.0)
    world.kill(_node(world, 2))
    await _until(world, _in_round(world, 1, 0, 1))
    await _pause(2.0)
    world.note("operator", "restores etcd from the snapshot")
    restore(world, snapshot, new_cluster_id=False, pushed=True)
    await _until(world, _in_round(world, 2, 0, 1))
