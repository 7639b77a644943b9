"""The tables and plots of the README, made from the files in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import plots, run, targets
from rendezvous.bench.metadata import summary

__all__ = ["read", "section", "write"]

MARKS = ("<!-- results: made by `python -m benchmarks --readme` -->", "<!-- end of results -->")

FRONT = ("formation", "recovery")
"""The benchmarks whose results are in the README itself; it links to the others."""

ALT = {
    "formation": "Seconds to form a world by the number of nodes, for each backend",
    "scale": "Seconds to form a world by the number of nodes: real, and predicted by the model",
    "state": "Microseconds of a swap cycle by the number of nodes: compiled, pure and torch's pickle",
}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results in ``folder`` by the name of the benchmark."""
    return {name: json.loads(path.read_text()) for name in run.BENCHMARKS if (path := folder / f"{name}.json").exists()}


def section(results: dict[str, dict[str, Any]], names: Iterable[str], folder: str) -> str:
    """Return the results of some benchmarks as Markdown.

    Args:
        results: the results of all benchmarks.
        names: the benchmarks to include.
        folder: the folder of the plots, relative to the Markdown file.
    """
    parts = []
    for name in names:
        if name not in results:
            continue
        if name in plots.PLOTS:
            parts.append(f"![{ALT[name]}]({folder}/{name}.png)")
        parts += [table.markdown() for table in run.module(name).tables(results[name]["rows"])]
        which = "" if results[name]["full"] else " The short set."
        parts.append(summary(results[name]["circumstances"]) + which)
    return "\n\n".join(parts)


def write(readme: Path, folder: Path) -> None:
    """Draw the plots into ``folder``, and write the tables into ``readme`` and into the README of ``folder``."""
    results = read(folder)
    for name in plots.PLOTS.keys() & results.keys():
        plots.draw(name, results[name]["rows"], folder)
    reached = targets.table({name: result["rows"] for name, result in results.items()}).markdown()
    before, rest = readme.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    front = section(results, FRONT, folder.relative_to(readme.parent).as_posix())
    readme.write_text(f"{before}{MARKS[0]}\n\n{reached}\n\n{front}\n\n{MARKS[1]}{after}")
    (folder / "README.md").write_text(f"# Results\n\n{reached}\n\n{section(results, run.BENCHMARKS, '.')}\n")
