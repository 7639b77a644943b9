"""The decisions of the coordinated rendezvous, each with its reason."""

from __future__ import annotations

import itertools
import math

import pytest

from rendezvous.coordinated import rules
from rendezvous.coordinated.candidates import Candidate, choose
from rendezvous.coordinated.records import Closed, NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Counts, LastCall, Limits, Move, RankPolicy, Step

PAIR = Limits(2, 4, node_unit=2)


def forming(nodes: int, closed: bool = False) -> Counts:
    return Counts(False, 0, 0, 0, nodes, closed)


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
def test_a_round_has_whole_node_units_between_the_minimum_and_the_maximum(nodes, limits, size):
    assert rules.usable(nodes, limits) == size


def test_a_node_unit_without_a_multiple_in_the_range_is_refused():
    with pytest.raises(ValueError, match=r"'node_unit' \(4\) has no multiple from 5 to 7"):
        Limits(5, 7, node_unit=4)


@pytest.mark.parametrize(
    ("counts", "limits", "last_call", "move", "reason"),
    [
        (forming(9, closed=True), Limits(1, 4), None, Move.WAIT, "the rendezvous is closed"),
        (forming(1), Limits(2, 4), None, Move.WAIT, "1 of at least 2 nodes joined"),
        (forming(1), Limits(2, 4), LastCall(3, 3), Move.END_LAST_CALL, "1 of at least 2 nodes joined"),
        (forming(3), Limits(3, 6, node_unit=2), None, Move.WAIT, "3 of at least 4 nodes joined"),
        (forming(2), Limits(2, 4), None, Move.BEGIN_LAST_CALL, "2 nodes joined, enough for a round of 2"),
        (forming(3), Limits(2, 4), LastCall(29, 29), Move.WAIT, "last call: 3 nodes joined so far"),
        (forming(3), Limits(2, 4), LastCall(30, 30), Move.COMPLETE, "the last call has ended: 3 nodes joined"),
        (forming(4), Limits(2, 4), None, Move.COMPLETE, "4 nodes joined, the maximum of a round"),
        (forming(7), Limits(2, 4), LastCall(1, 1), Move.COMPLETE, "4 nodes joined, the maximum of a round"),
        (forming(4), Limits(2, 5, node_unit=2), None, Move.COMPLETE, "4 nodes joined, the maximum of a round"),
        (Counts(True, 1, 2, 1, 3), Limits(1, 4), None, Move.WAIT, "members still in the round: 1"),
        (Counts(True, 0, 2, 1, 3), Limits(1, 4), None, Move.OPEN, "all members have left or are lost"),
        (Counts(True, 0, 0, 4, 0), Limits(1, 4), None, Move.OPEN, "all members have left or are lost"),
    ],
)
def test_the_coordinator_decides_with_a_reason(counts, limits, last_call, move, reason):
    assert rules.coordinate(counts, limits, last_call)[:2] == (move, reason)


SHORT = Limits(2, 9, last_call=30, rejoin_settle=2)
WAITING = "last call: 8 nodes joined so far, 7 of 8 members of the last round returned"
SETTLED = "8 nodes joined, 7 of 8 members of the last round returned, and no other node joined for 2 s"


@pytest.mark.parametrize(
    ("returned", "lost", "new", "last_call", "move", "reason", "again"),
    [
        (7, 1, 1, LastCall(5, 0.5), Move.WAIT, WAITING, 1.5),
        (7, 1, 1, LastCall(5, 2), Move.CONFIRM, SETTLED, math.inf),
        (7, 1, 1, LastCall(5, 2, confirmed=True), Move.COMPLETE, SETTLED, math.inf),
        # It is never longer than the whole one, and not shortened if half of the members are lost or none is known.
        (7, 1, 1, LastCall(29, 0.5), Move.WAIT, WAITING, 1),
        (7, 1, 1, LastCall(30, 0.5), Move.COMPLETE, "the last call has ended: 8 nodes joined", math.inf),
        (4, 4, 0, LastCall(5, 5), Move.WAIT, "last call: 4 nodes joined so far", 25),
        (0, 998, 2, LastCall(5, 5), Move.WAIT, "last call: 2 nodes joined so far", 25),
        (0, 0, 2, LastCall(5, 5), Move.WAIT, "last call: 2 nodes joined so far", 25),
    ],
)  # fmt: skip
def test_the_last_call_is_short_if_more_members_have_returned_than_were_lost(
    returned, lost, new, last_call, move, reason, again
):
    assert rules.coordinate(Counts(False, 0, returned, lost, new), SHORT, last_call) == (move, reason, again)


@pytest.mark.parametrize(
    ("counts", "limits", "waiting", "spares"),
    [
        (forming(3), Limits(1, 4), 0, 0),
        (Counts(True, 4, 0, 0, 0), Limits(1, 4), 0, 0),
        (Counts(True, 4, 0, 0, 2), Limits(1, 4), 0, 2),  # no room: spares
        (Counts(True, 3, 0, 0, 2), Limits(1, 4), 2, 0),  # room: they are waiting
        (Counts(True, 3, 0, 0, 2), Limits(1, 4, upscale=False), 0, 2),
        (Counts(True, 3, 0, 1, 2), Limits(1, 4, upscale=False), 3, 0),  # one replaces the lost member
        # A round of nodes with other settings is too small for this coordinator: a newcomer must help.
        (Counts(True, 1, 0, 1, 2), Limits(3, 4, upscale=False, reform_on_loss=False), 2, 0),
        (Counts(True, 3, 0, 1, 0), Limits(1, 4), 1, 0),
        (Counts(True, 3, 0, 1, 0), Limits(1, 4, reform_on_loss=False), 0, 0),
        (Counts(True, 3, 0, 1, 1), Limits(1, 4, reform_on_loss=False), 1, 0),
        (Counts(True, 3, 1, 0, 0), Limits(1, 4), 1, 0),  # one member joined again
        (Counts(True, 2, 0, 0, 1), PAIR, 0, 1),  # one more node is not a whole node unit
        (Counts(True, 2, 0, 0, 2), PAIR, 2, 0),
        (Counts(True, 3, 1, 1, 2, closed=True), Limits(1, 4), 0, 0),
    ],
)
def test_which_nodes_are_a_reason_to_form_the_next_round(counts, limits, waiting, spares):
    assert rules.waiting(counts, limits) == waiting
    if not counts.closed:
        assert rules.spares(counts, limits) == spares


def test_if_there_are_spares_no_newcomer_is_waiting():
    for present, returned, lost, new in itertools.product(range(4), repeat=4):
        counts = Counts(True, present, returned, lost, new)
        for limits in (Limits(1, 4), PAIR, Limits(2, 4, upscale=False), Limits(2, 6, reform_on_loss=False)):
            quiet = returned == 0 and (lost == 0 or not limits.reform_on_loss)
            if rules.spares(counts, limits) and quiet:
                assert rules.waiting(counts, limits) == 0


def candidate(node_id: int, addr: str, **record: object) -> Candidate:
    return Candidate(node_id, record.pop("arrival", node_id), NodeRecord(addr, 1, 0, **record))  # type: ignore[arg-type]


def chosen(candidates: list[Candidate], number: int, limits: Limits) -> list[str]:
    return [each.record.addr for each in choose(candidates, number, limits)]


def test_ranks_follow_the_natural_order_of_the_hosts_and_not_the_arrival():
    nodes = [candidate(1, "node-10"), candidate(2, "node-2"), candidate(3, "node-1")]
    assert chosen(nodes, 0, Limits(1, 3)) == ["node-1", "node-2", "node-10"]


def test_a_rank_hint_goes_before_the_topology_and_the_topology_before_the_host():
    nodes = [
        candidate(1, "a", topology="pod2/rack1"),
        candidate(2, "b", topology="pod1/rack10"),
        candidate(3, "c", topology="pod1/rack9"),
        candidate(4, "d", topology="pod9", rank_hint=0),
    ]
    assert chosen(nodes, 0, Limits(1, 4)) == ["d", "c", "b", "a"]


def test_stable_ranks_keep_the_order_of_the_members_that_stay():
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


def test_members_of_the_last_round_are_preferred_then_earlier_arrivals():
    nodes = [
        candidate(1, "a", arrival=1),
        candidate(2, "b", arrival=2, last_round=6),
        candidate(3, "c", arrival=3, last_round=5),
        candidate(4, "d", arrival=4, last_round=6),
    ]
    assert chosen(nodes, 7, Limits(1, 3)) == ["a", "b", "d"]
    assert chosen(nodes, 7, Limits(2, 2, node_unit=2)) == ["b", "d"]


THIS, OTHER = "a" * 16, "b" * 16
COMPLETE = RoundRecord(3, Phase.COMPLETE, attempt=THIS, world_size=4)


SPARES = RoundRecord(3, Phase.COMPLETE, attempt=THIS, world_size=4, spares=1)
FORMING = RoundRecord(4, Phase.FORMING)
PASSED = "the join timeout has passed"


@pytest.mark.parametrize(
    ("record", "looked_up", "last", "stands_by", "closed", "late", "step", "reason"),
    [
        (None, "", -1, False, True, False, Step.ERROR_CLOSED, "the rendezvous is closed"),
        (
            COMPLETE,
            THIS,
            -1,
            True,
            True,
            False,
            Step.EXIT_GRACEFULLY,
            "the rendezvous was closed while the node was a spare",
        ),
        # Even if it is late: it may be a member.
        (COMPLETE, OTHER, 2, False, False, True, Step.LOOK_UP, "round 3 is complete"),
        # The node has looked in the roster of another round with this number.
        (SPARES, OTHER, -1, True, False, False, Step.LOOK_UP, "round 3 is complete"),
        (COMPLETE, OTHER, 3, False, False, False, Step.WAIT, "round 3 has not ended"),
        (COMPLETE, THIS, 2, False, False, False, Step.WAIT, "round 3 has not ended"),
        (COMPLETE, THIS, 2, False, False, True, Step.ERROR_TIMEOUT, PASSED),
        (SPARES, THIS, -1, False, False, True, Step.STAND_BY, "round 3 has no room for the node"),
        # The node was a member and has left: the spares are other nodes.
        (SPARES, THIS, 3, False, False, False, Step.WAIT, "round 3 has not ended"),
        (
            RoundRecord(4, Phase.FORMING),
            THIS,
            3,
            True,
            False,
            False,
            Step.WAIT,
            "round 4: 0 of at least 0 nodes joined",
        ),
        (RoundRecord(4, Phase.LAST_CALL), THIS, 3, False, False, True, Step.ERROR_TIMEOUT, PASSED),
        (None, "", -1, False, False, True, Step.ERROR_TIMEOUT, PASSED),
        (None, "", -1, False, False, False, Step.WAIT, "no round has begun"),
    ],
)
def test_the_next_step_of_a_node(record, looked_up, last, stands_by, closed, late, step, reason):
    assert rules.follow(record, looked_up, last, stands_by, closed, late) == (step, reason)


def test_a_node_that_left_a_round_and_has_a_new_lease_is_a_newcomer():
    step, _ = rules.follow(SPARES, THIS, 3, stands_by=False, closed=False, late=True, returned=False)
    assert step is Step.STAND_BY


def test_the_progress_says_how_many_joined_how_many_are_needed_and_which_are_missing():
    names = tuple(f"node-{number}" for number in range(8))
    record = RoundRecord(4, Phase.FORMING, joined=1021, min_nodes=1024, missing=names, missing_count=11)
    assert rules.progress(record, 1) == (
        "1021 of at least 1024 nodes joined round 4; missing since round 3: "
        "node-0, node-1, node-2, node-3, node-4, node-5, node-6, node-7 and 3 more"
    )
    assert rules.progress(None, 5) == "no coordinator has published a round; at least 5 nodes are needed"
    assert rules.progress(COMPLETE, 5) == (
        "round 3 with 4 members is complete, does not include this node and has not ended"
    )


def test_the_message_of_a_closed_rendezvous_says_why_and_by_whom_in_one_line():
    assert rules.closed_message("job", None) == "The rendezvous 'job' is closed."
    closed = Closed("out of\nmemory", "node-1_7_0")
    assert rules.closed_message("job", closed) == "The rendezvous 'job' is closed (out of\\nmemory, by node-1_7_0)."
    assert len(rules.closed_message("job", Closed("x" * 10_000, "node-1_7_0"))) < 300


def test_names_and_errors_from_etcd_are_escaped_in_messages():
    foreign, shown = "\x1b[2J\r\n\x9b\u202e", r"\x1b[2J\r\n\x9b\u202e"
    assert rules.closed_message("job", Closed(foreign, foreign)).endswith(f"({shown}, by {shown}).")
    forming = RoundRecord(4, Phase.FORMING, missing=(foreign, foreign), missing_count=2)
    assert rules.progress(forming, 1).endswith(f"missing since round 3: {shown}, {shown}")
    record = RoundRecord(3, Phase.COMPLETE, world_size=4, error=foreign)
    assert rules.follow(record, "", -1, False, False, False)[1].endswith(f"not known: {shown}")


def test_the_interval_between_records_grows_with_the_number_of_watchers():
    assert rules.publish_interval(2, urgent=True) == 0.1
    assert rules.publish_interval(10_000, urgent=True) == 5.0
    assert rules.publish_interval(2, urgent=False) == 1.0
    assert rules.publish_interval(10_000, urgent=False) == 20.0


@pytest.mark.parametrize(
    ("record", "min_nodes", "spread"),
    [
        (None, 2, 0.1),
        (None, 100_000, 50.0),  # nobody has published how many nodes there are
        (RoundRecord(0, Phase.FORMING, joined=10_000), 2, 5.0),
        (RoundRecord(0, Phase.COMPLETE, world_size=100_000), 2, 50.0),
        (RoundRecord(0, Phase.COMPLETE, world_size=50_000, waiting=4, spares=50_000), 2, 50.0),
        (RoundRecord(0, Phase.COMPLETE, world_size=50_000, waiting=50_000), 2, 50.0),
        (RoundRecord(0, Phase.FORMING, joined=2**31 - 1), 2, 65.536),  # more nodes than a round can have
    ],
)
def test_campaigns_are_spread_so_that_at_most_two_thousand_start_in_a_second(record, min_nodes, spread):
    assert rules.campaign_spread(record, min_nodes) == spread


@pytest.mark.parametrize(
    ("record", "attempt", "place"),
    [
        (None, "", False),
        (None, "a", True),
        (RoundRecord(3, Phase.COMPLETE, attempt="a", world_size=4), "a", True),
        (RoundRecord(3, Phase.COMPLETE, attempt="b", world_size=4), "a", False),  # the others formed a round without it
        (RoundRecord(3, Phase.COMPLETE, attempt="b", world_size=4), "", False),  # a spare
        (RoundRecord(4, Phase.FORMING, previous="a"), "a", True),
        (RoundRecord(4, Phase.FORMING, previous="a"), "", False),  # a newcomer
        (RoundRecord(0, Phase.LAST_CALL), "", False),
    ],
)
def test_a_node_has_a_place_if_it_is_a_member_of_the_latest_round(
    record: RoundRecord | None, attempt: str, place: bool
):
    assert rules.has_place(record, attempt) is place
