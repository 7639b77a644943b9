"""The compiled modules of the core and their pure-Python twins. This module chooses which are used.

A compiled module is used if it was built, and its twin otherwise. A compiled module that exists but cannot be loaded
raises ImportError. With ``RENDEZVOUS_NO_EXTENSIONS=1`` in the environment, the twins are used.
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
    """The role of a node in a state; ``_state_py`` describes each."""

    PARTICIPANT = 0
    WAITING = 1
    REDUNDANT = 2
    MISSING = 3


def _pick(name: str) -> ModuleType:
    """Import the compiled module ``name`` if it was built and is not switched off, else its twin."""
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
"""Whether all compiled modules are used."""
