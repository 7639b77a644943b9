"""The protocol in the simulation: many seeds, the seeds of past faults, and faults made on purpose."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from rendezvous._core import COMPILED
from rendezvous.coordinated import coordinator, election, entry, rules, table, writer
from rendezvous.coordinated.rules import Decision, Move
from rendezvous.etcd.v3.operations import absent, compare
from tests.simulation.world import Violation, simulate

pytestmark = pytest.mark.both_twins

# The whole number with the compiled core; with the pure one enough to see that it does the same.
SEEDS = 2000 if COMPILED else 200
CHUNK = 50


def violations(seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        try:
            simulate(seed)
        except Violation as exc:
            found.append(str(exc))
    return found


@pytest.mark.timeout(900)
def test_the_invariants_hold_for_every_seed():
    chunks = [range(first, min(first + CHUNK, SEEDS)) for first in range(0, SEEDS, CHUNK)]
    # Not forked: this process may run gRPC's threads, with which a fork can crash.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        assert [text for found in pool.map(violations, chunks) for text in found] == []


def test_a_seed_always_gives_the_same_transcript():
    transcripts: list[list[str]] = [[], []]
    for transcript in transcripts:
        simulate(7, transcript)
    assert transcripts[0] == transcripts[1]
    assert len(transcripts[0]) > 10


# Faults made on purpose. Each must be noticed, or the invariants above say little.


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def without_the_fence() -> Iterator[None]:
    original = coordinator.Coordinator.__init__

    def init(self: Any, client: Any, keys: Any, *arguments: Any) -> None:
        original(self, client, keys, *arguments)
        self._writer._fence = [absent(keys.root + b"nothing")]

    with (
        patched(coordinator.Coordinator, "__init__", init),
        patched(writer.Writer, "_check", lambda self, found: None),
        patched(election.Election, "step_down", forget),
    ):
        yield


def forget(self: Any) -> None:
    self._term = None


def compare_anything(key: bytes, field: str, value: Any) -> Any:
    """Return a condition that always holds in place of one on a revision."""
    return absent(b"nothing") if field == "mod_revision" else compare(key, field, value)


@contextlib.contextmanager
def overtaking_a_newer_round_record() -> Iterator[None]:
    with patched(writer, "compare", compare_anything):
        yield


@contextlib.contextmanager
def overtaking_a_newer_node_record() -> Iterator[None]:
    with patched(entry, "compare", compare_anything):
        yield


@contextlib.contextmanager
def using_an_attempt_id_twice() -> Iterator[None]:
    with patched(coordinator, "new_id", lambda random: "0" * 16):
        yield


@contextlib.contextmanager
def opening_early() -> Iterator[None]:
    original = rules.coordinate

    def coordinate(counts: Any, limits: Any, left: float | None) -> Decision:
        if counts.complete and counts.returned and not counts.closed:
            return Decision(Move.OPEN, "a member has left")
        return original(counts, limits, left)

    with patched(rules, "coordinate", coordinate):
        yield


@contextlib.contextmanager
def forgetting_the_lost() -> Iterator[None]:
    original = table.Table.counts
    with patched(table.Table, "counts", lambda self, closed: original(self, closed)._replace(lost=0)):
        yield


@contextlib.contextmanager
def counting_spares_as_waiting() -> Iterator[None]:
    with patched(rules, "_room_for_newcomers", lambda counts, limits: True):
        yield


@contextlib.contextmanager
def publishing_the_record_before_the_shards() -> Iterator[None]:
    original = writer.Writer.put_record

    async def put_record(self: Any, record: Any, with_it: Any = ()) -> None:
        await original(self, record)
        if with_it:
            await self.write(with_it)

    with patched(writer.Writer, "put_record", put_record):
        yield


@contextlib.contextmanager
def completing_though_closed() -> Iterator[None]:
    with (
        patched(writer, "absent", lambda key: absent(b"nothing")),
        patched(table.Table, "counts", lambda self, closed, original=table.Table.counts: original(self, False)),
    ):
        yield


@contextlib.contextmanager
def busy_after_closing() -> Iterator[None]:
    """A fault that the simulation found: the end of a last call that closing had called off never passed."""

    def close(self: Any) -> None:
        self._closed = True
        self._changed.set()

    with patched(coordinator.Coordinator, "close", close):
        yield


@pytest.mark.parametrize(
    ("fault", "invariant"),
    [
        (without_the_fence, "fencing"),
        (overtaking_a_newer_round_record, "monotony"),
        (overtaking_a_newer_node_record, "exclusivity"),
        (opening_early, "exclusivity"),
        (forgetting_the_lost, "liveness"),
        (counting_spares_as_waiting, "liveness"),
        (publishing_the_record_before_the_shards, "agreement"),
        (completing_though_closed, "closed is final"),
        (busy_after_closing, "liveness"),
    ],
)
def test_a_fault_made_on_purpose_is_noticed(fault: Callable[[], Any], invariant: str):
    for seed in range(300):
        with fault():
            try:
                simulate(seed)
            except Violation as exc:
                if f": {invariant}: " in str(exc):
                    return
    pytest.fail(f"300 seeds did not notice: {fault.__name__}")
