"""The targets. A target has one or more checks; the first byte of an input chooses one."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import core, legacy, records, runs, texts
from tests.fuzz.reader import Reader

__all__ = ["TARGETS", "run"]

Check = Callable[[Reader], None]

TARGETS: dict[str, tuple[Check, ...]] = {
    "state": (core.check_state, core.check_swap),
    "roster": (core.check_roster,),
    "records": (records.check_record, records.check_view, records.check_nodes),
    "run": (runs.check_run,),
    "legacy": (legacy.check_rules, legacy.check_directory),
    "texts": (texts.check_store, texts.check_keys, texts.check_endpoints, texts.check_config, texts.check_errors),
}


def run(target: str, data: bytes) -> None:
    """Run one input of a target."""
    reader, checks = Reader(data), TARGETS[target]
    reader.pick(checks)(reader)
