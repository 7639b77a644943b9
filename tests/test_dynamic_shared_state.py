"""How the shared state applies the pacing: what it remembers between two pauses, and which counts it passes on."""

from __future__ import annotations

import time

import pytest

from rendezvous._core import Backoff, State
from rendezvous.dynamic import shared_state
from rendezvous.dynamic.backend import RendezvousBackend
from rendezvous.dynamic.pacing import MIN_READ_COST
from rendezvous.dynamic.rules import Action, Decision, Limits, Node
from rendezvous.dynamic.shared_state import SharedState
from tests.nodes import BOUND

pytestmark = pytest.mark.both_twins

NODES = 200
ME = Node("me", 1, 0)
LIMITS = Limits(NODES, NODES, 30_000, 5_000, 15_000)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


class Empty(RendezvousBackend):
    """A backend without a state."""

    name = "empty"

    def get_state(self):
        return None

    def set_state(self, state, token=None):
        raise NotImplementedError


@pytest.fixture
def shared():
    return SharedState(Empty(), ME, LIMITS, "run")


def see(shared, participants):
    state = State()
    for number in range(participants):
        state.join(Node(f"node-{number}", 1, 0), 1)
    shared._view = shared._view._replace(state=state)


def test_a_node_pauses_until_about_half_of_the_missing_nodes_should_have_joined(shared, clock):
    see(shared, 20)
    assert shared._settle().seconds == pytest.approx(20 * MIN_READ_COST)  # the rate is not known yet
    clock.now += 0.05
    see(shared, 40)
    assert shared._settle().seconds == pytest.approx(0.2)  # 20 joined in 0.05 s: 160 take 0.4 s
    clock.now += 0.01
    see(shared, 190)
    assert shared._settle().seconds == pytest.approx(190 * MIN_READ_COST)  # time for all to read once
    clock.now += 10
    see(shared, 191)
    assert shared._settle().seconds == pytest.approx(4 * 191 * MIN_READ_COST)  # 45 s would be too long
    clock.now += 10
    assert shared._settle().seconds == pytest.approx(191 * MIN_READ_COST)  # no node joined


@pytest.mark.parametrize(
    ("nodes", "base"), [(0, NODES * MIN_READ_COST / 4), (1000, 1000 * MIN_READ_COST / 4), (3000, 1.0)]
)
def test_the_delay_after_a_lost_swap_depends_on_the_number_of_nodes(shared, monkeypatch, nodes, base):
    ranges = []

    def record(base, cap):
        ranges.append((base, cap))
        return Backoff(base, cap)

    monkeypatch.setattr(shared_state, "Backoff", record)
    see(shared, nodes)
    shared.update(lambda *_: Decision(Action.WAIT, "for this test"), time.monotonic() + BOUND)
    assert ranges[-1] == (pytest.approx(base), 2.0)
