"""The pacing of reads and writes: for each situation how long a node waits, and the reason."""

from __future__ import annotations

import pytest

from rendezvous.dynamic import pacing
from rendezvous.dynamic.pacing import MIN_READ_COST, Pause, Progress, Range

INFINITE = float("inf")


@pytest.mark.parametrize(("cpu_time", "cost"), [(0.0, MIN_READ_COST), (0.0005, MIN_READ_COST), (0.003, 0.006)])
def test_etcd_is_assumed_to_need_as_much_time_as_this_thread(cpu_time, cost):
    assert pacing.read_cost(cpu_time) == cost


@pytest.mark.parametrize(("min_nodes", "longest"), [(1, 0.005), (100, 0.5), (400, 2.0), (10_000, 2.0)])
def test_first_joins_are_spread_over_the_time_that_they_take(min_nodes, longest):
    assert pacing.first_join(min_nodes) == longest


@pytest.mark.parametrize(
    ("nodes", "min_nodes", "cost", "base"),
    [
        (0, 2, 0.002, 0.01),  # never shorter
        (0, 200, 0.002, 0.1),  # the nodes that have not joined yet count, too
        (1000, 200, 0.002, 0.5),
        (1000, 200, 0.001, 0.25),
        (3000, 200, 0.002, 1.0),  # never longer
    ],
)
def test_the_delay_after_a_lost_swap_grows_with_the_nodes_and_the_cost(nodes, min_nodes, cost, base):
    assert pacing.swap_backoff(nodes, min_nodes, cost) == Range(pytest.approx(base), 2.0)


@pytest.mark.parametrize(("interval", "cap"), [(0.01, 0.02), (0.5, 0.25), (3.0, 1.5), (5.0, 2.0), (60.0, 2.0)])
def test_during_an_outage_a_node_tries_again_at_least_twice_in_each_interval(interval, cap):
    assert pacing.outage_backoff(interval) == Range(0.02, cap)


@pytest.mark.parametrize(
    ("silence", "interval", "grace"),
    [
        (0.0, 5.0, Pause(0.0, "etcd answered within 6 s")),
        (6.0, 5.0, Pause(0.0, "etcd answered within 6 s")),
        (0.75, 0.5, Pause(0.0, "etcd answered within 0.75 s")),
        (
            6.25,
            5.0,
            Pause(
                15.0,
                "etcd may have been unreachable (it did not answer for 6.25 s): other nodes could not send heartbeats",
            ),
        ),
        (
            INFINITE,
            5.0,
            Pause(
                15.0,
                "etcd may have been unreachable (this is its first answer): other nodes could not send heartbeats",
            ),
        ),
    ],
)
def test_no_node_is_expired_after_an_outage(silence, interval, grace):
    assert pacing.expiry_grace(silence, interval, 15.0) == grace


@pytest.mark.parametrize(
    ("until_event", "until_deadline", "pause"),
    [
        (3.0, 60.0, Pause(3.0, "until a heartbeat, an expiry or the end of the last call is due")),
        (3.0, 2.0, Pause(2.0, "the deadline comes first")),
        (3.0, 0.0, Pause(0.0, "the deadline comes first")),
        (3.0, -1.0, Pause(0.0, "the deadline comes first")),
        (0.1, 60.0, Pause(0.25, "the next event is due, or was in the past")),
        (-1e9, 60.0, Pause(0.25, "the next event is due, or was in the past")),
        (-1e9, 0.1, Pause(0.1, "the deadline comes first")),
    ],
)
def test_the_time_to_wait_for_a_change(until_event, until_deadline, pause):
    assert pacing.wait(until_event, until_deadline) == pause


def settle(before, now, waiting=0, min_nodes=200):
    return pacing.settle(before and Progress(*before), Progress(*now), waiting, min_nodes, MIN_READ_COST)


@pytest.mark.parametrize(
    ("before", "now", "seconds", "reason"),
    [
        # The rate is not known yet.
        (None, (20, 1000.0), 0.04, "time for 20 nodes to read once"),
        (None, (200, 1000.0), 0.4, "time for 200 nodes to read once"),
        (None, (201, 1000.0), 0.402, "time for 201 nodes to read once"),
        # 20 nodes joined in 0.05 s: 160 take 0.4 s.
        ((20, 1000.0), (40, 1000.05), 0.2, "about half of the 160 missing nodes should have joined by then"),
        # The ten missing nodes will have joined before all nodes have read once.
        ((40, 1000.0), (190, 1000.01), 0.38, "time for 190 nodes to read once"),
        # One node joined in 10 s: nine take 90 s.
        (
            (190, 1000.0),
            (191, 1010.0),
            1.528,
            "9 nodes are missing and join slowly: time for 191 nodes to read 4 times",
        ),
        # No node joined, or some left.
        ((191, 1000.0), (191, 1010.0), 0.382, "time for 191 nodes to read once"),
        ((191, 1000.0), (150, 1010.0), 0.3, "time for 150 nodes to read once"),
        # No node is missing.
        ((199, 1000.0), (200, 1010.0), 0.4, "time for 200 nodes to read once"),
        ((200, 1000.0), (210, 1010.0), 0.42, "time for 210 nodes to read once"),
    ],
)
def test_the_pause_before_a_changing_state_is_read(before, now, seconds, reason):
    assert settle(before, now) == Pause(pytest.approx(seconds), reason)


def test_nodes_on_the_wait_list_read_too():
    assert settle(None, (20, 1000.0), waiting=30) == Pause(pytest.approx(0.1), "time for 50 nodes to read once")


@pytest.mark.parametrize(("nodes", "age"), [(0, 1.0), (500, 1.0), (1000, 2.0)])
def test_many_nodes_read_less_often_for_the_launcher(nodes, age):
    assert pacing.peek_age(1.0, nodes, 0.002) == age
