"""Check with TLC that runs of the simulation are behaviours of the specification in spec/.

    check_traces.py JAR [--seeds A:B] [--mutants] [--states DIR] [--keep FILE]

JAR is tla2tools.jar. Each seed's run becomes a trace, and TLC follows all of them at once. With --mutants, each mutant
of MUTANTS must violate an invariant of the specification, or have a trace that it cannot follow. --keep writes the
traces as NDJSON. The exit status is 1 if a result is not the expected one.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from check_spec import SPEC, run_tlc, violated  # noqa: E402

from tests.simulation import mutants  # noqa: E402
from tests.simulation.plan import Plan  # noqa: E402
from tests.simulation.run import trace_of  # noqa: E402
from tests.simulation.trace import Line, to_ndjson  # noqa: E402

MUTANTS = {
    "without the fence": range(60),
    "progress without the fence": range(60),
    "newer round record overwritten": range(60),
    "next round opens early": range(20),
    "leaving is claimed in the round": range(20),
    "node unit ignored": range(60),
}
"""The mutants that traces must show, and the seeds of which one does."""

_FOLLOWED = re.compile(r'<<"followed", (\d+), (\d+)>>')


def value(item: object) -> str:
    """Return a value of a line in TLA+."""
    if isinstance(item, bool):
        return str(item).upper()
    if isinstance(item, list):
        return f"<<{', '.join(map(value, item))}>>"
    if isinstance(item, str):
        return f'"{item}"'
    return str(item)


def module(traces: Sequence[Sequence[Line]]) -> str:
    """Return the module TraceData, which contains the traces."""
    records = [
        ",\n  ".join(
            "[" + ", ".join(f"{name} |-> {value(item)}" for name, item in line.items()) + "]" for line in lines
        )
        for lines in traces
    ]
    nodes = max(item for lines in traces for line in lines for item in _nodes(line))
    attempts = max(line.get("attempt", 1) for lines in traces for line in lines)
    data = ",\n".join(f" <<{lines}>>" for lines in records)
    return (
        "---- MODULE TraceData ----\nEXTENDS Integers\n"
        f"TraceNodes == 1 .. {nodes}\nTraceAttempts == 1 .. {attempts + 1}\n"
        f"Traces == <<\n{data}\n>>\n====\n"
    )


def _nodes(line: Line) -> list[int]:
    return [line.get("node", 1), line.get("met_node", 1), len(line.get("table", ()))]


def follow(jar: Path, states: Path, traces: Sequence[Sequence[Line]]) -> tuple[str, dict[int, int], str]:
    """Let TLC follow traces.

    Returns:
        The invariant that is violated, or an empty string; for each trace that TLC could not follow to its end, the
        index of the first line that it could not follow; and TLC's output.
    """
    states.mkdir(parents=True, exist_ok=True)
    (states / "TraceData.tla").write_text(module(traces))
    for name in ("Trace.tla", "Trace.cfg"):
        (states / name).write_text((SPEC / "traces" / name).read_text())
    output = run_tlc(jar, states / "tlc", states / "Trace.tla", states / "Trace.cfg")
    reached = dict.fromkeys(range(len(traces)), 0)
    for trace, line in _FOLLOWED.findall(output):
        reached[int(trace) - 1] = max(reached[int(trace) - 1], int(line))
    stuck = {index: line for index, line in reached.items() if line < len(traces[index])}
    return violated(output), stuck, "\n".join(line for line in output.splitlines() if "followed" not in line)


def traceable(seeds: range) -> list[int]:
    """Return the seeds in which etcd is not restored from a snapshot: the specification has no such step."""
    return [seed for seed in seeds if Plan.of(seed).restoration is None]


def lines_of(seed: int) -> list[Line]:
    """Return the trace of a seed up to the first record that is foreign, deleted or damaged."""
    return list(takewhile(lambda line: line["kind"] not in ("foreign", "damage", "error"), trace_of(seed)))


def check_seeds(jar: Path, states: Path, seeds: range, keep: Path | None) -> bool:
    """Check the traces of the seeds; return whether TLC could follow all of them."""
    start = time.monotonic()
    followed = traceable(seeds)
    traces = [lines_of(seed) for seed in followed]
    if keep is not None:
        keep.write_text("".join(map(to_ndjson, traces)))
    invariant, stuck, output = follow(jar, states, traces)
    seconds = time.monotonic() - start
    lines = sum(map(len, traces))
    print(f"{len(traces)} traces with {lines} lines: {len(stuck)} not followed, {seconds:.0f} s")
    if invariant:
        print(f"{invariant} is violated\n{output}")
    for index, line in list(stuck.items())[:5] if not invariant else ():
        shown = traces[index][max(0, line - 6) : line + 1]
        print(f"seed {followed[index]}: the last of these lines is no step of the specification:\n{to_ndjson(shown)}")
    return not stuck and not invariant


def check_mutant(jar: Path, states: Path, name: str, seeds: range) -> bool:
    """Check that the traces of a mutant are not all behaviours of the specification."""
    mutant = next(mutant for mutant in mutants.MUTANTS if mutant.name == name)
    with pytest.MonkeyPatch.context() as patch:
        mutant.apply(patch)
        traces = [lines_of(seed) for seed in traceable(seeds)]
    invariant, stuck, output = follow(jar, states, traces)
    if invariant == "TLC itself":
        print(output)
        return False
    noticed = f"violates {invariant}" if invariant else f"{len(stuck)} of {len(traces)} traces are not followed"
    print(f"{name:34} {noticed if invariant or stuck else 'NOT NOTICED'}", flush=True)
    return bool(invariant or stuck)


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end))


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jar", type=Path)
    parser.add_argument("--seeds", type=_seeds, default=range(300), metavar="A:B")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--states", type=Path, default=Path("build/tla/traces"))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    if options.mutants:
        results = [check_mutant(options.jar, options.states, name, seeds) for name, seeds in MUTANTS.items()]
    else:
        results = [check_seeds(options.jar, options.states, options.seeds, options.keep)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
