"""Warnings about nodes that are configured differently, or that speak another version of the protocol.

A run goes by what its coordinator is configured with. So each node compares the settings in the round record with its
own, and the coordinator those in the nodes' records. Each difference is logged once, not once for each node.
"""

from __future__ import annotations

import logging

import msgspec

from rendezvous.coordinated.records import NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.versions import VERSION, RunSettings
from rendezvous.utils import quoted

__all__ = ["Agreement", "published"]

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 100  # differences that are remembered, so that there is one warning for each

_KEYS = tuple(
    (name, f"{name} (--nnodes)" if name.endswith("_nodes") else name) for name in RunSettings.__struct_fields__
)


def published(limits: Limits) -> RunSettings:
    """Return what a node publishes of its configuration."""
    return RunSettings(
        limits.min_nodes,
        limits.max_nodes,
        _short(limits.last_call),
        limits.node_unit,
        limits.upscale,
        "reform" if limits.reform_on_loss else "ignore",
        limits.rank_policy.value,
        _short(limits.rejoin_settle),
    )


def _short(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


class Agreement:
    """Compares the settings of other nodes with those of one node.

    Args:
        run_id: the name of the job, for messages.
        name: the node's name.
        settings: what the node is configured with.
    """

    def __init__(self, run_id: str, name: str, settings: RunSettings) -> None:
        self._run_id = run_id
        self.name = name
        self.settings = settings
        self._warned: set[tuple[str, ...]] = set()

    def sign_node(self, node: NodeRecord) -> NodeRecord:
        """Return this node's record with its settings and its version."""
        return msgspec.structs.replace(node, settings=self.settings, version=VERSION)

    def sign_round(self, record: RoundRecord) -> RoundRecord:
        """Return a round record with the settings, the name and the version of this node, the coordinator."""
        return msgspec.structs.replace(record, settings=self.settings, by=self.name, version=VERSION)

    def check_coordinator(self, record: RoundRecord | None) -> None:
        """Warn if the coordinator that wrote ``record`` is configured differently than this node."""
        if record is None or record.settings is None:
            return
        if record.settings == self.settings or record.by == self.name:
            return
        differences = _differences(self.settings, record.settings)
        if self._is_new("coordinator", differences):
            logger.warning(
                "node %s of the rendezvous '%s' has %s, but the coordinator, node %s, has %s, and the run goes by "
                "that; configure all nodes alike",
                self.name,
                self._run_id,
                _listed(differences, 1),
                quoted(record.by),
                _listed(differences, 2),
            )

    def check_node(self, node: NodeRecord) -> None:
        """Warn, as the coordinator, if ``node`` is configured differently, or speaks a newer version."""
        if node.version > VERSION and self._is_new("version", [("version", str(VERSION), str(node.version))]):
            logger.warning(
                "node %s of the rendezvous '%s' speaks version %d of the protocol; the run goes by version %d, that of "
                "the coordinator, node %s",
                quoted(node.name),
                self._run_id,
                node.version,
                VERSION,
                self.name,
            )
        if node.settings is None or node.settings == self.settings:
            return
        differences = _differences(self.settings, node.settings)
        if self._is_new("node", differences):
            logger.warning(
                "node %s of the rendezvous '%s' has %s, but the run goes by the coordinator, node %s, which has %s; "
                "configure all nodes alike (other nodes with the same values are not reported)",
                quoted(node.name),
                self._run_id,
                _listed(differences, 2),
                self.name,
                _listed(differences, 1),
            )

    def _is_new(self, side: str, differences: list[tuple[str, str, str]]) -> bool:
        """Return whether one of the differences was not logged before."""
        kinds = {(side, key, other) for key, _, other in differences} - self._warned
        if not kinds or len(self._warned) >= _MAX_WARNINGS:
            return False
        self._warned |= kinds
        return True


def _differences(own: RunSettings, other: RunSettings) -> list[tuple[str, str, str]]:
    """Return the keys of the configuration in which two nodes differ, each with both values."""
    values = ((key, getattr(own, name), getattr(other, name)) for name, key in _KEYS)
    return [(key, _text(one), _text(two)) for key, one, two in values if one != two]


def _text(value: object) -> str:
    """Return a value as it is written in a configuration."""
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else f"{value:g}"


def _listed(differences: list[tuple[str, str, str]], side: int) -> str:
    return ", ".join(f"{difference[0]}={difference[side]}" for difference in differences)
