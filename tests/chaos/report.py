"""The results of experiments: as a file, and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from rendezvous.bench.metadata import metadata
from rendezvous.bench.tables import MISSING, Table
from tests.chaos.experiment import Outcome

__all__ = ["load", "save", "table"]

_REMARKS = (
    "times: experiments, those in which the fault met a round that formed, and those in which it met a job that ran; "
    "rounds lost: the nodes that ran did not meet in one world within their bound; wrong worlds: ranks, sizes or "
    "addresses that do not fit, or a round that began while a member was still in an earlier one; expelled: healthy "
    "nodes that ended with an error, or lost their leases without a reason; leases ended: healthy nodes whose leases "
    "etcd ended although they were renewed, which is no fault of the nodes; failed: experiments not carried out.",
    "Seconds, median / worst: until all nodes had met again, and until they had met with one more node afterwards.",
)


def save(outcomes: Sequence[Outcome], versions: Sequence[str], seed: int, longest: float, out: Path) -> Path:
    """Write the outcomes into a new file in the folder ``out``; return its path."""
    results = {
        "metadata": metadata(", ".join(versions)),
        "seed": seed,
        "longest": longest,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"results-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def load(paths: Sequence[Path]) -> list[Outcome]:
    """Return the outcomes in these files."""
    return [Outcome(**each) for path in paths for each in json.loads(path.read_text())["outcomes"]]


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with a row for each fault."""
    names = list(dict.fromkeys(outcome.fault for outcome in outcomes))
    rows = [_row(name, [outcome for outcome in outcomes if outcome.fault == name]) for name in names]
    heads = ["fault", "times", "forming", "running", "rounds lost", "wrong worlds", "expelled"]
    caption = "Faults of an etcd of three members, or of a job of four nodes"
    return Table(caption, [*heads, "leases ended", "failed", "re-form (s)", "one more (s)"], rows, _REMARKS)


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    carried_out = [outcome for outcome in outcomes if not outcome.failed]
    return [
        name,
        str(len(carried_out)),
        str(sum(outcome.phase == "forming" for outcome in carried_out)),
        str(sum(outcome.phase == "running" for outcome in carried_out)),
        str(sum(len(outcome.lost) for outcome in outcomes)),
        str(sum(len(outcome.wrong) for outcome in outcomes)),
        str(sum(len(outcome.expelled) for outcome in outcomes)),
        str(sum(len(outcome.leases) for outcome in outcomes)),
        str(len(outcomes) - len(carried_out)),
        _times([outcome.seconds for outcome in carried_out]),
        _times([outcome.afterwards for outcome in carried_out]),
    ]


def _times(seconds: Sequence[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    return f"{statistics.median(known):.1f} / {max(known):.1f}" if known else MISSING
