"""Cells and remarks of the tables of results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rendezvous.bench.tables import MISSING

__all__ = ["by", "etcd_of", "remarks", "seconds"]


def seconds(row: dict[str, Any] | None) -> str:
    """Return the cell with the time of a result, "failed", or "-"."""
    if row is None or not row.keys() & {"seconds", "failed"}:
        return MISSING
    if "failed" in row:
        return "failed"
    value = row["seconds"]
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def remarks(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return remarks about results that are missing.

    A row may have:

    - ``failed``: why the measurement failed
    - ``obstacle``: why it could not be tried
    - ``failed_at``: it was not tried, because the contender had failed at this smaller number of nodes
    - ``runs``: the outcome of each run, a time or the reason why the run failed
    """
    failed, partly, obstacles, more = [], [], {}, ""
    for row in rows:
        runs = row.get("runs", ())
        lost = sum(isinstance(run, str) for run in runs)
        if "failed" in row:
            often = f", in each of {len(runs)} tries" if len(runs) > 1 and lost == len(runs) else ""
            failed.append(f"{_label(row)}: {row['failed'].split(';')[0].rstrip('.')}{often}")
        elif lost:
            partly.append(f"{lost} of {len(runs)} of {_label(row)}")
        if "failed_at" in row:
            more = " A contender that failed was not tried with more nodes."
        if "obstacle" in row:
            obstacles[row["contender"]] = row["obstacle"]
    return (
        *((f"Failed: {'; '.join(failed)}.{more}",) if failed else ()),
        *((f"Not done in time, and not counted: {'; '.join(partly)}.",) if partly else ()),
        *((f"Not tried: {'; '.join(f'{name}: {why}' for name, why in obstacles.items())}.",) if obstacles else ()),
    )


def _label(row: dict[str, Any]) -> str:
    release = f" on etcd {row['etcd']}" if "etcd" in row else ""
    return f"{row['contender']} at {row['nodes']:,} nodes{release}"


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return rows by the values of their ``keys``."""
    return {tuple(row[key] for key in keys): row for row in rows}


def etcd_of(result: dict[str, Any]) -> str:
    """Return "etcd" and the version that a result was measured on, or all of them, as far as it is known."""
    return f"etcd {result['metadata']['versions'].get('etcd', '')}".rstrip()
