"""Write the table of configuration keys into docs/configuration.md: ``python tools/settings.py``.

With ``--check`` nothing is written, and the exit code is 1 if the table is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rendezvous.config import SETTINGS

PAGE = Path(__file__).parents[1] / "docs/configuration.md"

START = "<!-- settings: made by `make settings` from src/rendezvous/config -->"
END = "<!-- end of settings -->"


def table() -> str:
    """Return the table in Markdown."""
    rows = ["| key | value | default | backends | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in SETTINGS:
        default = setting.default_text if setting.default_help else f"`{setting.default_text}`"
        cells = (
            f"`{setting.name}`",
            setting.type_text,
            default if setting.default_text else "",
            ", ".join(map(_backend, setting.backend_names)),
            setting.help,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _backend(name: str) -> str:
    backend, _, api = name.partition(" ")
    return f"`{backend}` {api}".rstrip()


def with_table(text: str) -> str:
    """Return the text of the page with the table between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        sys.exit(f"{PAGE} has no lines '{START}' and '{END}'")
    return f"{before}{start}\n\n{table()}\n\n{end}{after}"


def main() -> None:
    """Write the table, or check it."""
    text = PAGE.read_text()
    updated = with_table(text)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(updated)
    elif updated != text:
        sys.exit("The table of configuration keys in docs/configuration.md is not up to date: run `make settings`.")


if __name__ == "__main__":
    main()
