"""Deliberate faults of the store are noticed. ``make histories`` runs this; ``make test`` does not."""

from __future__ import annotations

import pytest

from tests.histories import plants
from tests.histories.run import histories

# It takes some twenty histories; tests/etcd/coordinated_store/test_faults.py has the same fault without chance.
RARE = {"idempotency keys of changes only"}


@pytest.mark.parametrize("plant", sorted(plants.PLANTS.keys() - RARE))
def test_a_deliberate_fault_is_noticed(plant, tmp_path, v3_binary):
    assert any(not result.good for result in histories(25, 0, tmp_path, plant, v3_binary))
