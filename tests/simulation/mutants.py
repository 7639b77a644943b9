"""Mutants: deliberate faults in the protocol. The simulation must notice each, or its invariants show little.

A mutant replaces a function or an attribute of the package while a seed runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation import coordinator_mutants, member_mutants, restore_mutants  # noqa: F401, they register their mutants
from tests.simulation.mutation import MUTANTS, Mutant, seeds_until_noticed
from tests.simulation.run import process_pool

__all__ = ["MUTANTS", "run_all"]


def run_all(jobs: int | None = None) -> Iterator[tuple[Mutant, int | None]]:
    """Run all mutants side by side in processes; yield each with the number of seeds that it took."""
    with process_pool(jobs) as pool:
        yield from zip(MUTANTS, pool.map(_run_one, range(len(MUTANTS))), strict=True)


def _run_one(index: int) -> int | None:
    return seeds_until_noticed(MUTANTS[index])
