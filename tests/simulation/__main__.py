"""Run the simulation: `python -m tests.simulation --seeds 0:2000`, or `--replay 42` for a transcript."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.world import Violation, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.simulation")
    parser.add_argument("--seeds", default="0:2000", metavar="FIRST:LAST", help="which (default 0:2000)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and print what happens")
    options = parser.parse_args()
    if options.replay is not None:
        transcript: list[str] = []
        try:
            simulate(options.replay, transcript)
        except Violation as exc:
            transcript.append(str(exc))
        print("\n".join(transcript))
        return 0
    first, _, last = options.seeds.partition(":")
    failed, start = 0, time.monotonic()
    for seed in range(int(first), int(last)):
        try:
            simulate(seed)
        except Violation as exc:
            failed += 1
            print(exc, flush=True)
    print(f"{int(last) - int(first)} seeds, {failed} violations, {time.monotonic() - start:.1f} s")
    return 1 if failed else 0


sys.exit(main())
