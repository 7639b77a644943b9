"""Runs porcupine, which ``make porcupine`` builds from tools/porcupine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BINARY = Path(__file__).parents[2] / "build" / "porcupine"

MISSING = "build/porcupine is not there: run 'make porcupine', which needs Go"

# How long porcupine may take for one partition of a history.
_TIMEOUT = 60


@dataclass(frozen=True)
class Verdict:
    """What porcupine says about a history.

    Attributes:
        file: the history.
        result: ``Ok``, ``Illegal``, or ``Unknown`` if it took too long.
        operations: the number of operations.
        open: how many of them have no known outcome.
        partitions: how many parts of the history were checked separately.
        seconds: how long it took.
        failing: the keys of the part that is not linearizable.
        picture: a page that shows that part.
    """

    file: str
    result: str
    operations: int
    open: int
    partitions: int
    seconds: float
    failing: str = ""
    picture: str = ""


def check(paths: Sequence[Path], pictures: Path | None = None) -> list[Verdict]:
    """Check histories; return a verdict for each.

    Raises:
        FileNotFoundError: porcupine is not built.
        RuntimeError: a history is malformed.
    """
    if not BINARY.exists():
        raise FileNotFoundError(MISSING)
    options = ["-timeout", f"{_TIMEOUT}s", *(("-pictures", str(pictures)) if pictures else ())]
    result = subprocess.run([str(BINARY), *options, *map(str, paths)], capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        raise RuntimeError(f"porcupine ended with exit code {result.returncode}: {result.stderr.strip()}")
    return [Verdict(**json.loads(line)) for line in result.stdout.splitlines()]
