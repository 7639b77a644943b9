"""The invariants hold in runs with random faults."""

from __future__ import annotations

import pytest

from rendezvous._core import COMPILED
from tests.simulation.run import simulate, violations

pytestmark = pytest.mark.both_twins

# With the pure core a part of the seeds is enough to see that it does the same.
SEEDS = 5000 if COMPILED else 200


@pytest.mark.timeout(900)
def test_the_invariants_hold_for_every_seed():
    assert list(violations(range(SEEDS))) == []


def test_a_seed_always_gives_the_same_transcript():
    transcripts: list[list[str]] = [[], []]
    for transcript in transcripts:
        simulate(7, transcript)
    assert transcripts[0] == transcripts[1]
    assert len(transcripts[0]) > 10


def test_a_transcript_does_not_change_the_run():
    for seed in range(20):
        assert simulate(seed).etcd.revision == simulate(seed, []).etcd.revision
