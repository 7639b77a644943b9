"""Makes a plan that violates an invariant smaller, while it violates the same invariant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rendezvous.coordinated import rules
from tests.simulation.invariants import Violation
from tests.simulation.network import Conditions
from tests.simulation.plan import Habits, Plan
from tests.simulation.run import simulate_plan

__all__ = ["invariant_of", "shrink"]

_SHORT = 0.3  # seconds


def invariant_of(plan: Plan) -> str:
    """Run a plan and return the name of the invariant that it violates; empty if it violates none."""
    try:
        simulate_plan(plan)
    except Violation as exc:
        return exc.invariant
    return ""


def shrink(plan: Plan) -> Plan:
    """Return the smallest plan that is found and violates the same invariant as ``plan``.

    Each step makes the plan smaller in one way. It is taken if the violation stays; the search ends if no step can be
    taken any more.
    """
    invariant = invariant_of(plan)
    assert invariant, "the plan violates no invariant"
    smaller: Plan | None = plan
    while smaller is not None:
        plan = smaller
        smaller = next((step for step in _steps(plan) if invariant_of(step) == invariant), None)
    return plan


def _steps(plan: Plan) -> Iterator[Plan]:
    """Return the plans that are smaller in one way, those that are much smaller first."""
    for step in (
        *_without_faults(plan),
        *_with_fewer_hosts(plan),
        *_without_circumstances(plan),
        *_with_simpler_limits(plan),
        *_with_shorter_faults(plan),
    ):
        if step != plan:
            yield step


def _without_faults(plan: Plan) -> Iterator[Plan]:
    length = len(plan.faults)
    while length := length // 2 if length != 1 else 0:
        for first in range(0, len(plan.faults), length):
            yield replace(plan, faults=plan.faults[:first] + plan.faults[first + length :])


def _with_fewer_hosts(plan: Plan) -> Iterator[Plan]:
    least = max(rules.least(plan.limits), rules.least(plan.other_limits))
    for hosts in {least, (least + plan.hosts) // 2, plan.hosts - 1}:
        if least <= hosts < plan.hosts:
            faults = tuple(fault for fault in plan.faults if fault.host < hosts)
            yield replace(plan, hosts=hosts, faults=faults, others=frozenset(h for h in plan.others if h < hosts))


def _without_circumstances(plan: Plan) -> Iterator[Plan]:
    yield replace(plan, kill_coordinator_at=None)
    yield replace(plan, strike_rank_0=None)
    yield replace(plan, close_at_completion=False)
    yield replace(plan, restoration=None)
    yield replace(plan, others=frozenset(), other_limits=plan.limits)
    yield replace(plan, shard_nodes=128)
    yield replace(plan, operations=100)
    for name, value in vars(Conditions(latency=0.002)).items():
        yield replace(plan, conditions=replace(plan.conditions, **{name: value}))
    for name, value in vars(Habits()).items():
        yield replace(plan, habits=replace(plan.habits, **{name: value}))


def _with_simpler_limits(plan: Plan) -> Iterator[Plan]:
    limits = plan.limits
    if limits == plan.other_limits:
        for most in {rules.least(limits), limits.max_nodes - limits.node_unit}:
            if rules.least(limits) <= most < limits.max_nodes:
                fewer = replace(limits, max_nodes=most)
                yield replace(plan, limits=fewer, other_limits=fewer)
        if limits.min_nodes > 1:
            fewer = replace(limits, min_nodes=limits.min_nodes - 1)
            yield replace(plan, limits=fewer, other_limits=fewer)


def _with_shorter_faults(plan: Plan) -> Iterator[Plan]:
    for index, fault in enumerate(plan.faults):
        shorter = replace(fault, seconds=_SHORT)
        yield replace(plan, faults=(*plan.faults[:index], shorter, *plan.faults[index + 1 :]))
