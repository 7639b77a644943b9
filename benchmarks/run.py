"""Run benchmarks, write their results, and put them into the README.

rendezvous bench [NAME ...] [--full] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import hosts
from benchmarks.circumstances import circumstances

BENCHMARKS = ("state", "formation", "steady", "recovery", "store", "scale")
"""The modules, each with ``measure(full)``, which returns rows, and ``tables(rows)``."""

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def module(name: str) -> ModuleType:
    """Return the module of a benchmark."""
    return importlib.import_module(f"benchmarks.{name}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``rendezvous bench`` takes."""
    in_clone = README.exists() and RESULTS.exists()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all unless given")
    parser.add_argument("--full", action="store_true", help="measure at all sizes, often: some 90 minutes")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS if in_clone else Path("results"),
        metavar="FOLDER",
        help="where the results go (default: %(default)s)",
    )
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing: make the README's tables and plots anew"
    )
    hosts.add_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks for; return the exit code."""
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        raise ValueError(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    if hosts.wanted(options):
        return hosts.run(options)
    for_readme = options.output.resolve() == RESULTS.resolve()
    if options.readme and (options.names or options.full or not for_readme):
        raise ValueError("--readme works in a clone, on its own results, and measures nothing: give nothing else")
    if for_readme and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            f"matplotlib is missing, which draws the plots of {README}: pip install 'etcd-rendezvous[bench]', or send "
            "the results elsewhere with --output"
        )
    done = options.readme or all([measured(name, options.full, options.output) for name in options.names or BENCHMARKS])
    if for_readme:
        from benchmarks import report

        report.write(README, RESULTS)
    return 0 if done else 1


def measured(name: str, full: bool, folder: Path) -> bool:
    """Run one benchmark; return whether it could, so that the others run where it could not."""
    try:
        measure(name, full, folder)
    except (OSError, RuntimeError) as exc:
        print(f"rendezvous bench {name}: {exc}", file=sys.stderr)
        return False
    return True


def measure(name: str, full: bool, folder: Path) -> None:
    """Run one benchmark, write its results into ``folder``, and show them."""
    benchmark = module(name)
    made = circumstances()
    result: dict[str, Any] = {"benchmark": name, "full": full, "circumstances": made, "rows": benchmark.measure(full)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for table in benchmark.tables(result["rows"]):
        table.show()
