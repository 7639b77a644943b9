"""Tables of results: on the screen, and in the README."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MISSING = "-"


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
        """Print it."""
        from rich.console import Console
        from rich.table import Table as Grid

        grid = Grid(title=self.caption)
        for head in self.heads:
            grid.add_column(head, justify="right")
        for row in self.rows:
            grid.add_row(*row)
        console = Console()
        console.print(grid)
        for remark in self.remarks:
            console.print(remark)


def seconds(row: dict[str, Any] | None) -> str:
    """Return the time of a result, or why there is none."""
    if row is None:
        return MISSING
    if "seconds" not in row:
        return "failed" if not row["failed"].startswith("not tried") else MISSING
    value = row["seconds"]
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def failures(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return a remark that says why results are absent, where any are."""
    said = [
        f"{row['contender']} at {row['nodes']:,} nodes: {row['failed'].split(';')[0].rstrip('.')}"
        for row in rows
        if "failed" in row and not row["failed"].startswith("not tried")
    ]
    return (f"Failed: {'; '.join(said)}. What failed was not asked for more nodes.",) if said else ()


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return rows by the values that they have under ``keys``."""
    return {tuple(row[key] for key in keys): row for row in rows}
