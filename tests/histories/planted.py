"""Deliberate faults of the store are noticed. ``make histories`` runs this; ``make test`` does not."""

from __future__ import annotations

import pytest

from tests.histories import plants
from tests.histories.run import histories


@pytest.mark.parametrize("plant", plants.PLANTS)
def test_a_deliberate_fault_is_noticed(plant, tmp_path, v3_binary):
    assert any(not result.good for result in histories(25, 0, tmp_path, plant, v3_binary))
