"""The states of a member: each legal transition, and each illegal one."""

from __future__ import annotations

import itertools

import pytest

from rendezvous.coordinated.lifecycle import IllegalTransitionError, Lifecycle, State

IDLE, E, W, S, M, R, L = State  # ENTERING, WAITING, STANDING_BY, MEETING, IN_ROUND, LOST

PATHS = {
    IDLE: (),
    E: (E,),
    W: (E, W),
    S: (E, W, S),
    M: (E, W, M),
    R: (E, W, M, R),
    L: (E, W, M, R, L),
}
"""A way to each state from the first one."""

LEGAL = {
    *((IDLE, E), (E, W), (W, S), (W, M), (W, E), (S, W), (S, M), (S, E)),
    *((M, R), (M, L), (M, E), (R, L), (R, E), (L, E)),
    *((state, IDLE) for state in State),
}


def in_state(state: State) -> Lifecycle:
    lifecycle = Lifecycle()
    for step in PATHS[state]:
        lifecycle.become(step)
    assert lifecycle.state is state
    return lifecycle


@pytest.mark.parametrize(("before", "after"), sorted(LEGAL, key=str))
def test_a_legal_transition_changes_the_state(before: State, after: State):
    lifecycle = in_state(before)
    lifecycle.become(after)
    assert lifecycle.state is after


@pytest.mark.parametrize(("before", "after"), [pair for pair in itertools.product(State, State) if pair not in LEGAL])
def test_an_illegal_transition_raises_and_changes_nothing(before: State, after: State):
    lifecycle = in_state(before)
    with pytest.raises(IllegalTransitionError, match=f"a node that is {before.value} cannot become {after.value}"):
        lifecycle.become(after)
    assert lifecycle.state is before


@pytest.mark.parametrize("state", [IDLE, R, L])
def test_a_join_begins_if_no_other_join_is_under_way(state: State):
    lifecycle = in_state(state)
    lifecycle.begin_join()
    assert lifecycle.state is E


@pytest.mark.parametrize("state", [E, W, S, M])
def test_a_join_does_not_begin_while_another_is_under_way(state: State):
    lifecycle = in_state(state)
    with pytest.raises(IllegalTransitionError, match=f"a join is already under way: the node is {state.value}"):
        lifecycle.begin_join()
    assert lifecycle.state is state
