"""What the soak says about reports."""

from __future__ import annotations

import pytest

from tests.soak import figures
from tests.soak.worlds import Worlds

NAMES = ["node-0", "node-1", "node-2"]


def world(rank, number=0, /, **fields):
    place = {"name": NAMES[rank], "node": rank + 7, "round": number, "attempt": f"attempt-{number}"}
    return {"event": "world", **place, "rank": rank, "size": 3, "bootstrap": [NAMES[0], 29500], **fields}


def met(rank, number=0, members=NAMES):
    return {"event": "met", "name": NAMES[rank], "round": number, "attempt": f"attempt-{number}", "members": members}


def left(rank, number=0, wrong=()):
    return {"event": "left", "name": NAMES[rank], "round": number, "wrong": list(wrong)}


@pytest.fixture
def worlds():
    return Worlds(3)


def take(worlds, *reports):
    for report in reports:
        worlds.take(report)
    return worlds.faults


def a_round(number=0):
    return [world(rank, number) for rank in range(3)] + [met(rank, number) for rank in range(3)]


def test_good_rounds(worlds):
    assert take(worlds, *a_round()) == []
    assert (worlds.round, worlds.settled) == (0, True)
    take(worlds, left(0))
    assert not worlds.settled
    assert take(worlds, left(1), left(2), *a_round(1)) == []
    assert (worlds.round, worlds.settled) == (1, True)


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (world(2, size=2), "has rank 2 of 2"),
        (world(2, rank=3), "has rank 3 of 3"),
        (world(2, rank=1), "node-2 and node-1 both have rank 1"),
        (world(2, bootstrap=["node-0", 1]), "has the bootstrap"),
        (world(2, attempt="another"), "was completed twice"),
        (world(1), "node-1 was in round 0 and then in round 0"),
        (world(2, 1), "and node-0 in an earlier one"),
        (met(1, members=["node-1", "node-0", "node-2"]), "met others"),
        (met(1, members=NAMES[:2]), "met others"),
        (left(1, wrong=["its lease has ended (lost)"]), "node-1 in round 0: its lease has ended"),
        (
            {"event": "error", "name": "node-1", "error": "RendezvousTimeoutError: no"},
            "ended with an error: Rendezvous",
        ),
    ],
)
def test_what_is_wrong_is_said(worlds, report, fault):
    assert take(worlds, world(0), world(1)) == []
    assert fault in take(worlds, report)[0]


def test_rank_0_is_where_the_workers_meet(worlds):
    assert "and the bootstrap is" in take(worlds, world(0, bootstrap=["node-1", 29500]))[0]


@pytest.mark.parametrize("name", figures.ALLOWED)
def test_each_figure_may_not_grow(name):
    before = dict.fromkeys(figures.ALLOWED, 1000)
    limit = int(1000 * (1 + figures.ALLOWED[name].part)) + figures.ALLOWED[name].number
    assert figures.growth(before, {**before, name: limit}) == []
    assert figures.growth(before, {**before, name: limit + 1})[0].startswith(f"{name}: 1000 after the warm-up")
    assert figures.growth(before, dict.fromkeys(before, 0)) == []
