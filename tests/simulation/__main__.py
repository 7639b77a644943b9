"""Runs the simulation of the coordinated rendezvous."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation import mutants, scenarios
from tests.simulation.invariants import Violation
from tests.simulation.plan import Plan
from tests.simulation.run import simulate_plan, violations
from tests.simulation.shrinking import invariant_of, shrink


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end))


def _replay(plan: Plan) -> int:
    transcript: list[str] = []
    failed = 0
    try:
        simulate_plan(plan, transcript)
    except Violation as exc:
        transcript.append(str(exc))
        failed = 1
    print("\n".join(transcript))
    return failed


def _shrink(seed: int) -> int:
    plan = Plan.of(seed)
    if not invariant_of(plan):
        print(f"seed {seed} violates no invariant")
        return 0
    plan = shrink(plan)
    print(plan)
    return _replay(plan)


def _run_seeds(seeds: range, jobs: int | None) -> int:
    start, failed = time.monotonic(), 0
    for text in violations(seeds, jobs):
        failed += 1
        print(text, flush=True)
    seconds = time.monotonic() - start
    print(f"{len(seeds)} seeds, {failed} violations, {seconds:.1f} s, {len(seeds) / seconds:.0f} seeds a second")
    return 1 if failed else 0


def _run_mutants(jobs: int | None) -> int:
    unnoticed = 0
    for mutant, seeds in mutants.run_all(jobs):
        unnoticed += seeds is None
        result = "NOT NOTICED" if seeds is None else f"{seeds:3} seeds"
        print(f"{result:>11} of {mutant.seeds:3}  {mutant.invariant:<16}  {mutant.name}", flush=True)
    print(f"{len(mutants.MUTANTS)} mutants, {unnoticed} not noticed")
    return 1 if unnoticed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.simulation")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--seeds", type=_seeds, default=range(5000), metavar="A:B", help="run the seeds A to B-1 (default 0:5000)"
    )
    what.add_argument("--replay", type=int, metavar="SEED", help="run one seed and print its transcript")
    what.add_argument("--shrink", type=int, metavar="SEED", help="make the plan of a seed smaller, and print its run")
    what.add_argument("--mutants", action="store_true", help="run each mutant until a seed notices it")
    what.add_argument("--transcripts", action="store_true", help="write the transcripts of the scenarios again")
    parser.add_argument("--jobs", type=int, metavar="N", help="number of processes (default: one for each core)")
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(Plan.of(options.replay))
    if options.shrink is not None:
        return _shrink(options.shrink)
    if options.mutants:
        return _run_mutants(options.jobs)
    if options.transcripts:
        scenarios.regenerate()
        return 0
    return _run_seeds(options.seeds, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
