"""Tables of results: on the screen, and in the README."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MISSING = "-"

# How wide a table is that goes to a file, a pipe or a log, in characters.
_WIDTH = 160


@dataclass(frozen=True)
class Table:
    """A table, its caption, and remarks that go below it."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    remarks: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = ["| " + " | ".join(self.heads) + " |", "|" + " ---: |" * len(self.heads)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n\n".join([self.caption, "\n".join(lines), *self.remarks])

    def show(self) -> None:
        """Print it, as wide as the terminal, or as COLUMNS in the environment says, or else wide enough for most."""
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(title=Text(self.caption, style="table.title"))
        for head in self.heads:
            grid.add_column(Text(head), justify="right", overflow="fold")
        for row in self.rows:
            grid.add_row(*map(Text, row))
        console = Console(markup=False, highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _WIDTH
        console.print(grid)
        for remark in self.remarks:
            console.print(remark)


def seconds(row: dict[str, Any] | None) -> str:
    """Return the time of a result, or "failed"."""
    if row is None or not row.keys() & {"seconds", "failed"}:
        return MISSING
    if "failed" in row:
        return "failed"
    value = row["seconds"]
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def remarks(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return what is to be said of results that are absent, wholly or in part.

    A row has ``failed`` or ``obstacle``, the reason why it was tried in vain or could not be tried; or ``failed_at``,
    the number of nodes at which its contender had failed before; or, among its ``runs``, reasons why these failed.
    """
    failed, partly, obstacles, more = [], [], {}, ""
    for row in rows:
        runs = row.get("runs", ())
        lost = sum(isinstance(run, str) for run in runs)
        if "failed" in row:
            often = f", in each of {len(runs)} tries" if len(runs) > 1 and lost == len(runs) else ""
            failed.append(f"{_where(row)}: {row['failed'].split(';')[0].rstrip('.')}{often}")
        elif lost:
            partly.append(f"{lost} of {len(runs)} of {_where(row)}")
        if "failed_at" in row:
            more = " What failed was not asked for more nodes."
        if "obstacle" in row:
            obstacles[row["contender"]] = row["obstacle"]
    return (
        *((f"Failed: {'; '.join(failed)}.{more}",) if failed else ()),
        *((f"Not done in time, and not counted: {'; '.join(partly)}.",) if partly else ()),
        *((f"Not tried: {'; '.join(f'{name}: {why}' for name, why in obstacles.items())}.",) if obstacles else ()),
    )


def _where(row: dict[str, Any]) -> str:
    return f"{row['contender']} at {row['nodes']:,} nodes"


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return rows by the values that they have under ``keys``."""
    return {tuple(row[key] for key in keys): row for row in rows}
