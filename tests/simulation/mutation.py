"""What a mutant is, and how many seeds it takes to notice one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rendezvous.etcd.v3.operations import absent
from tests.simulation.run import first_violation

__all__ = ["MUTANTS", "Mutant", "Patch", "always", "mutant", "seeds_until_noticed"]

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """One deliberate fault.

    Attributes:
        name: the name.
        breaks: what the fault breaks.
        invariant: the invariant that must notice it.
        apply: puts the fault into the package.
        seeds: within how many seeds it must be noticed.
    """

    name: str
    breaks: str
    invariant: str
    apply: Callable[[Patch], None]
    seeds: int


MUTANTS: list[Mutant] = []
"""All mutants of :mod:`tests.simulation.mutants`."""


def mutant(invariant: str, seeds: int = 300) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Return a decorator that adds a mutant: the function applies it, and its docstring says what it breaks."""

    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        assert apply.__doc__ is not None
        name = apply.__name__.strip("_").replace("_", " ")
        MUTANTS.append(Mutant(name, apply.__doc__, invariant, apply, seeds))
        return apply

    return register


def always(key: bytes, *target: Any) -> Any:
    """Return a condition that always holds."""
    return absent(key + b"/nothing")


def seeds_until_noticed(mutation: Mutant) -> int | None:
    """Return how many seeds it took to notice a mutant; None if ``mutation.seeds`` were not enough."""
    with pytest.MonkeyPatch.context() as patch:
        mutation.apply(patch)
        seed = first_violation(range(mutation.seeds), mutation.invariant)
    return None if seed is None else seed + 1
