"""The invariants hold in runs with random faults, and each deliberate fault is noticed."""

from __future__ import annotations

import pytest

from rendezvous._core import COMPILED
from tests.simulation.mutants import MUTANTS, Mutant, seeds_until_noticed
from tests.simulation.run import simulate, violations

pytestmark = pytest.mark.both_twins

# With the pure core a part of the seeds is enough to see that it does the same.
SEEDS = 2000 if COMPILED else 200


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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_mutant_is_noticed(mutant: Mutant):
    assert seeds_until_noticed(mutant) is not None, (
        f"{mutant.seeds} seeds did not violate the invariant '{mutant.invariant}'. The mutant: {mutant.breaks}"
    )
