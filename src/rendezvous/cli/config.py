"""``rendezvous config``: the configuration keys."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rendezvous.config import Backend, Choice, Integer, Setting, settings_of

__all__ = ["HELP", "NAME", "add_arguments", "run"]

NAME = "config"
HELP = "Print the configuration keys (of --rdzv-conf, or RendezvousParameters) with their defaults and meanings."

_BACKENDS = {
    "etcd-v3": (Backend.COORDINATED,),
    "etcd-v2": (Backend.DYNAMIC_V2, Backend.DYNAMIC_V3),
    "etcd": (Backend.LEGACY,),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``rendezvous config``."""
    parser.add_argument("--backend", choices=_BACKENDS, help="only the keys of this backend (default: all keys)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Print the settings."""
    settings = settings_of(*(_BACKENDS[options.backend] if options.backend else Backend))
    if options.json:
        print(json.dumps([_as_dict(setting) for setting in settings], indent=2))
    else:
        _print_table(settings)
    return 0


def _as_dict(setting: Setting[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": setting.name,
        "type": setting.type,
        "unit": setting.unit or None,
        "default": setting.default_text if isinstance(setting.default, str) else setting.default,
        "backends": setting.backend_names,
        "help": setting.help.replace("`", ""),
    }
    if isinstance(setting, Integer):
        values.update(least=setting.least, most=setting.most)
    if isinstance(setting, Choice):
        values.update(choices=setting.choices)
    return values


def _print_table(settings: list[Setting[Any]]) -> None:
    """Print one table, with a section for each set of backends."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sections: dict[str, list[Setting[Any]]] = {}
    for setting in settings:
        sections.setdefault(", ".join(setting.backend_names), []).append(setting)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("key", no_wrap=True)
    table.add_column("default", max_width=17)
    table.add_column("meaning")
    for backends, section in sections.items():
        table.add_section()
        table.add_row("", "", Text(f"For {backends}:", style="bold"))
        for setting in section:
            text = f"{setting.help} ({setting.type_text})".replace("`", "")
            table.add_row(setting.name, Text(setting.default_text.replace("`", "")), Text(text))
    Console().print(table)
