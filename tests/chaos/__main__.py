"""Runs the experiments, several side by side: most of the time they wait.

python -m tests.chaos --times 50              every fault, fifty times
python -m tests.chaos --times 50 kill-leader  one fault
python -m tests.chaos --show FILE...          the table of earlier results
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.report import load, save, table
from tests.chaos.run import run_all


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m tests.chaos", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="experiments with each fault (default 1)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first one (default 0)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="experiments side by side (default 8)")
    parser.add_argument(
        "--longest", type=float, default=30, metavar="SECONDS", help="the longest suspension or cut (default 30)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="for results and logs (build/chaos)")
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="print the table of these results")
    parser.add_argument("--markdown", action="store_true", help="print that table as Markdown")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(names):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.show:
        results = table(load(options.show))
        if options.markdown:
            print(results.markdown())
        else:
            results.show()
        return 0
    faults = [fault for fault in FAULTS if not options.faults or fault.name in options.faults]
    numbers = range(options.first, options.first + options.times)
    outcomes, versions = run_all(faults, numbers, options.seed, options.longest, options.jobs, options.out)
    path = save(outcomes, versions, options.seed, options.longest, options.out)
    table(outcomes).show()
    print(f"results: {path}")
    return 0 if all(outcome.faultless for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
