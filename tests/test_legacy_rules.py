"""The rules of the legacy rendezvous: for each state, what a node does and the reason."""

from __future__ import annotations

import json

import pytest

from rendezvous import RendezvousStateError
from rendezvous.legacy import rules
from rendezvous.legacy.rules import Action, Limits

TWO_TO_FOUR = Limits(2, 4)
SETUP = {"status": "setup"}
CLOSED = {"status": "closed", "version": "3", "participants": [0]}


def joinable(*participants, version="3"):
    return {"status": "joinable", "version": version, "participants": list(participants)}


def frozen(count, *keys, version="3"):
    return {
        "status": "frozen",
        "version": version,
        "participants": list(range(count)),
        "keep_alives": [f"/run_job/rdzv/v_{version}/{key}" for key in keys],
    }


def final(count, waiting=0, version="3"):
    keys = [f"rank_{rank}" for rank in range(count)]
    return {**frozen(count, *keys, version=version), "status": "final", "num_workers_waiting": waiting}


def brief(decision):
    return decision.action, decision.reason


# Entering.


@pytest.mark.parametrize(
    ("state", "action", "reason"),
    [
        (None, Action.CREATE, "no round exists"),
        (SETUP, Action.WAIT, "the status is setup, which lasts a few seconds at most"),
        (joinable(0), Action.JOIN, "round 3 is joinable"),
        (frozen(2), Action.WAIT, "the status is frozen, which lasts a few seconds at most"),
        (final(2), Action.STAND_BY, "round 3 is complete"),
        (CLOSED, Action.ERROR_CLOSED, "the rendezvous is closed"),
    ],
)
def test_enter(state, action, reason):
    assert brief(rules.enter(state)) == (action, reason)


# Joining.


def test_a_node_that_joins_gets_the_next_rank():
    decision = rules.join(joinable(), "3", TWO_TO_FOUR)
    assert decision == rules.Decision(Action.WRITE, "rank 0 joins", joinable(0), None)


@pytest.mark.parametrize("came", [1, 2])
def test_the_state_expires_from_the_minimum_on(came):
    decision = rules.join(joinable(*range(came)), "3", TWO_TO_FOUR)
    assert decision.reason == f"rank {came} joins in the last call"
    assert (decision.state, decision.ttl) == (joinable(*range(came + 1)), 10)


@pytest.mark.parametrize(("limits", "came"), [(TWO_TO_FOUR, 3), (Limits(3, 3), 2), (Limits(1, 1), 0)])
def test_the_last_node_to_join_freezes_the_round(limits, came):
    decision = rules.join(joinable(*range(came)), "3", limits)
    assert brief(decision) == (Action.WRITE, f"rank {came} joins as the last node")
    assert (decision.state, decision.ttl) == (frozen(came + 1), 10)


def test_unknown_fields_are_kept():
    assert rules.join({**joinable(), "later": 1}, "3", TWO_TO_FOUR).state == {**joinable(0), "later": 1}


def test_a_state_is_not_changed_in_place():
    for rule, state in (
        (lambda state: rules.join(state, "3", Limits(1, 1)), joinable()),
        (lambda state: rules.last_call(state, "3", 0, False), joinable(0, 1)),
        (lambda state: rules.confirm(state, "3", "key"), frozen(1)),
        (lambda state: rules.announce(state, "3"), final(1)),
        (rules.close, final(1)),
    ):
        before = json.dumps(state)
        assert rule(state).action is Action.WRITE
        assert json.dumps(state) == before


def test_a_full_round_whose_other_nodes_have_a_greater_maximum():
    decision = rules.join(joinable(0, 1), "3", Limits(2, 2))
    assert brief(decision) == (Action.RETRY, "round 3 is full: 2 of at most 2 nodes joined")


# What all rules for a node in a round have in common.

IN_A_ROUND = {
    "joinable": [
        lambda state: rules.join(state, "3", TWO_TO_FOUR),
        lambda state: rules.last_call(state, "3", -1.0, False),
    ],
    "frozen": [lambda state: rules.meet(state, "3"), lambda state: rules.confirm(state, "3", "key")],
    "final": [lambda state: rules.finish(state, "3"), lambda state: rules.announce(state, "3")],
}
CASES = [(status, rule) for status, its_rules in IN_A_ROUND.items() for rule in its_rules]


@pytest.mark.parametrize(("status", "rule"), CASES)
def test_a_round_that_is_over_or_in_another_status(status, rule):
    assert brief(rule(None)) == (Action.RETRY_IMMEDIATELY, "round 3 no longer exists")
    assert brief(rule(CLOSED)) == (Action.ERROR_CLOSED, "the rendezvous is closed")
    assert brief(rule(SETUP)) == (Action.RETRY, f"round 3 is setup and no longer {status}")
    assert brief(rule(joinable(0, version="4"))) == (Action.RETRY_IMMEDIATELY, "round 3 is over, round 4 is joinable")


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        (rules.join(frozen(2), "3", TWO_TO_FOUR), "round 3 is frozen and no longer joinable"),
        (rules.last_call(final(2), "3", 0, False), "round 3 is final and no longer joinable"),
        (rules.meet(final(2), "3"), "round 3 is final and no longer frozen"),
        (rules.confirm(joinable(0), "3", "key"), "round 3 is joinable and no longer frozen"),
        (rules.finish(joinable(0), "3"), "round 3 is joinable and no longer final"),
        (rules.announce(frozen(2), "3"), "round 3 is frozen and no longer final"),
    ],
)
def test_a_round_that_continued_without_this_node(decision, reason):
    assert brief(decision) == (Action.RETRY, reason)


# The last call.


def test_the_last_call_continues():
    assert brief(rules.last_call(joinable(0, 1), "3", -1, False)) == (Action.WAIT, "the last call is not over")
    decision = rules.last_call(joinable(0, 1), "3", -1, True)
    assert decision == rules.Decision(Action.WRITE, "the last call continues", joinable(0, 1), 10)


@pytest.mark.parametrize("refresh", [False, True])
def test_the_last_call_ends(refresh):
    decision = rules.last_call(joinable(0, 1), "3", 0, refresh)
    assert decision == rules.Decision(Action.WRITE, "the last call is over", frozen(2), 10)


def test_another_node_ended_the_last_call():
    assert brief(rules.last_call(frozen(4), "3", -1, True)) == (Action.FINISH, "round 3 is frozen")


# Meeting and confirming.


def test_meet():
    assert brief(rules.meet(joinable(0), "3")) == (Action.WAIT, "round 3 is still joinable")
    assert brief(rules.meet(frozen(2), "3")) == (Action.FINISH, "round 3 is frozen")


def test_confirm():
    first = rules.confirm(frozen(2), "3", "/run_job/rdzv/v_3/rank_1")
    assert first == rules.Decision(Action.WRITE, "other nodes have not confirmed yet", frozen(2, "rank_1"), 10)
    second = rules.confirm(first.state, "3", "/run_job/rdzv/v_3/rank_0")
    state = {**frozen(2, "rank_1", "rank_0"), "status": "final", "num_workers_waiting": 0}
    assert second == rules.Decision(Action.WRITE, "all nodes have confirmed", state, None)


@pytest.mark.parametrize("state", [frozen(2, "rank_0"), final(2)])
def test_a_node_does_not_confirm_twice(state):
    assert brief(rules.confirm(state, "3", "/run_job/rdzv/v_3/rank_0")) == (Action.FINISH, "this node has confirmed")


def test_finish():
    assert brief(rules.finish(frozen(2), "3")) == (Action.WAIT, "other nodes have not confirmed round 3 yet")
    assert brief(rules.finish(final(2), "3")) == (Action.FINISH, "round 3 is complete")


# Standing by.


def test_announce():
    decision = rules.announce(final(2, waiting=1), "3")
    assert decision == rules.Decision(
        Action.WRITE, "nodes that wait for the round after 3: 2", final(2, waiting=2), None
    )


@pytest.mark.parametrize("state", [None, SETUP, joinable(0), frozen(2), final(2, version="4"), CLOSED])
def test_a_node_stops_to_wait_for_a_round_that_is_over(state):
    assert brief(rules.end(state, "3", ())) == (Action.FINISH, "round 3 is over")


def test_a_round_with_a_dead_node_is_ended():
    alive = final(3)["keep_alives"]
    assert brief(rules.end(final(3), "3", alive)) == (Action.WAIT, "all nodes of round 3 are alive")
    assert brief(rules.end(final(3), "3", alive[1:2])) == (Action.DESTROY, "round 3 lost rank_0, rank_2")


# Closing.


@pytest.mark.parametrize("state", [None, SETUP, joinable(0), frozen(2), final(2)])
def test_close(state):
    decision = rules.close(state)
    assert brief(decision) == (Action.WRITE, "this node closes the rendezvous")
    assert (decision.state, decision.ttl) == ({**(state or {}), "status": "closed"}, None)


def test_closed_is_final():
    assert brief(rules.close(CLOSED)) == (Action.FINISH, "the rendezvous is closed")


# Questions about a state.


@pytest.mark.parametrize(
    ("state", "count"),
    [
        (None, 0),
        (SETUP, 0),
        (joinable(0, 1), 0),
        (frozen(2), 0),
        (final(2, waiting=3), 3),
        (CLOSED, 0),
        # Round 3, the round of the node that asks, is over.
        (joinable(version="4"), 0),
        (joinable(0, 1, version="4"), 2),
        (frozen(2, version="4"), 2),
        (final(2, version="4"), 2),
        (final(2, waiting=3, version="4"), 3),
    ],
)
def test_the_number_of_nodes_that_wait_for_a_node_of_round_3(state, count):
    assert rules.waiting(state, "3") == count


@pytest.mark.parametrize(("state", "count"), [(joinable(0), 0), (final(2), 0), (final(2, waiting=1), 1)])
def test_the_number_of_nodes_that_wait_for_a_node_without_a_round(state, count):
    assert rules.waiting(state, None) == count


@pytest.mark.parametrize(
    ("state", "limits", "text"),
    [
        (None, TWO_TO_FOUR, "no round exists"),
        (SETUP, TWO_TO_FOUR, "the status is setup"),
        (joinable(0), TWO_TO_FOUR, "1 of at least 2 nodes joined round 3"),
        (joinable(0), Limits(2, 2), "1 of 2 nodes joined round 3"),
        (frozen(3, "rank_0"), TWO_TO_FOUR, "1 of 3 nodes confirmed round 3"),
        (
            final(2, waiting=1),
            TWO_TO_FOUR,
            "round 3 is complete with a world size of 2; nodes that wait for the next round: 1",
        ),
    ],
)
def test_progress(state, limits, text):
    assert rules.progress(state, limits) == text


# The state as text.


@pytest.mark.parametrize("state", [SETUP, joinable(0), frozen(2, "rank_0"), final(2), CLOSED])
def test_parse_reads_what_dump_writes(state):
    assert rules.parse(rules.dump(state)) == state


def test_no_text_means_that_no_state_exists():
    assert rules.parse(None) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the state is not JSON: ''"),
        ("\x1b[31m" + "gASVx" * 40, rf"the state is not JSON: '\\x1b\[31m{'gASVx' * 11}'\.\.\. \(205 characters\)$"),
        ("[" * 100_000, "the state is not JSON"),
        ("[]", r"the state has no status of this protocol: '\[\]'"),
        ('{"status": "melting"}', "the state has no status of this protocol"),
        ('{"status": ["joinable"]}', "the state has no status of this protocol"),
        (
            '{"status": "joinable", "version": "1"}',
            "'participants' of the joinable state must be of type list, not None",
        ),
        ('{"status": "joinable", "version": 1, "participants": []}', "'version' .* must be of type str, not int"),
        (
            '{"status": "joinable", "version": "x", "participants": []}',
            "version of the state must be a decimal number, not 'x'",
        ),
        (
            f'{{"status": "setup", "version": -{"1" * 99}}}',
            rf"must be a decimal number, not '-{'1' * 59}'\.\.\. \(100 characters\)$",
        ),
        (json.dumps(joinable(0, version="9" * 5000)), "must be a decimal number"),
        (json.dumps(joinable("0")), "'participants' .* must contain values of type int, not str"),
        (
            json.dumps({**frozen(1), "keep_alives": [["x"]]}),
            "'keep_alives' .* must contain values of type str",
        ),
        (json.dumps(final(1, waiting=-5)), "'num_workers_waiting' .* must be from 0 to 2147483647, not '-5'"),
    ],
)
def test_text_that_is_not_a_state_is_refused(text, reason):
    with pytest.raises(RendezvousStateError, match=reason):
        rules.parse(text)
