"""The compiled core and its pure twins; this module picks one.

Only *never built* falls back to the twin: an extension that is there and does not load raises. The environment
variable ``RENDEZVOUS_NO_EXTENSIONS=1`` picks the twins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from enum import IntEnum
from typing import TYPE_CHECKING

__all__ = ["COMPILED", "Backoff", "Role", "State", "compare_and_swap"]


class Role(IntEnum):
    """What a node is to the round; ``_state_py`` says what each means."""

    PARTICIPANT = 0
    WAITING = 1
    REDUNDANT = 2
    MISSING = 3


def _use_extensions() -> bool:
    if os.environ.get("RENDEZVOUS_NO_EXTENSIONS") == "1":
        return False
    return any(importlib.util.find_spec(f"{__name__}.{name}") for name in ("_state_c", "_swap_c"))


COMPILED = _use_extensions()
"""Whether the compiled twins are in use."""

if TYPE_CHECKING:
    from rendezvous._core._state_py import State
    from rendezvous._core._swap_py import Backoff, compare_and_swap
else:
    _suffix = "c" if COMPILED else "py"
    State = importlib.import_module(f"{__name__}._state_{_suffix}").State
    _swap = importlib.import_module(f"{__name__}._swap_{_suffix}")
    Backoff, compare_and_swap = _swap.Backoff, _swap.compare_and_swap
