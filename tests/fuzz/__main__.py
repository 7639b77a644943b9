"""Fuzzes with atheris.

    python -m tests.fuzz --seconds 60 --lanes 2       all targets, so many at the same time
    python -m tests.fuzz --seconds 60 state           one of them
    python -m tests.fuzz --runs 1000000 state         as many inputs
    python -m tests.fuzz --blind state                without atheris and without coverage, but more inputs a second

New inputs are collected in build/fuzz/corpus. An input that finds a fault is printed as a line for the file of its
target in tests/fuzz/inputs, from where ``test_fuzz`` runs it. ``--keep 40 state`` writes the smallest inputs that
together run most lines of the package into that file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import corpus

BUILD = Path("build/fuzz")
_TARGETS = ("state", "roster", "records", "run", "legacy", "texts")  # targets.TARGETS, which atheris must import


def _collected(target: str) -> Path:
    """Return the folder of the collected inputs, with those of the repository."""
    folder = BUILD / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus.inputs(target)):
        (folder / f"kept-{number:03d}").write_bytes(data)
    return folder


def _command(target: str, *options: str) -> list[str]:
    crash = f"-artifact_prefix={BUILD}/{target}-"
    return [*_worker("--worker", target), crash, *options]


def _worker(kind: str, target: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz", kind, target]


def _fuzz(target: str, options: argparse.Namespace) -> tuple[str, int, str]:
    """Fuzz one target in a process of its own; return its name, the number of inputs, and what was found."""
    limits = [f"-max_total_time={options.seconds}", f"-runs={options.runs}", f"-seed={options.seed}"]
    fixed = [
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-max_len=600",
        "-len_control=0",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    command = _command(target, *limits, *fixed, str(_collected(target)))
    if options.blind:
        command = [*_worker("--blind-worker", target), *map(str, (options.seconds, options.runs, options.seed))]
    result = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, errors="replace")
    (BUILD / f"{target}.log").write_text(result.stdout)
    inputs = re.search(r"number_of_executed_units: (\d+)", result.stdout)
    return target, int(inputs[1]) if inputs else 0, "" if result.returncode == 0 else _finding(target, result.stdout)


def _finding(target: str, output: str) -> str:
    written = re.search(r"Test unit written to (\S+)", output)
    line = f"\nthe input: {Path(written[1]).read_bytes().hex()}" if written else ""
    return f"{output[-4000:]}{line}\nall of it is in {BUILD / target}.log"


def _work(target: str, options: list[str]) -> None:
    """Be the process that fuzzes ``target``."""
    import atheris

    with atheris.instrument_imports(include=["rendezvous", "tests.fuzz.reader"]):
        from tests.fuzz import targets
    atheris.Setup([sys.argv[0], *options], lambda data: targets.run(target, data), enable_python_coverage=True)
    atheris.Fuzz()


def _work_blindly(target: str, options: list[str]) -> None:
    """Be the process that fuzzes ``target`` without atheris, and print what libFuzzer would."""
    from tests.fuzz import blind

    seconds, runs, seed = map(int, options)
    known = [path.read_bytes() for path in sorted(_collected(target).iterdir())]
    try:
        count = blind.fuzz(target, known, seconds, runs, seed or time.time_ns())
    except blind.Finding as exc:
        path = BUILD / f"{target}-finding"
        path.write_bytes(exc.data)
        print(f"Test unit written to {path}")
        raise
    print(f"number_of_executed_units: {count}")


def _keep(target: str, count: int) -> None:
    """Write the smallest of the collected inputs that together reach most lines into the repository's file."""
    from tests.fuzz import targets

    collected = {path.read_bytes() for path in _collected(target).iterdir()}
    reached: set[tuple[str, int]] = set()
    kept: list[tuple[int, bytes]] = []
    for data in sorted(collected, key=lambda data: (len(data), data)):
        lines = _lines(lambda data=data: targets.run(target, data))
        if new := len(lines - reached):
            reached |= lines
            kept.append((new, data))
    best = sorted(kept, reverse=True)[:count]
    corpus.write(target, sorted((data for _, data in best), key=lambda data: (len(data), data)))


def _lines(call: Callable[[], None]) -> set[tuple[str, int]]:
    """Return the lines of the package that a call runs."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "/rendezvous/" not in frame.f_code.co_filename:
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the decoders and the protocol.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target, at most; -1 for no limit")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="targets at the same time")
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--seed", type=int, default=0, help="0 for a random one")
    parser.add_argument("--keep", type=int, help="write so many inputs into tests/fuzz/inputs instead")
    parser.add_argument("targets", nargs="*", default=list(_TARGETS), help=", ".join(_TARGETS))
    options = parser.parse_args()
    if options.keep:
        for target in options.targets:
            _keep(target, options.keep)
        return 0
    began, found = time.monotonic(), False
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.lanes) as pool:
        for target, inputs, finding in pool.map(lambda target: _fuzz(target, options), options.targets):
            print(f"{target}: {inputs:,} inputs, {'A FAULT' if finding else 'no fault'}\n{finding}", end="", flush=True)
            found = found or bool(finding)
    print(f"{time.monotonic() - began:.0f} s")
    return int(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--blind-worker"]:
        _work_blindly(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
