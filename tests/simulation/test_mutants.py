"""The simulation notices each deliberate fault. The core makes no difference to that, so it is tested with one."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutation import Mutant, seeds_until_noticed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_mutant_is_noticed(mutant: Mutant):
    assert seeds_until_noticed(mutant) is not None, (
        f"{mutant.seeds} seeds did not violate the invariant '{mutant.invariant}'. The mutant: {mutant.breaks}"
    )
