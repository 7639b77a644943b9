"""Run TLC on the specification in spec/: the models must hold, and each wrong protocol must violate its invariant.

    check_spec.py JAR [--mutants | --full | --all] [--states DIR]

JAR is tla2tools.jar. By default the models of spec/models are run; with --mutants, the wrong protocols of
spec/mutants; with --full, the larger models of spec/models/full; with --all, models and wrong protocols. For each, the
number of states and the time are printed. The exit status is 1 if a result is not the expected one; then the output of
TLC follows.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

SPEC = Path(__file__).resolve().parent.parent / "spec"

_STATES = re.compile(r"([\d,]+) states generated.*?, ([\d,]+) distinct states found, ([\d,]+) states left on queue")
_VIOLATED = re.compile(
    r"Error: (?:Invariant|Action property) (\w+) is violated|Error: Temporal properties were violated"
)


def run_tlc(jar: Path, states: Path, module: Path, config: Path, workers: int = 0) -> str:
    """Run TLC on a module with a configuration, and return its output.

    Args:
        jar: tla2tools.jar.
        states: a folder for TLC's own files.
        module: the module.
        config: the configuration.
        workers: the number of threads; 0 for one for each core.

    Raises:
        SystemExit: there is no Java.
    """
    if shutil.which("java") is None:
        sys.exit("The specification is checked by TLC, which needs Java (11 or newer): 'java' is not on the PATH.")
    java = ["java", "-XX:+UseParallelGC", f"-DTLA-Library={SPEC}", "-cp", str(jar.resolve()), "tlc2.TLC"]
    options = ["-deadlock", "-workers", str(workers or os.cpu_count()), "-metadir", str(states.resolve())]
    files = ["-config", os.path.relpath(config, module.parent), module.name]  # TLC does not find them by absolute paths
    command = [*java, *options, *files]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=module.parent).stdout


def violated(output: str) -> str:
    """Return the invariant or property that is violated; empty if there is none."""
    found = _VIOLATED.search(output)
    if found is None:
        return "" if "Model checking completed. No error has been found." in output else "TLC itself"
    return found[1] or "a temporal property"


def expected(config: Path) -> str:
    """Return the invariant that a configuration must violate, according to its first line; empty if none."""
    if config.parent.name != "mutants":
        return ""
    name = config.read_text().split(":", 1)[0].removeprefix(r"\*").strip()
    return "a temporal property" if name == "Settles" else name


def check(jar: Path, states: Path, config: Path) -> bool:
    """Run one configuration, print a line about it, and return whether the result is the expected one."""
    module = SPEC / "mutants/Mutants.tla" if config.parent.name == "mutants" else SPEC / "Rendezvous.tla"
    start = time.monotonic()
    output = run_tlc(jar, states / config.stem, module, config)
    seconds = time.monotonic() - start
    wanted, found = expected(config), violated(output)
    counts = _STATES.findall(output)
    generated, distinct, left = counts[-1] if counts else ("0", "0", "0")
    ok = found == wanted and (bool(wanted) or left == "0")
    result = f"violates {found}" if found else "holds"
    print(
        f"{config.stem:24} {result:28} {distinct:>10} states, {generated:>10} generated, {seconds:5.0f} s", flush=True
    )
    if not ok:
        print(output)
        print(f"{config}: expected: {f'a violation of {wanted}' if wanted else 'no violation'}", flush=True)
    return ok


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jar", type=Path)
    what = parser.add_mutually_exclusive_group()
    for name in ("mutants", "full", "all"):
        what.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--states", type=Path, default=Path("build/tla/states"))
    options = parser.parse_args()
    folders = ["models"]
    if options.all:
        folders = ["models", "mutants"]
    elif options.mutants or options.full:
        folders = ["mutants"] if options.mutants else ["models/full"]
    configs = [config for folder in folders for config in sorted((SPEC / folder).glob("*.cfg"))]
    results = [check(options.jar, options.states, config) for config in configs]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
