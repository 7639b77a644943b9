"""The inputs of the repository, some thousand new ones, and faults made on purpose."""

from __future__ import annotations

import pytest

from tests.fuzz import blind, corpus, targets
from tests.fuzz.planted import FAULTS

RUNS = {"state": 3000, "roster": 3000, "records": 2000, "run": 100, "legacy": 2000, "texts": 5000}


@pytest.fixture(autouse=True)
def compiled() -> None:
    pytest.importorskip("rendezvous._core._state_c", reason="the twins are compared")


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_inputs_of_the_repository_find_no_fault(target: str):
    inputs = corpus.inputs(target)
    assert inputs
    for data in inputs:
        targets.run(target, data)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_mutated_inputs_find_no_fault(target: str):
    assert blind.fuzz(target, corpus.inputs(target), 600, RUNS[target], seed=1) == RUNS[target]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_made_on_purpose_is_found(fault: str):
    target, plant = FAULTS[fault]
    undo = plant()
    try:
        with pytest.raises(blind.Finding) as caught:
            blind.fuzz(target, corpus.inputs(target), 600, 200_000, seed=1)
    finally:
        undo()
    targets.run(target, caught.value.data)  # the fault is gone
