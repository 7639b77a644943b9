"""A plan that violates an invariant is made smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation import mutants
from tests.simulation.plan import Plan
from tests.simulation.run import first_violation
from tests.simulation.shrinking import invariant_of, shrink


def test_a_plan_becomes_as_small_as_its_violation_allows(monkeypatch):
    mutants.MUTANTS[0].apply(monkeypatch)
    seed = first_violation(range(300), mutants.MUTANTS[0].invariant)
    assert seed is not None
    plan = Plan.of(seed)
    smallest = shrink(plan)
    assert invariant_of(smallest) == invariant_of(plan) == mutants.MUTANTS[0].invariant
    assert len(smallest.faults) < len(plan.faults)
    assert smallest.hosts <= plan.hosts
    for index in range(len(smallest.faults)):  # each of its faults is needed
        faults = smallest.faults[:index] + smallest.faults[index + 1 :]
        assert invariant_of(replace(smallest, faults=faults)) != mutants.MUTANTS[0].invariant


def test_a_plan_without_a_violation_is_refused():
    with pytest.raises(AssertionError, match="violates no invariant"):
        shrink(Plan.of(0))
