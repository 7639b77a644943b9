"""The rules of the dynamic rendezvous: for each situation, the action and the reason."""

from __future__ import annotations

import pytest

from rendezvous._core import Role, State
from rendezvous.dynamic import rules
from rendezvous.dynamic.rules import Action, Limits, Node

LIMITS = Limits(min_nodes=2, max_nodes=3, last_call=30_000, keep_alive_interval=5_000, expiry=15_000)
NOW = 1_000_000
A, B, C, D = (Node(f"node-{i}", i, 0) for i in range(1, 5))
IN_TIME, JUST_LATE, TOO_LATE = -100.0, 1.0, 6.0


def forming(*nodes: Node, deadline: int | None = None) -> State:
    state = State()
    for node in nodes:
        state.join(node, NOW)
    state.deadline = deadline
    return state


def complete(*nodes: Node) -> State:
    state = forming(*nodes)
    state.complete_round()
    return state


def with_waiting(state: State, *nodes: Node) -> State:
    for node in nodes:
        state.wait(node, NOW)
    return state


def with_redundant(state: State, *nodes: Node) -> State:
    for node in nodes:
        state.stand_by(node, NOW)
    return state


def closed(state: State) -> State:
    state.closed = True
    return state


# A is this node. Each row: the state, how late it is, the time since the last heartbeat, the action, the reason.
JOINING = [
    (State, IN_TIME, 0, Action.ADD_TO_PARTICIPANTS, "round 0 forms"),
    (lambda: forming(B), IN_TIME, 0, Action.ADD_TO_PARTICIPANTS, "round 0 forms"),
    (lambda: with_waiting(forming(B), A), IN_TIME, 0, Action.ADD_TO_PARTICIPANTS, "round 0 forms"),
    (lambda: forming(A), IN_TIME, 0, Action.WAIT, "1 of at least 2 nodes joined"),
    (lambda: forming(A), IN_TIME, 5_000, Action.KEEP_ALIVE, "1 of at least 2 nodes joined; a heartbeat is due"),
    (lambda: forming(A, B, deadline=NOW), IN_TIME, 0, Action.WAIT, "last call for round 0"),
    (lambda: forming(A, B, deadline=NOW), IN_TIME, 1, Action.MARK_COMPLETE, "the last call for round 0 is over"),
    (lambda: forming(A, B), IN_TIME, 1, Action.WAIT, "last call for round 0"),
    (lambda: complete(A, B), IN_TIME, 0, Action.FINISH, "round 0 is complete"),
    (lambda: complete(A, B), TOO_LATE, 0, Action.FINISH, "round 0 is complete"),
    (lambda: complete(B, C), IN_TIME, 0, Action.ADD_TO_WAIT_LIST, "round 0 is complete"),
    (lambda: with_waiting(complete(B, C), A), IN_TIME, 0, Action.WAIT, "round 0 is not over"),
    (
        lambda: with_waiting(complete(B, C), A),
        IN_TIME,
        5_000,
        Action.KEEP_ALIVE,
        "round 0 is not over; a heartbeat is due",
    ),
    (lambda: complete(B, C, D), IN_TIME, 0, Action.ADD_TO_REDUNDANCY_LIST, "round 0 is complete and full"),
    (lambda: with_redundant(complete(B, C, D), A), IN_TIME, 0, Action.WAIT, "round 0 is full"),
    (lambda: with_redundant(complete(B, C, D), A), TOO_LATE, 0, Action.WAIT, "round 0 is full"),
    (
        lambda: with_redundant(complete(B, C, D), A),
        TOO_LATE,
        5_000,
        Action.KEEP_ALIVE,
        "round 0 is full; a heartbeat is due",
    ),
    (lambda: with_redundant(complete(B, C), A), IN_TIME, 0, Action.ADD_TO_WAIT_LIST, "round 0 has room again"),
    (lambda: with_redundant(forming(B), A), TOO_LATE, 0, Action.ADD_TO_PARTICIPANTS, "round 0 has room again"),
    (State, JUST_LATE, 0, Action.ERROR_TIMEOUT, "the join timeout has passed"),
    (lambda: forming(A), JUST_LATE, 0, Action.REMOVE, "the join timeout has passed"),
    (lambda: forming(A), TOO_LATE, 0, Action.ERROR_TIMEOUT, "the join timeout has passed"),
    (lambda: with_waiting(complete(B), A), JUST_LATE, 0, Action.REMOVE, "the join timeout has passed"),
    (lambda: with_waiting(complete(B), A), TOO_LATE, 0, Action.ERROR_TIMEOUT, "the join timeout has passed"),
    (lambda: closed(State()), IN_TIME, 0, Action.ERROR_CLOSED, "the rendezvous is closed"),
    (lambda: closed(forming(A)), IN_TIME, 0, Action.ERROR_CLOSED, "the rendezvous is closed"),
    (lambda: closed(complete(A, B)), IN_TIME, 0, Action.ERROR_CLOSED, "the rendezvous is closed"),
    (lambda: closed(with_waiting(complete(B), A)), IN_TIME, 0, Action.ERROR_CLOSED, "the rendezvous is closed"),
    (
        lambda: closed(with_redundant(complete(B, C, D), A)),
        IN_TIME,
        0,
        Action.EXIT_GRACEFULLY,
        "the rendezvous closed while the node was on standby",
    ),
]


@pytest.mark.parametrize(("make", "late", "later", "action", "reason"), JOINING)
def test_join(make, late, later, action, reason):
    decision = rules.join(make(), A, LIMITS, NOW + later, late)
    assert (decision.action, decision.reason) == (action, reason)


def test_only_standby_restarts_the_deadline():
    stood_by = with_redundant(complete(B, C), A)
    assert rules.join(stood_by, A, LIMITS, NOW, TOO_LATE).renews_deadline
    assert not rules.join(complete(B, C), A, LIMITS, NOW, IN_TIME).renews_deadline
    assert not rules.join(with_waiting(complete(B, C), A), A, LIMITS, NOW, IN_TIME).renews_deadline


@pytest.mark.parametrize("later", [0, 5_000])
def test_a_node_on_standby_has_no_deadline(later):
    on_standby = with_redundant(complete(B, C, D), A)
    assert rules.join(on_standby, A, LIMITS, NOW + later, TOO_LATE).renews_deadline


@pytest.mark.parametrize(
    ("make", "late", "action", "reason"),
    [
        (State, IN_TIME, Action.FINISH, "the node is not in round 0"),
        (lambda: forming(A), IN_TIME, Action.REMOVE, "the node leaves round 0"),
        (lambda: complete(A, B), IN_TIME, Action.REMOVE, "the node leaves round 0"),
        (lambda: complete(A, B), JUST_LATE, Action.ERROR_TIMEOUT, "the node could not leave within the join timeout"),
        (lambda: with_waiting(complete(B), A), IN_TIME, Action.FINISH, "the node is not in round 0"),
        (lambda: with_redundant(complete(B), A), IN_TIME, Action.FINISH, "the node is not in round 0"),
    ],
)
def test_leave(make, late, action, reason):
    decision = rules.leave(make(), A, LIMITS, NOW, late)
    assert (decision.action, decision.reason) == (action, reason)


@pytest.mark.parametrize(
    ("make", "late", "action", "reason"),
    [
        (State, IN_TIME, Action.MARK_CLOSED, "the node closes the rendezvous"),
        (lambda: complete(A, B), IN_TIME, Action.MARK_CLOSED, "the node closes the rendezvous"),
        (lambda: closed(State()), IN_TIME, Action.FINISH, "the rendezvous is closed"),
        (lambda: closed(State()), TOO_LATE, Action.FINISH, "the rendezvous is closed"),
        (State, JUST_LATE, Action.ERROR_TIMEOUT, "the close timeout has passed"),
    ],
)
def test_close(make, late, action, reason):
    decision = rules.close(make(), A, LIMITS, NOW, late)
    assert (decision.action, decision.reason) == (action, reason)


def left(state: State, node: Node) -> State:
    state.leave(node)
    return state


@pytest.mark.parametrize(
    ("make", "late", "later", "action", "reason"),
    [
        (lambda: complete(A), IN_TIME, 4_999, Action.FINISH, "the last heartbeat is recent"),
        (lambda: complete(A), IN_TIME, 5_000, Action.KEEP_ALIVE, "a heartbeat is due"),
        (lambda: complete(A), JUST_LATE, 5_000, Action.ERROR_TIMEOUT, "the heartbeat timeout has passed"),
        (lambda: with_waiting(complete(B), A), IN_TIME, 5_000, Action.KEEP_ALIVE, "a heartbeat is due"),
        (lambda: complete(B), IN_TIME, 5_000, Action.FINISH, "the node is no longer in round 0"),
        (lambda: left(complete(A, B), A), IN_TIME, 5_000, Action.FINISH, "the node is no longer in round 0"),
    ],
)
def test_keep_alive(make, late, later, action, reason):
    decision = rules.keep_alive(make(), A, LIMITS, NOW + later, late)
    assert (decision.action, decision.reason) == (action, reason)


# How the state changes.


def test_the_last_call_starts_with_the_minimum_and_is_not_extended_by_more_nodes():
    limits = Limits(2, 4, 30_000, 5_000, 15_000)
    state = State()
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, A, limits, NOW)
    assert state.deadline is None
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, B, limits, NOW + 10)
    assert state.deadline == NOW + 10 + 30_000
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, C, limits, NOW + 20)
    assert state.deadline == NOW + 10 + 30_000
    assert not state.complete


def test_the_round_is_complete_with_the_maximum():
    state = forming(A, B, deadline=NOW)
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, C, LIMITS, NOW)
    assert state.complete
    assert (state.deadline, state.world_size) == (None, 3)
    assert [state.rank(node) for node in (A, B, C)] == [0, 1, 2]


def test_a_world_of_fixed_size_has_no_last_call():
    state = State()
    limits = Limits(2, 2, 30_000, 5_000, 15_000)
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, A, limits, NOW)
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, B, limits, NOW)
    assert state.complete


def test_below_the_minimum_the_last_call_is_cancelled():
    state = forming(A, B, deadline=NOW + 5)
    rules.apply(Action.REMOVE, state, A, LIMITS, NOW)
    assert state.deadline is None
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, A, LIMITS, NOW + 100)
    assert state.deadline == NOW + 100 + 30_000


def test_the_next_round_forms_when_the_last_participant_has_left():
    state = complete(A, B)
    rules.apply(Action.REMOVE, state, A, LIMITS, NOW)
    assert (state.round, state.complete) == (0, True)
    rules.apply(Action.REMOVE, state, B, LIMITS, NOW)
    assert (state.round, state.complete) == (1, False)


def test_a_waiting_node_that_gives_up_does_not_end_the_round():
    state = with_waiting(complete(B), A)
    rules.apply(Action.REMOVE, state, A, LIMITS, NOW)
    assert (state.round, state.complete, state.role(A)) == (0, True, None)


def test_the_first_write_records_when_the_rendezvous_started():
    state = State()
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, A, LIMITS, NOW)
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, B, LIMITS, NOW + 10)
    assert state.started == NOW


@pytest.mark.parametrize("action", [Action.KEEP_ALIVE, Action.MARK_COMPLETE, Action.MARK_CLOSED])
def test_a_node_that_writes_is_alive(action):
    state = forming(A, B)
    rules.apply(action, state, A, LIMITS, NOW + 7)
    assert (state.heartbeat(A), state.heartbeat(B)) == (NOW + 7, NOW)


def test_the_remaining_actions():
    state = complete(B, C)
    rules.apply(Action.ADD_TO_WAIT_LIST, state, A, LIMITS, NOW)
    assert state.role(A) == Role.WAITING
    rules.apply(Action.KEEP_ALIVE, state, A, LIMITS, NOW + 7)
    assert state.heartbeat(A) == NOW + 7
    rules.apply(Action.ADD_TO_REDUNDANCY_LIST, state, D, LIMITS, NOW)
    assert state.role(D) == Role.REDUNDANT
    rules.apply(Action.MARK_CLOSED, state, A, LIMITS, NOW)
    assert state.closed
    state = forming(A, B, deadline=NOW)
    rules.apply(Action.MARK_COMPLETE, state, A, LIMITS, NOW)
    assert state.complete


@pytest.mark.parametrize("action", [action for action in Action if not action.writes])
def test_an_action_without_a_write_cannot_be_applied(action):
    with pytest.raises(ValueError, match="does not change the state"):
        rules.apply(action, State(), A, LIMITS, NOW)


@pytest.mark.parametrize("action", [action for action in Action if action.writes])
def test_an_action_with_a_write_can_be_applied(action):
    rules.apply(action, forming(B), A, LIMITS, NOW)


def test_a_silent_node_is_removed_and_the_round_may_end_with_it():
    state = complete(A, B)
    state.touch(A, NOW + 10_000)
    assert rules.expire(state, C, LIMITS, NOW + 15_000) == []
    assert rules.expire(state, C, LIMITS, NOW + 15_001) == [B]
    assert (state.round, state.complete) == (0, True)
    assert rules.expire(state, C, LIMITS, NOW + 25_001) == [A]
    assert (state.round, state.complete) == (1, False)
    assert state.nodes(Role.MISSING) == [A, B]


def test_removing_a_silent_node_may_cancel_the_last_call():
    state = forming(A, B, deadline=NOW + 20_000)
    state.touch(A, NOW + 10_000)
    assert rules.expire(state, A, LIMITS, NOW + 15_001) == [B]
    assert state.deadline is None


def test_a_node_removes_other_silent_nodes_but_never_itself():
    state = with_waiting(complete(A, B), C)
    assert rules.expire(state, A, LIMITS, NOW + 15_001) == [B, C]
    assert (state.round, state.role(A)) == (0, Role.PARTICIPANT)
    assert rules.keep_alive(state, A, LIMITS, NOW + 15_001, IN_TIME).action is Action.KEEP_ALIVE  # still due


def test_expiring_nodes_does_not_add_the_node_that_does_it():
    state = left(complete(A, B), A)
    before = state.encode()
    for node in (A, C):
        assert rules.expire(state, node, LIMITS, NOW) == []
        assert state.encode() == before


# Questions about a state.


def test_the_next_event_is_the_earliest():
    state = forming(A, B)
    assert rules.next_event(state, A, LIMITS) == NOW + 5_000
    state.touch(A, NOW + 12_000)
    assert rules.next_event(state, A, LIMITS) == NOW + 15_001  # B expires
    state.deadline = NOW + 13_000
    assert rules.next_event(state, A, LIMITS) == NOW + 13_001
    assert rules.next_event(State(), A, LIMITS) == 0


def test_no_expiry_is_due_while_expiry_is_suspended():
    state = forming(A, B)
    state.touch(A, NOW + 20_000)
    assert rules.next_event(state, A, LIMITS, NOW + 10_000) == NOW + 15_001
    assert rules.next_event(state, A, LIMITS, NOW + 18_000) == NOW + 18_000
    assert rules.next_event(state, A, LIMITS, NOW + 30_000) == NOW + 25_000  # its own heartbeat


def test_who_is_missing_names_nodes_of_the_previous_round():
    state = complete(A, B, C)
    for node in (A, B, C):
        rules.apply(Action.REMOVE, state, node, LIMITS, NOW)
    rules.apply(Action.ADD_TO_PARTICIPANTS, state, B, LIMITS, NOW)
    assert rules.who_is_missing(state, LIMITS) == (
        "1 of at least 2 nodes joined round 1; missing since the previous round: node-1_1_0, node-3_3_0"
    )


def test_who_is_missing_names_the_nodes_that_joined_the_first_round():
    assert rules.who_is_missing(forming(B), LIMITS) == "1 of at least 2 nodes joined round 0: node-2_2_0"
    assert rules.who_is_missing(State(), LIMITS) == "0 of at least 2 nodes joined round 0: none"


def test_who_is_missing_names_at_most_eight():
    state = forming(*(Node(f"node-{i}", 1, 0) for i in range(11)))
    assert rules.who_is_missing(state, LIMITS).endswith("node-6_1_0, node-7_1_0 and 3 more")


def test_who_is_missing_names_the_members_of_a_complete_round():
    assert rules.who_is_missing(with_waiting(complete(B, C), A), LIMITS) == (
        "round 0 is complete without this node; its members are still: node-2_2_0, node-3_3_0"
    )
