"""The compare-and-swap loop and its backoff, over both twins."""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any

import pytest

from rendezvous.api import RendezvousTimeoutError


@pytest.fixture
def swap(twin: str) -> Any:
    return importlib.import_module(f"rendezvous._core._swap_{twin}")


class Register:
    """A shared value with a token, as a backend keeps it."""

    def __init__(self, value: int | None = None) -> None:
        self.value, self.token, self.reads, self.writes = value, 0 if value is None else 1, 0, 0
        self.lock = threading.Lock()

    def read(self):
        with self.lock:
            self.reads += 1
            return None if self.value is None else (self.value, self.token)

    def write(self, value, token):
        with self.lock:
            self.writes += 1
            if token != (self.token or None):
                return None if self.value is None else (self.value, self.token, False)
            self.value, self.token = value, self.token + 1
            return value, self.token, True


class Time:
    def __init__(self) -> None:
        self.now, self.sleeps = 100.0, []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_delays_stay_between_base_and_cap_and_repeat_with_the_seed(swap):
    one, two = swap.Backoff(0.01, 0.5, seed=7), swap.Backoff(0.01, 0.5, seed=7)
    delays = [one.next() for _ in range(200)]
    assert delays == [two.next() for _ in range(200)]
    assert all(0.01 <= delay <= 0.5 for delay in delays)
    assert max(delays) == 0.5
    assert len(set(delays)) > 50


def test_each_delay_is_at_most_three_times_the_one_before(swap):
    backoff = swap.Backoff(0.001, 1000.0, seed=1)
    last = 0.001
    for _ in range(50):
        delay = backoff.next()
        assert 0.001 <= delay <= 3 * last
        last = delay


def test_reset_begins_again_with_short_delays(swap):
    backoff = swap.Backoff(0.01, 10, seed=3)
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.03


def test_the_twins_draw_the_same_delays():
    compiled = pytest.importorskip("rendezvous._core._swap_c").Backoff(0.003, 2.5, seed=99)
    pure = importlib.import_module("rendezvous._core._swap_py").Backoff(0.003, 2.5, seed=99)
    assert [compiled.next() for _ in range(500)] == [pure.next() for _ in range(500)]


@pytest.mark.parametrize(("base", "cap"), [(0, 1), (-1, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_a_backoff_of_impossible_bounds_is_refused(swap, base, cap):
    with pytest.raises(ValueError, match="0 < base <= cap"):
        swap.Backoff(base, cap)


def test_a_free_value_is_changed_at_once(swap):
    register, time_ = Register(5), Time()
    result = swap.compare_and_swap(
        register.read, register.write, lambda v: v + 1, swap.Backoff(), None, time_.clock, time_.sleep
    )
    assert result == (6, 2, True, 1)
    assert time_.sleeps == []


def test_an_absent_value_comes_as_none(swap):
    register = Register()
    seen = []
    result = swap.compare_and_swap(register.read, register.write, lambda v: seen.append(v) or 1, swap.Backoff())
    assert result == (1, 1, True, 1)
    assert seen == [None]


def test_no_change_writes_nothing(swap):
    register = Register(5)
    assert swap.compare_and_swap(register.read, register.write, lambda v: None, swap.Backoff()) == (5, 1, False, 0)
    assert register.writes == 0


def test_a_lost_race_reads_anew_after_a_pause(swap):
    register, time_ = Register(5), Time()
    seen = []

    def change(value):
        if not seen:
            register.value, register.token = 50, 9  # another writer was faster
        seen.append(value)
        return value + 1

    result = swap.compare_and_swap(
        register.read, register.write, change, swap.Backoff(seed=1), None, time_.clock, time_.sleep
    )
    assert result == (51, 10, True, 2)
    assert seen == [5, 50, 50]  # what the write returned, and what was read after the pause
    assert len(time_.sleeps) == 1


def test_a_race_lost_to_one_who_did_the_same_ends_without_a_pause(swap):
    register, time_ = Register(5), Time()

    def change(value):
        if value == 5:
            register.value, register.token = 6, 2
            return 6
        return None

    result = swap.compare_and_swap(
        register.read, register.write, change, swap.Backoff(), None, time_.clock, time_.sleep
    )
    assert result == (6, 2, False, 1)
    assert time_.sleeps == []
    assert register.reads == 1


def test_a_value_that_vanishes_is_read_anew(swap):
    register, time_ = Register(5), Time()

    def change(value):
        if value == 5:
            register.value, register.token = None, 0
        return 1

    result = swap.compare_and_swap(
        register.read, register.write, change, swap.Backoff(), None, time_.clock, time_.sleep
    )
    assert result == (1, 1, True, 2)


def test_no_sleep_goes_past_the_deadline_and_then_it_gives_up(swap):
    time_ = Time()
    with pytest.raises(RendezvousTimeoutError, match=r"each of \d+ attempts"):
        swap.compare_and_swap(
            lambda: (1, 1),
            lambda value, token: (1, 1, False),
            lambda value: 2,
            swap.Backoff(0.4, 5.0, seed=2),
            102.0,
            time_.clock,
            time_.sleep,
        )
    assert time_.now == 102.0
    assert sum(time_.sleeps) == pytest.approx(2.0)


@pytest.mark.parametrize("where", ["read", "write", "change"])
def test_errors_pass_through(swap, where):
    def fail(*_):
        raise KeyError(where)

    parts = {"read": lambda: (1, 1), "write": lambda v, t: (v, t, True), "change": lambda v: 2, where: fail}
    with pytest.raises(KeyError, match=where):
        swap.compare_and_swap(parts["read"], parts["write"], parts["change"], swap.Backoff())


def test_other_threads_run_while_it_waits(swap):
    released = threading.Event()
    threading.Timer(0.05, released.set).start()
    swap.compare_and_swap(
        lambda: (1, 1),
        lambda value, token: (value, 2, released.is_set()),
        lambda value: 2,
        swap.Backoff(0.02, 0.02),
        time.monotonic() + 60,
    )
    assert released.is_set()


def test_many_threads_lose_no_update(swap):
    register = Register(0)

    def work():
        for _ in range(25):
            swap.compare_and_swap(register.read, register.write, lambda v: v + 1, swap.Backoff(0.0001, 0.01))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert register.value == 200
