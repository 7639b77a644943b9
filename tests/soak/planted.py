"""Deliberate faults of the handlers are noticed. ``make soak`` runs this; ``make test`` does not."""

from __future__ import annotations

import pytest

from tests.soak.host import PLANTS
from tests.soak.run import Soak

PROBLEMS = {
    "stores are kept": "objects: ",
    "files are left open": "file descriptors: ",
    "threads do not end": "threads: ",
    "a value is lost": "node-",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_deliberate_fault_is_noticed(plant, v3_binary):
    with Soak(20, 2, v3_binary, plant) as soak:
        result = soak.run(20, lambda text: None)
    assert any(each.startswith(PROBLEMS[plant]) for each in result.problems), result.problems
