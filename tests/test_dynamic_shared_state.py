"""How often a node looks at the shared state while others change it: its etcd has room for those that still join."""

from __future__ import annotations

import time

import pytest

from rendezvous._core import State
from rendezvous.dynamic.rules import Limits, Node
from rendezvous.dynamic.shared_state import _LEAST_LOOK, SharedState

pytestmark = pytest.mark.both_twins

NODES = 200
ME = Node("me", 1, 0)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def shared():
    return SharedState(None, ME, Limits(NODES, NODES, 30_000, 5_000, 15_000), "run")


def see(shared, participants):
    state = State()
    for number in range(participants):
        state.join(Node(f"node-{number}", 1, 0), 1)
    shared._view = shared._view._replace(state=state)


def test_a_node_rests_until_half_of_the_missing_may_have_come(shared, clock):
    see(shared, 20)
    assert shared._pause() == pytest.approx(20 * _LEAST_LOOK)  # how fast they come is not known yet
    clock.now += 0.05
    see(shared, 40)
    assert shared._pause() == pytest.approx(0.2)  # 20 in 0.05 s, 160 in 0.4 s
    clock.now += 0.01
    see(shared, 190)
    assert shared._pause() == pytest.approx(190 * _LEAST_LOOK)  # so long as all take to look once
    clock.now += 10
    see(shared, 191)
    assert shared._pause() == pytest.approx(4 * 191 * _LEAST_LOOK)  # 45 s are more than it is worth
    clock.now += 10
    assert shared._pause() == pytest.approx(191 * _LEAST_LOOK)  # none came


def test_swaps_that_collide_give_way_to_as_many_as_there_are_nodes(shared):
    few = SharedState(None, ME, Limits(2, 4, 30_000, 5_000, 15_000), "run")
    assert 0.01 <= few._backoff().next() <= 0.03
    for state in (0, 1000):
        see(shared, state)
        base = max(NODES, state) * _LEAST_LOOK / 4
        assert base <= shared._backoff().next() <= 3 * base
    see(shared, 3000)
    assert 1.0 <= shared._backoff().next() <= 2.0
