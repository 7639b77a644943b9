"""Tables of results, for the terminal and as Markdown."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["MISSING", "Table"]

MISSING = "-"
"""The text of a cell without a value."""

# The width of a table that is written to a file, a pipe or a log, in characters.
_WIDTH = 160


@dataclass(frozen=True)
class Table:
    """A table with a caption, and remarks that follow it."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    remarks: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = ["| " + " | ".join(self.heads) + " |", "|" + " ---: |" * len(self.heads)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n\n".join([self.caption, "\n".join(lines), *self.remarks])

    def show(self) -> None:
        """Print the table: as wide as the terminal, as the variable COLUMNS says, or 160 characters wide."""
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
