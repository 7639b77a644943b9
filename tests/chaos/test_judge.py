"""The judge of the experiments finds each kind of fault, and none in a history that is right."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.judge import History, ended, lost_leases, wrong_worlds

SIZE = 3


def world(time: float, number: int, rank: int, name: str = "", **changes: Any) -> dict[str, Any]:
    known = {"attempt": f"attempt-{number}", "size": SIZE, "bootstrap": ["node-0", 29500], "node": 100 + rank}
    return {"time": time, "event": "world", "round": number, "rank": rank, **known, **changes}


def members(time: float, number: int, arrived: int, **changes: Any) -> dict[str, Any]:
    names = [f"node-{rank}" for rank in range(SIZE)]
    known = {"token": f"token-{number}", "members": names}
    return {"time": time, "event": "members", "round": number, "arrived": arrived, **known, **changes}


def leaves(time: float, number: int, rank: int, **changes: Any) -> dict[str, Any]:
    return {"time": time, "event": "leaves", "round": number, "node": 100 + rank, "lost": False, **changes}


def run() -> list[History]:
    """Return what three nodes report that are in round 0 and then in round 1."""
    return [
        History(
            f"node-{rank}",
            events=[
                {"time": 0.0, "event": "joins"},
                world(1.0 + rank / 10, 0, rank),
                members(2.0, 0, rank + 1),
                leaves(3.0 + rank / 10, 0, rank),
                {"time": 3.5, "event": "joins"},
                world(4.0 + rank / 10, 1, rank),
                members(5.0, 1, SIZE - rank),
            ],
        )
        for rank in range(SIZE)
    ]


def replace(history: History, index: int, **changes: Any) -> None:
    history.events[index] = {**history.events[index], **changes}


def test_a_run_without_faults():
    assert wrong_worlds(run()) == []
    assert lost_leases(run()) == []
    assert ended(run()) == []


@pytest.mark.parametrize(
    ("index", "changes", "found"),
    [
        (1, {"rank": 0}, "round 0: node-0 and node-1 both have rank 0"),
        (1, {"rank": 3}, "round 0: node-1 has rank 3 of 3"),
        (1, {"size": 4}, "round 0: its members have 2 values of size"),
        (1, {"attempt": "another"}, "round 0: its members have 2 values of attempt"),
        (1, {"bootstrap": ["node-1", 1]}, "round 0: its members have 2 values of bootstrap"),
        (2, {"token": "another"}, "round 0: its members read 2 values of token"),
        (2, {"members": ["node-0", "node-1"]}, "round 0: its members read 2 values of members"),
        (2, {"arrived": 1}, r"round 0: the store counted the arrivals of 3 members as [1, 1, 3]"),
        (2, {"arrived": 4}, r"round 0: the store counted the arrivals of 3 members as [1, 3, 4]"),
        (5, {"round": 0}, "node-1 was in round 0 and then in round 0"),
        (3, {"time": 4.05}, "node-0 was in round 1 while node-1 was still in round 0"),
    ],
)
def test_a_wrong_world_is_found(index, changes, found):
    histories = run()
    replace(histories[1], index, **changes)
    assert any(fault.startswith(found) for fault in wrong_worlds(histories)), wrong_worlds(histories)


def test_the_bootstrap_must_be_that_of_rank_0():
    histories = run()
    for history in histories:
        replace(history, 1, bootstrap=["node-2", 29500])
    assert wrong_worlds(histories) == ["round 0: node-0 has rank 0, and the bootstrap is ['node-2', 29500]"]


def test_a_member_that_never_leaves_while_the_others_go_on():
    histories = run()
    del histories[1].events[3:]
    assert len(wrong_worlds(histories)) == 2
    histories[1].killed = 3.0
    assert wrong_worlds(histories) == []
    histories[1].killed = None
    histories[1].freezes = [(2.5, 9.0)]
    assert wrong_worlds(histories) == []


def test_a_lease_that_was_lost_in_a_round():
    histories = run()
    replace(histories[1], 3, time=4.5, lost=True)
    assert wrong_worlds(histories) == []  # the others may go on
    assert lost_leases(histories) == [(4.5, "node-1 lost its lease in round 0")]
    histories[1].freezes = [(2.5, 3.0)]
    assert lost_leases(histories) == []


def test_a_node_that_returns_with_another_lease():
    histories = run()
    replace(histories[1], 5, node=7)
    assert lost_leases(histories) == [(4.1, "node-1 lost its lease between the rounds 0 and 1")]


def test_a_healthy_node_that_ends():
    histories = run()
    histories[1].events.append({"time": 6.0, "event": "error", "error": "RendezvousTimeoutError: late"})
    assert ended(histories) == ["node-1 ended: RendezvousTimeoutError: late"]
    histories[1].killed = 6.5
    assert len(ended(histories)) == 1
    histories[1].killed = 5.5
    assert ended(histories) == []
