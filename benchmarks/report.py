"""The figures of the README, and all tables and plots of the results, made from the files in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import catalog, plots, releases, targets
from benchmarks.tables import by, etcd_of, seconds
from rendezvous.bench.metadata import summary
from rendezvous.bench.tables import MISSING, Table

__all__ = ["read", "section", "write"]

MARKS = ("<!-- results: made by `python -m benchmarks --readme` -->", "<!-- end of results -->")

COMPARED = ("etcd-v3", "torch etcd-v2", "torch c10d")
"""The contenders of the figures in the README."""

NODES = 64
"""The number of nodes of the worlds in these figures: all contenders form them."""

TTL = 3
"""Seconds until a killed node counts as dead in the figure about it."""

ALT = {
    "formation": "Seconds to form a world by the number of nodes, for each backend",
    "scale": "Seconds to form a world by the number of nodes: real, and predicted by the model",
    "state": "Microseconds of a swap cycle by the number of nodes: compiled, pure and torch's pickle",
}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results in ``folder`` by the name of the benchmark."""
    return {
        name: json.loads(path.read_text()) for name in catalog.BENCHMARKS if (path := folder / f"{name}.json").exists()
    }


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
        parts += [table.markdown() for table in catalog.module(name).tables(results[name]["rows"])]
        which = "" if results[name]["full"] else " The short set."
        parts.append(summary(results[name]["metadata"]) + which)
    return "\n\n".join(parts)


def front(results: dict[str, dict[str, Any]], folder: str) -> str:
    """Return what the README shows: one plot and three figures.

    Args:
        results: the results of all benchmarks.
        folder: the folder of the results, relative to the README.
    """
    rows = {name: result["rows"] for name, result in results.items()}
    parts = [_figures(rows, _etcds(results, ("formation", "recovery"))).markdown()]
    if "formation" in results:
        parts.insert(0, f"![{ALT['formation']}]({folder}/formation.png)")
        parts.append(summary(results["formation"]["metadata"]))
    if "releases" in results:
        parts += [_releases(rows["releases"]).markdown(), summary(results["releases"]["metadata"])]
    parts.append(
        f"{targets.met(rows)} of the {len(targets.TARGETS)} targets were met{_etcds(results, targets.MEASURED)}. "
        f"[All results]({folder}/README.md) include those that were missed."
    )
    return "\n\n".join(parts)


def _etcds(results: dict[str, dict[str, Any]], names: Iterable[str]) -> str:
    """Return on which etcd some results were measured; nothing if none of them is there."""
    etcds = dict.fromkeys(etcd_of(results[name]) for name in names if name in results)
    return f" on {' and '.join(etcds)}" if etcds else ""


def _releases(rows: list[dict[str, Any]]) -> Table:
    """Return the time to form a world on each etcd release."""
    columns = releases.releases(rows)
    found = by((row for row in rows if row["contender"] == "etcd-v3"), "nodes", "etcd")
    return Table(
        "Time to form a world of `etcd-v3` on each etcd release.",
        ["nodes", *(f"etcd {version}" for version in columns)],
        [
            [f"{nodes:,}", *(seconds(found.get((nodes, version))) for version in columns)]
            for nodes in sorted({nodes for nodes, _ in found})
        ],
    )


def _figures(rows: dict[str, list[dict[str, Any]]], where: str) -> Table:
    worlds = {row["contender"]: row for row in rows.get("formation", ()) if row.get("nodes") == NODES}
    kills = [row for row in rows.get("recovery", ()) if row.get("victim") == "node" and row["ttl"] == TTL]
    killed = {row["contender"]: row for row in kills}
    reasons = [f"{name}: {killed[name]['failed']}" for name in COMPARED if "failed" in killed.get(name, ())]
    return Table(
        f"Three figures{where}: two of a world of {NODES} nodes, and one of a world of 8 in which the lease of a "
        f"killed node ends after {TTL} s.",
        ["", *COMPARED],
        [
            ["time to form the world", *(seconds(worlds.get(name)) for name in COMPARED)],
            ["requests to etcd per node", *(_requests(worlds.get(name)) for name in COMPARED)],
            ["from the kill of a node to the next world", *(seconds(killed.get(name)) for name in COMPARED)],
        ],
        (f"Failed: {'; '.join(reasons).rstrip('.')}. torch's agents form the next world only when their workers fail.",)
        if reasons
        else (),
    )


def _requests(row: dict[str, Any] | None) -> str:
    """Return the cell with the requests and watches per node."""
    load = None if row is None else row.get("per_node")
    return MISSING if load is None else f"{load['requests'] + load['watches']:.1f}"


def write(readme: Path, folder: Path) -> None:
    """Draw the plots into ``folder``; write the figures into ``readme``, and all tables into the README beside them."""
    results = read(folder)
    for name in plots.PLOTS.keys() & results.keys():
        plots.draw(name, results[name], folder)
    where = _etcds(results, targets.MEASURED)
    reached = targets.table({name: result["rows"] for name, result in results.items()}, where).markdown()
    before, rest = readme.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    figures = front(results, folder.relative_to(readme.parent).as_posix())
    readme.write_text(f"{before}{MARKS[0]}\n\n{figures}\n\n{MARKS[1]}{after}")
    (folder / "README.md").write_text(f"# Results\n\n{reached}\n\n{section(results, catalog.BENCHMARKS, '.')}\n")
