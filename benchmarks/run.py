"""Run benchmarks, write their results, and publish them.

Results are written to ``benchmarks/out``, which git ignores. ``--publish`` writes them to ``benchmarks/results``
instead, and makes the tables and plots there, and the figures of the README, from these files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import catalog
from benchmarks.catalog import BENCHMARKS
from rendezvous.api import RendezvousError
from rendezvous.bench.metadata import metadata

__all__ = ["main"]

OUT = Path(__file__).parent / "out"
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit code: 0 done, 1 a benchmark failed, 2 wrongly called.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    if options.readme and (options.names or options.full or options.publish):
        parser.error("--readme measures nothing and takes no other argument")
    publish = options.publish or options.readme
    if publish and importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib, which draws the plots, is not installed; run pip install -e '.[dev]'")
    names = () if options.readme else options.names or BENCHMARKS
    done = all([_run(name, options.full, RESULTS if publish else OUT) for name in names])
    if publish:
        from benchmarks import report

        report.write(README, RESULTS)
    return 0 if done else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks of one machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="all sizes, several runs each: about 90 minutes")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the results to benchmarks/results instead of benchmarks/out, and update the tables and plots there "
        "and the figures of the README",
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="measure nothing; make tables, plots and the README's figures from the files in benchmarks/results",
    )
    return parser


def _run(name: str, full: bool, folder: Path) -> bool:
    """Run one benchmark; return whether it succeeded. If it fails, the other benchmarks still run."""
    try:
        measure(name, full, folder)
    except (OSError, RuntimeError, RendezvousError) as exc:
        print(f"benchmarks: {name} failed: {exc}", file=sys.stderr)
        return False
    return True


def measure(name: str, full: bool, folder: Path) -> None:
    """Run one benchmark, write its results into ``folder``, and print its tables."""
    benchmark = catalog.module(name)
    made = metadata()
    rows = benchmark.measure(full)
    if measured := dict.fromkeys(row["etcd"] for row in rows if "etcd" in row):
        made["versions"]["etcd"] = " / ".join(measured)
    result: dict[str, Any] = {"benchmark": name, "full": full, "metadata": made, "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for table in benchmark.tables(result["rows"]):
        table.show()
