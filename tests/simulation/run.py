"""Runs the plans of many seeds."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress

from tests.simulation import snapshots
from tests.simulation.faults import Faults
from tests.simulation.invariants import Violation
from tests.simulation.plan import CLOSED_ENDS, CLOSED_RUN_ENDS, FAULTS_END, MUST_BE_STABLE, RUN_ENDS, Plan
from tests.simulation.trace import Line, Trace, recorded
from tests.simulation.virtual import Deadlock, Livelock, make_loop, run
from tests.simulation.world import World

__all__ = ["first_violation", "process_pool", "quiet", "simulate", "simulate_plan", "trace_of", "violations"]

_SEEDS_PER_TASK = 50


@contextmanager
def quiet() -> Iterator[None]:
    """Turn the log of the package off: the faults cause many warnings."""
    logger = logging.getLogger("rendezvous")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # to set the attribute alone would leave the loggers' caches as they are
    try:
        yield
    finally:
        logger.setLevel(level)


def simulate(seed: int, transcript: list[str] | None = None) -> World:
    """Run the plan of one seed; see :func:`simulate_plan`."""
    return simulate_plan(Plan.of(seed), transcript)


def simulate_plan(
    plan: Plan, transcript: list[str] | None = None, prepare: Callable[[World], None] = lambda world: None
) -> World:
    """Run a plan.

    Args:
        plan: what happens.
        transcript: gets a line for each event.
        prepare: called with the world before the run.

    Raises:
        Violation: an invariant does not hold.
    """
    rng = random.Random(plan.seed + 1)
    world = World(plan.limits, plan.conditions_now(), plan.options(), rng, transcript, _topology)
    prepare(world)
    loop = make_loop()
    loop.set_exception_handler(lambda loop, context: world.invariants.fail("no error is lost", str(context)))
    with quiet():
        try:
            run(_run(world, plan), loop)
            world.raise_violation()
        except Violation as exc:
            raise Violation(exc.invariant, exc.text, plan.seed) from None
        except (Deadlock, Livelock) as exc:
            raise Violation("liveness", str(exc), plan.seed) from None
    return world


def _topology(host: int) -> str:
    return "rack" if host % 2 else ""


async def _run(world: World, plan: Plan) -> None:
    loop, invariants = asyncio.get_running_loop(), world.invariants
    world.note("test", f"seed {plan.seed}: {plan.hosts} hosts; {plan.limits}; {plan.conditions}")
    late = plan.late_hosts()
    for host in range(plan.hosts):
        if host not in late:
            loop.call_later(world.rng.uniform(0, 1.0), world.start, host)
    faults = Faults(world, plan)
    faults.schedule()
    if plan.restoration is not None:
        snapshots.schedule(world, plan.restoration)
    await world.sleep_until(FAULTS_END)
    faults.end()
    invariants.faults_until = FAULTS_END
    await world.sleep_until(CLOSED_ENDS)
    invariants.check_leases()
    if invariants.closed_at is None:
        await _check_stable(world)
    else:
        invariants.check_liveness()
        await world.sleep_until(CLOSED_RUN_ENDS)
    world.transcript = None
    for node in world.nodes:
        world.kill(node)
    await asyncio.sleep(0)
    world.raise_violation()


async def _check_stable(world: World) -> None:
    invariants = world.invariants
    await world.sleep_until(MUST_BE_STABLE)
    last_round = -1 if invariants.record is None else invariants.record.round
    invariants.check_liveness()
    await world.sleep_until(RUN_ENDS)
    invariants.check_liveness()
    if invariants.record is not None and invariants.record.round != last_round:
        invariants.fail("liveness", f"round {invariants.record.round} formed though nothing was wrong")


def trace_of(seed: int) -> list[Line]:
    """Run the plan of one seed, also if it violates an invariant, and return its trace."""
    traces: list[Trace] = []

    def prepare(world: World) -> None:
        world.trace = Trace(world.keys, world.etcd, lambda host: world.limits_of(host))
        traces.append(world.trace)

    with recorded(lambda: traces[-1] if traces else None), suppress(Violation):
        simulate_plan(Plan.of(seed), prepare=prepare)
    return traces[-1].lines


def first_violation(seeds: range, invariant: str) -> int | None:
    """Return the first seed with a violation of ``invariant``; None if there is none."""
    for seed in seeds:
        try:
            simulate(seed)
        except Violation as exc:
            if exc.invariant == invariant:
                return seed
    return None


def _violations(seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        try:
            simulate(seed)
        except Violation as exc:
            found.append(str(exc))
    return found


def process_pool(jobs: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of processes; by default one for each core.

    They are not forked: this process may have threads of gRPC, and a process that is forked beside them can crash.
    """
    return ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def violations(seeds: range, jobs: int | None = None) -> Iterator[str]:
    """Run seeds side by side in processes; yield the violations.

    Args:
        seeds: the seeds.
        jobs: the number of processes; by default one for each core.
    """
    tasks = [seeds[first : first + _SEEDS_PER_TASK] for first in range(0, len(seeds), _SEEDS_PER_TASK)]
    with process_pool(jobs) as pool:
        for found in pool.map(_violations, tasks):
            yield from found
