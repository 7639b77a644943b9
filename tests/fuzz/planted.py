"""Faults made on purpose, which the fuzzer must find: in the pure twins, so that no compiler is needed."""

from __future__ import annotations

from collections.abc import Callable

from rendezvous._core import _nodes_py, _roster_py, _state_bytes_py
from rendezvous.coordinated import decoding
from rendezvous.legacy import rules

__all__ = ["FAULTS", "Fault"]

Fault = Callable[[], Callable[[], None]]
"""Puts a fault into the package, and returns what takes it out again."""


def _replace(owner: object, name: str, value: object) -> Callable[[], None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _rank_off_by_one() -> Callable[[], None]:
    """A rank that equals the world size is accepted."""
    decoder = _state_bytes_py._Decoder
    real = decoder._rank

    def rank(self: _state_bytes_py._Decoder, explicit: bool, role: int) -> int:
        self._round.world_size += 1
        try:
            return real(self, explicit, role)
        finally:
            self._round.world_size -= 1

    return _replace(decoder, "_rank", rank)


def _longer_addresses() -> Callable[[], None]:
    """One twin accepts addresses of 256 bytes."""
    undo = _replace(_nodes_py, "MAX_ADDR", 256), _replace(_state_bytes_py, "MAX_ADDR", 256)
    return lambda: [each() for each in undo] and None


def _node_in_another_shard() -> Callable[[], None]:
    """One twin does not check that a node belongs into its shard."""
    real = _roster_py._Shard.nodes

    def nodes(self: _roster_py._Shard):  # type: ignore[no-untyped-def]
        number, self.number = self.number, _Any()
        try:
            yield from real(self)
        finally:
            self.number = number

    return _replace(_roster_py._Shard, "nodes", nodes)


class _Any(int):
    def __ne__(self, other: object) -> bool:
        return False


def _raw_error() -> Callable[[], None]:
    """An error of the JSON library comes out of a decoder."""
    return _replace(decoding, "problem_of", lambda exc: (_ for _ in ()).throw(exc))


def _any_version() -> Callable[[], None]:
    """The legacy protocol takes any text for the number of a round."""
    return _replace(rules, "is_version", lambda text: True)


FAULTS: dict[str, tuple[str, Fault]] = {
    "rank off by one": ("state", _rank_off_by_one),
    "longer addresses": ("state", _longer_addresses),
    "node in another shard": ("roster", _node_in_another_shard),
    "raw error": ("records", _raw_error),
    "any version": ("legacy", _any_version),
}
"""The faults by name, each with the target that must find it."""
