"""The compiled core and its pure twins; this module picks one.

Only *never built* falls back to the twin: an extension that is there and does not load raises. The environment
variable ``RENDEZVOUS_NO_EXTENSIONS=1`` picks the twins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from enum import IntEnum
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["COMPILED", "Backoff", "Role", "Roster", "State", "compare_and_swap"]


class Role(IntEnum):
    """What a node is to the round; ``_state_py`` says what each means."""

    PARTICIPANT = 0
    WAITING = 1
    REDUNDANT = 2
    MISSING = 3


def _pick(name: str) -> ModuleType:
    """Import the compiled module of ``name`` if it was built and is wanted, else its twin."""
    compiled = f"{__name__}._{name}_c"
    wanted = os.environ.get("RENDEZVOUS_NO_EXTENSIONS") != "1"
    if wanted and importlib.util.find_spec(compiled) is not None:
        return importlib.import_module(compiled)
    return importlib.import_module(f"{__name__}._{name}_py")


if TYPE_CHECKING:
    from rendezvous._core import _roster_py as _roster
    from rendezvous._core import _state_py as _state
    from rendezvous._core import _swap_py as _swap
else:
    _roster, _state, _swap = _pick("roster"), _pick("state"), _pick("swap")

Roster = _roster.Roster
State = _state.State
Backoff = _swap.Backoff
compare_and_swap = _swap.compare_and_swap

COMPILED = all(module.__name__.endswith("_c") for module in (_roster, _state, _swap))
"""Whether all compiled modules are in use."""
