"""The coordinated round's decisions, each with its reason."""

from __future__ import annotations

import itertools

import pytest

from rendezvous.coordinated import rules
from rendezvous.coordinated.records import NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Candidate, Limits, Move, RankPolicy, Step, Tally

PAIR = Limits(2, 4, node_unit=2)


def forming(nodes: int, closed: bool = False) -> Tally:
    return Tally(False, 0, 0, 0, nodes, closed)


@pytest.mark.parametrize(
    ("nodes", "limits", "size"),
    [
        (0, Limits(1, 4), 0),
        (1, Limits(2, 4), 0),
        (3, Limits(2, 4), 3),
        (9, Limits(2, 4), 4),
        (3, PAIR, 2),
        (5, Limits(3, 7, node_unit=2), 4),
        (3, Limits(3, 7, node_unit=2), 0),
        (9, Limits(3, 7, node_unit=2), 6),
    ],
)
def test_a_round_takes_whole_units_from_the_least_to_the_most(nodes, limits, size):
    assert rules.usable(nodes, limits) == size


def test_a_unit_without_a_multiple_in_range_is_refused():
    with pytest.raises(ValueError, match=r"'node_unit' \(4\) has no multiple from 5 to 7"):
        Limits(5, 7, node_unit=4)


@pytest.mark.parametrize(
    ("tally", "limits", "left", "move", "reason"),
    [
        (forming(9, closed=True), Limits(1, 4), None, Move.REST, "the rendezvous is closed"),
        (forming(1), Limits(2, 4), None, Move.REST, "1 of at least 2 nodes joined"),
        (forming(1), Limits(2, 4), 3.0, Move.END_LAST_CALL, "1 of at least 2 nodes joined"),
        (forming(3), Limits(3, 6, node_unit=2), None, Move.REST, "3 of at least 4 nodes joined"),
        (forming(2), Limits(2, 4), None, Move.BEGIN_LAST_CALL, "2 nodes joined, enough for a round of 2"),
        (forming(3), Limits(2, 4), 1.0, Move.REST, "last call: 3 nodes joined"),
        (forming(3), Limits(2, 4), 0.0, Move.COMPLETE, "the last call is over: 3 nodes joined"),
        (forming(4), Limits(2, 4), None, Move.COMPLETE, "4 nodes joined, the most that a round takes"),
        (forming(7), Limits(2, 4), 1.0, Move.COMPLETE, "4 nodes joined, the most that a round takes"),
        (forming(4), Limits(2, 5, node_unit=2), None, Move.COMPLETE, "4 nodes joined, the most that a round takes"),
        (Tally(True, 1, 2, 1, 3), Limits(1, 4), None, Move.REST, "1 members are in the round"),
        (Tally(True, 0, 2, 1, 3), Limits(1, 4), None, Move.OPEN, "every member has left or is lost"),
        (Tally(True, 0, 0, 4, 0), Limits(1, 4), None, Move.OPEN, "every member has left or is lost"),
    ],
)
def test_the_coordinator_decides(tally, limits, left, move, reason):
    assert rules.coordinate(tally, limits, left) == (move, reason)


@pytest.mark.parametrize(
    ("tally", "limits", "waiting", "spares"),
    [
        (forming(3), Limits(1, 4), 0, 0),
        (Tally(True, 4, 0, 0, 0), Limits(1, 4), 0, 0),
        (Tally(True, 4, 0, 0, 2), Limits(1, 4), 0, 2),  # full: spares
        (Tally(True, 3, 0, 0, 2), Limits(1, 4), 2, 0),  # room: they wait
        (Tally(True, 3, 0, 0, 2), Limits(1, 4, upscale=False), 0, 2),
        (Tally(True, 3, 0, 1, 2), Limits(1, 4, upscale=False), 3, 0),  # in place of the lost one
        (Tally(True, 3, 0, 1, 0), Limits(1, 4), 1, 0),
        (Tally(True, 3, 0, 1, 0), Limits(1, 4, reform_on_loss=False), 0, 0),
        (Tally(True, 3, 0, 1, 1), Limits(1, 4, reform_on_loss=False), 1, 0),
        (Tally(True, 3, 1, 0, 0), Limits(1, 4), 1, 0),  # one asked to join again
        (Tally(True, 2, 0, 0, 1), PAIR, 0, 1),  # one more makes no pair
        (Tally(True, 2, 0, 0, 2), PAIR, 2, 0),
        (Tally(True, 3, 1, 1, 2, closed=True), Limits(1, 4), 0, 0),
    ],
)
def test_who_is_a_reason_to_form_the_next_round(tally, limits, waiting, spares):
    assert rules.waiting(tally, limits) == waiting
    if not tally.closed:
        assert rules.spares(tally, limits) == spares


def test_a_spare_is_never_a_reason_and_a_reason_never_a_spare():
    counts = range(4)
    for present, returned, lost, new in itertools.product(counts, repeat=4):
        tally = Tally(True, present, returned, lost, new)
        for limits in (Limits(1, 4), PAIR, Limits(2, 4, upscale=False), Limits(2, 6, reform_on_loss=False)):
            quiet = returned == 0 and (lost == 0 or not limits.reform_on_loss)
            if rules.spares(tally, limits) and quiet:
                assert rules.waiting(tally, limits) == 0


def candidate(node_id: int, addr: str, **record: object) -> Candidate:
    return Candidate(node_id, record.pop("arrival", node_id), NodeRecord(addr, 1, 0, **record))  # type: ignore[arg-type]


def chosen(candidates: list[Candidate], number: int, limits: Limits) -> list[str]:
    return [each.record.addr for each in rules.choose(candidates, number, limits)]


def test_ranks_follow_the_natural_order_of_the_hosts_whoever_came_first():
    nodes = [candidate(1, "node-10"), candidate(2, "node-2"), candidate(3, "node-1")]
    assert chosen(nodes, 0, Limits(1, 3)) == ["node-1", "node-2", "node-10"]


def test_the_topology_goes_before_the_host_and_a_hint_before_all():
    nodes = [
        candidate(1, "a", topology="pod2/rack1"),
        candidate(2, "b", topology="pod1/rack10"),
        candidate(3, "c", topology="pod1/rack9"),
        candidate(4, "d", topology="pod9", rank_hint=0),
    ]
    assert chosen(nodes, 0, Limits(1, 4)) == ["d", "c", "b", "a"]


def test_stable_ranks_keep_the_order_of_those_who_stay():
    nodes = [
        candidate(1, "a", last_round=4, last_rank=2),
        candidate(2, "c", last_round=4, last_rank=0),
        candidate(3, "b"),
        candidate(4, "0", last_round=3, last_rank=1),
    ]
    assert chosen(nodes, 5, Limits(1, 4, rank_policy=RankPolicy.STABLE)) == ["c", "a", "0", "b"]


def test_ranks_by_arrival():
    nodes = [candidate(1, "a", arrival=9), candidate(2, "b", arrival=3)]
    assert chosen(nodes, 0, Limits(1, 4, rank_policy=RankPolicy.ARRIVAL)) == ["b", "a"]


def test_members_of_the_last_round_go_before_newcomers_then_who_came_first():
    nodes = [
        candidate(1, "a", arrival=1),
        candidate(2, "b", arrival=2, last_round=6),
        candidate(3, "c", arrival=3, last_round=5),
        candidate(4, "d", arrival=4, last_round=6),
    ]
    assert chosen(nodes, 7, Limits(1, 3)) == ["a", "b", "d"]
    assert chosen(nodes, 7, Limits(2, 2, node_unit=2)) == ["b", "d"]


COMPLETE = RoundRecord(3, Phase.COMPLETE, world_size=4)


@pytest.mark.parametrize(
    ("record", "looked_up", "last", "stands_by", "closed", "late", "step"),
    [
        (None, -1, -1, False, True, False, Step.ERROR_CLOSED),
        (COMPLETE, 3, -1, True, True, False, Step.EXIT_GRACEFULLY),
        (COMPLETE, 2, 2, False, False, True, Step.LOOK_UP),  # even late: it may be in
        (COMPLETE, 3, 2, False, False, False, Step.WAIT),
        (COMPLETE, 3, 2, False, False, True, Step.ERROR_TIMEOUT),
        (RoundRecord(3, Phase.COMPLETE, world_size=4, spares=1), 3, -1, False, False, True, Step.STAND_BY),
        # It was a member and has left: others are the spares.
        (RoundRecord(3, Phase.COMPLETE, world_size=4, spares=1), 3, 3, False, False, False, Step.WAIT),
        (RoundRecord(4, Phase.FORMING), 3, 3, True, False, False, Step.WAIT),
        (RoundRecord(4, Phase.LAST_CALL), 3, 3, False, False, True, Step.ERROR_TIMEOUT),
        (None, -1, -1, False, False, True, Step.ERROR_TIMEOUT),
        (None, -1, -1, False, False, False, Step.WAIT),
    ],
)
def test_a_node_follows(record, looked_up, last, stands_by, closed, late, step):
    assert rules.follow(record, looked_up, last, stands_by, closed, late)[0] is step


def test_blame_says_who_came_who_was_needed_and_who_is_missing():
    names = tuple(f"node-{number}" for number in range(8))
    record = RoundRecord(4, joined=1021, min_nodes=1024, missing=names, missing_count=11)
    assert rules.blame(record, 1) == (
        "1021 of at least 1024 nodes joined round 4; missing since round 3: "
        "node-0, node-1, node-2, node-3, node-4, node-5, node-6, node-7 and 3 more"
    )
    assert rules.blame(None, 5).endswith("at least 5 nodes are needed")
    assert rules.blame(COMPLETE, 5) == "round 3 of 4 nodes is complete without this node and is not over"


def test_records_are_paced_by_the_number_of_those_who_hear_them():
    assert rules.publish_interval(2, urgent=True) == 0.1
    assert rules.publish_interval(10_000, urgent=True) == 5.0
    assert rules.publish_interval(2, urgent=False) == 1.0
    assert rules.publish_interval(10_000, urgent=False) == 20.0
