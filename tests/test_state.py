"""The table of the state, over both twins; ``test_state_bytes.py`` has its bytes."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from rendezvous._core import Role
from rendezvous._core._state_py import State as PureState

A, B, C = ("node-1", 10, 0), ("node-2", 20, 0), ("node-10", 30, 1)
NOW = 1_760_000_000_000


def test_a_new_state_is_empty(State):
    state = State()
    assert (state.round, state.complete, state.closed, state.deadline, state.world_size) == (0, False, False, None, 0)
    assert state.started == 0
    assert len(state) == 0
    assert state.oldest_heartbeat() is None
    assert state.role(A) is None
    assert state.rank(A) is None
    assert state.heartbeat(A) is None


@pytest.mark.parametrize("arguments", [{"args": (1,)}, {"kwargs": {"round": 1}}])
def test_a_new_state_takes_no_arguments(State, arguments):
    with pytest.raises(TypeError):
        State(*arguments.get("args", ()), **arguments.get("kwargs", {}))


def test_closed_is_a_truth_value(State):
    state = State()
    state.closed = 5
    assert state.closed is True


def test_a_node_has_one_role_at_a_time(State):
    state = State()
    state.join(A, NOW)
    state.wait(B, NOW)
    state.stand_by(C, NOW)
    assert [state.role(node) for node in (A, B, C)] == [Role.PARTICIPANT, Role.WAITING, Role.REDUNDANT]
    state.join(B, NOW + 1)
    assert state.role(B) == Role.PARTICIPANT
    assert [state.count(role) for role in Role] == [2, 0, 1, 0]
    assert state.heartbeat(B) == NOW + 1


def test_ranks_follow_the_natural_order_of_addresses(State):
    state = State()
    for node in (C, B, A):
        state.join(node, NOW)
    assert state.rank(A) is None
    state.complete_round()
    assert [state.rank(node) for node in (A, B, C)] == [0, 1, 2]
    assert state.nodes(Role.PARTICIPANT) == [A, B, C]
    assert state.node_of_rank(1) == B
    assert state.node_of_rank(3) is None
    assert state.world_size == 3


def test_nodes_of_one_address_are_ordered_by_pid_and_local_id(State):
    nodes = [("host", 2, 0), ("host", 10, 0), ("host", 10, 1)]
    state = State()
    for node in reversed(nodes):
        state.join(node, NOW)
    assert state.nodes(Role.PARTICIPANT) == nodes


def test_the_world_keeps_its_size_and_ranks_when_members_leave(State):
    state = State()
    for node in (A, B, C):
        state.join(node, NOW)
    state.complete_round()
    assert state.leave(A)
    assert state.world_size == 3
    assert (state.rank(A), state.rank(B), state.rank(C)) == (None, 1, 2)
    again = State.decode(state.encode())
    assert (again.rank(B), again.rank(C), again.world_size) == (1, 2, 3)


def test_a_complete_round_takes_no_more_participants_and_is_not_completed_twice(State):
    state = State()
    state.round = 4
    state.join(A, NOW)
    state.complete_round()
    with pytest.raises(ValueError, match="no node can join round 4: it is complete"):
        state.join(B, NOW)
    with pytest.raises(ValueError, match="round 4 is complete already"):
        state.complete_round()
    assert state.nodes(Role.PARTICIPANT) == [A]


def test_who_leaves_a_complete_round_is_missing_until_the_next_is_complete(State):
    state = State()
    state.join(A, NOW)
    state.join(B, NOW)
    state.complete_round()
    state.leave(A)
    state.leave(B)
    assert state.nodes(Role.MISSING) == [A, B]
    state.open_round()
    state.join(A, NOW + 1)
    assert state.nodes(Role.MISSING) == [B]
    state.join(C, NOW + 1)
    state.complete_round()
    assert state.nodes(Role.MISSING) == []
    assert state.role(B) is None


def test_who_leaves_a_round_that_forms_is_missing_only_if_it_was_in_the_last(State):
    state = State()
    state.join(A, NOW)
    state.complete_round()
    state.leave(A)
    state.open_round()
    state.join(A, NOW)
    state.join(B, NOW)
    state.leave(A)
    state.leave(B)
    assert state.role(A) == Role.MISSING
    assert state.role(B) is None


def test_a_restarted_process_takes_the_place_of_the_one_missed_on_its_host(State):
    state = State()
    state.join(("host", 1, 0), NOW)
    state.join(("host", 2, 0), NOW)
    state.complete_round()
    state.leave(("host", 1, 0))
    state.leave(("host", 2, 0))
    state.open_round()
    state.join(("host", 3, 0), NOW)
    assert state.nodes(Role.MISSING) == [("host", 2, 0)]
    state.leave(("host", 3, 0))
    assert state.nodes(Role.MISSING) == [("host", 2, 0), ("host", 3, 0)]


def test_leave_and_touch_say_whether_the_node_is_in(State):
    state = State()
    assert not state.leave(A)
    assert not state.touch(A, NOW)
    state.join(A, NOW)
    assert state.touch(A, NOW + 5)
    assert state.heartbeat(A) == NOW + 5
    state.complete_round()
    assert state.leave(A)
    assert not state.leave(A)
    assert not state.touch(A, NOW + 6)


def test_expire_takes_out_the_silent_and_no_others(State):
    state = State()
    state.join(A, NOW)
    state.wait(B, NOW - 1)
    state.stand_by(C, NOW - 2)
    assert state.oldest_heartbeat() == NOW - 2
    assert state.expire(NOW - 2) == []
    assert state.expire(NOW) == [B, C]
    assert [state.count(role) for role in Role] == [1, 0, 0, 0]
    assert state.oldest_heartbeat() == NOW


def test_expire_leaves_the_missing_alone(State):
    state = State()
    state.join(A, NOW)
    state.complete_round()
    assert state.expire(NOW + 1) == [A]
    assert state.expire(NOW + 1) == []
    assert state.role(A) == Role.MISSING
    assert state.oldest_heartbeat() is None


def test_many_joins_and_leaves_of_one_table(State):
    state = State()
    for turn in range(2_000):
        state.join((f"node-{turn}", turn, 0), NOW)
        if turn >= 10:
            assert state.leave((f"node-{turn - 10}", turn - 10, 0))
    assert state.nodes(Role.PARTICIPANT) == [(f"node-{i}", i, 0) for i in range(1990, 2000)]


def test_a_table_that_is_changed_while_it_is_listed_stays_sound(State):
    # A garbage collection in the middle of nodes() and expire() may run anything.
    for listing in (lambda s: s.nodes(Role.PARTICIPANT), lambda s: s.expire(2)):
        state = State()
        for i in range(2000):
            state.join((f"h{i:0100d}", i, 0), 1)

        class Bomb:
            def __init__(self, state):
                self.me, self.state = self, state

            def __del__(self):
                self.state.expire(100)
                for i in range(500):
                    self.state.join(("z" * 200, i, 0), 500)
                    self.state.leave(("z" * 200, i, 0))

        gc.collect()
        gc.disable()
        Bomb(state)
        gc.enable()
        with suppress(RuntimeError):  # the pure twin may notice: "dictionary changed size during iteration"
            assert all(addr.startswith(("h", "z")) for addr, _, _ in listing(state))
        gc.collect()
        assert len(State.decode(state.encode())) == len(state)


def test_a_compiled_table_has_a_greatest_size(CompiledState):
    state = CompiledState()
    for i in range(131072):
        state.join(("host", i, 0), NOW)
    with pytest.raises(ValueError, match="at most 131072 nodes"):
        state.join(("host", 131072, 0), NOW)
    assert len(CompiledState.decode(state.encode())) == 131072


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.join("node", NOW), TypeError),
        (lambda s: s.join(("node", 1), NOW), TypeError),
        (lambda s: s.join((b"node", 1, 0), NOW), TypeError),
        (lambda s: s.join(("node", "1", 0), NOW), TypeError),
        (lambda s: s.join(("node", True, 0), NOW), TypeError),
        (lambda s: s.join(("node", 1, -1), NOW), ValueError),
        (lambda s: s.join(("node", 2**32, 0), NOW), ValueError),
        (lambda s: s.join(("", 1, 0), NOW), ValueError),
        (lambda s: s.join(("x" * 256, 1, 0), NOW), ValueError),
        (lambda s: s.join(("\ud800", 1, 0), NOW), ValueError),
        (lambda s: s.join(A, -1), ValueError),
        (lambda s: s.join(A, 2**53), ValueError),
        (lambda s: s.join(A, 1.5), TypeError),
        (lambda s: s.touch(A, None), TypeError),
        (lambda s: s.expire(2**60), ValueError),
        (lambda s: s.count(4), ValueError),
        (lambda s: s.nodes("x"), TypeError),
        (lambda s: setattr(s, "round", -1), ValueError),
        (lambda s: setattr(s, "started", 2**53), ValueError),
        (lambda s: setattr(s, "started", None), TypeError),
        (lambda s: setattr(s, "deadline", 2**53), ValueError),
        (lambda s: s.node_of_rank(-1), ValueError),
    ],
)
def test_bad_arguments_are_refused_alike_and_change_nothing(twin, State, call, error):
    state, pure = State(), PureState()
    before = state.encode()
    with pytest.raises(error) as caught:
        call(state)
    with pytest.raises(error) as expected:
        call(pure)
    assert str(caught.value) == str(expected.value)
    assert state.encode() == before
