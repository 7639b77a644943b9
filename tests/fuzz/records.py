"""The records of the coordinated protocol, and what a node and a coordinator do with them."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import msgspec

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated import candidates, rules
from rendezvous.coordinated.agreement import Agreement, published
from rendezvous.coordinated.nodes import NodeWatch
from rendezvous.coordinated.records import Bootstrap, Closed, CoordinatorRecord, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import LastCall
from rendezvous.coordinated.table import Table
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.operations import DELETE, PUT, Event, KeyValue
from tests.fuzz.checks import check_message, outcome, refusal
from tests.fuzz.reader import Reader

__all__ = ["KEYS", "check_nodes", "check_record", "check_view", "planted"]

KEYS = Keys("/p", "run")
_ID = "0123456789abcdef"
_SETTINGS = published(rules.Limits(2, 3))
_SIGNED = {"settings": msgspec.to_builtins(_SETTINGS), "version": 1}
_COMPLETE = {"phase": "complete", "attempt": _ID, "first": _ID, "world_size": 2, "shards": 1}

_KINDS: tuple[tuple[bytes, Any, tuple[dict[str, Any], ...]], ...] = (
    (KEYS.coordinator, CoordinatorRecord, ({"node": _ID, "nonce": _ID},)),
    (
        KEYS.round,
        RoundRecord,
        (
            {"round": 0, "phase": "forming", "joined": 1, "min_nodes": 2, "max_nodes": 3, "by": "a_1_0", **_SIGNED},
            {"round": 1, "phase": "last call", "joined": 2, "min_nodes": 2, "max_nodes": 3, "previous": _ID},
            {"round": 0, **_COMPLETE},
            {"round": 0, **_COMPLETE, "roster": "UlIBAgEAAgEA", "waiting": 1, "spares": 1, "lost": 1},
            {"round": 2, **_COMPLETE, "headless": True, "missing": ["a_1_0"], "missing_count": 1, "error": "x"},
        ),
    ),
    (KEYS.bootstrap, Bootstrap, ({"round": 0, "attempt": _ID, "node": _ID, "addr": "host", "port": 29500},)),
    (KEYS.closed, Closed, ({"reason": "done", "by": "a_1_0"},)),
    (
        KEYS.node(int(_ID, 16)),
        NodeRecord,
        (
            {"addr": "node-1", "pid": 1, "local": 0, **_SIGNED},
            {"addr": "node-1", "pid": 1, "local": 0, "last": 1, "rank": 0, "topology": "a/1", "hint": 3},
        ),
    ),
)


def planted(data: Reader) -> tuple[bytes, Any, bytes]:
    """Return a key, the class of its record, and what somebody wrote there."""
    key, kind, templates = data.pick(_KINDS)
    return key, kind, data.json(data.pick(templates))


def check_record(data: Reader) -> None:
    """Decode a record, and encode it again."""
    key, kind, value = planted(data)
    record = outcome(lambda: kind.decode(key, value), RendezvousStateError)
    problem = refusal(record)
    if problem is not None:
        assert key.decode() in problem
        return
    assert kind.decode(key, record.encode()) == record, "a record does not come back from its bytes"
    kv = KeyValue(key=key, value=value, lease=abs(data.number()) % 2**63)
    if kind is CoordinatorRecord:
        refusal(outcome(lambda: CoordinatorRecord.check(kv), RendezvousStateError))
    if kind is NodeRecord:
        check_message(record.name)
        record.check()


def _events(data: Reader, keys: list[bytes]) -> list[Event]:
    events = []
    for revision in range(1, data.byte() % 6 + 2):
        key, _, value = planted(data)
        if not key.startswith(KEYS.ctl):
            key = data.pick(keys)
        kind = data.byte()
        lease = data.pick((0, int(_ID, 16), 7, 2**63 - 1))
        kv = KeyValue(key=key, mod_revision=revision)
        if kind >= 32:
            kv = KeyValue(key=key, value=value, lease=lease, create_revision=revision, mod_revision=revision, version=1)
        events.append(Event(type=PUT if kind >= 32 else DELETE, kv=kv))
    return events


def _known(view: View) -> tuple[Any, ...]:
    return (
        view.record,
        view.coordinator,
        view.bootstrap,
        view.closed,
        sorted(map(str, view._errors.values())),
        view.bootstrap_revision,
    )


def check_view(data: Reader) -> None:
    """Give a node events, and let it decide what to do."""
    logging.disable()
    try:
        events = _events(data, [KEYS.round, KEYS.coordinator, KEYS.ctl + b"other"])
        view, other = View(KEYS, lambda: None), View(KEYS, lambda: None)
        for event in events:
            view.receive([event])
            _follow(view)
        order = sorted(range(len(events)), key=lambda index: data.byte())
        other.receive(events[index] for index in order)
        assert _known(view) == _known(other), "the order in which events arrive makes a difference"
        last = {event.kv.key: event for event in events}
        found = [event.kv for event in last.values() if event.type == PUT]
        other = View(KEYS, lambda: None)
        other.read(found, len(events), other.known())
        assert _known(view) == _known(other), "a read and a watch do not give the same"
    finally:
        logging.disable(logging.NOTSET)


def _follow(view: View) -> None:
    assert view.error is None or view.error.args
    if view.error is not None:
        check_message(str(view.error))
    assert view.record_lost >= 0
    assert view.coordinator_revision >= 0
    choices = ((-1, 0, 10**10), (-1, 0), (False, True), (False, True), (False, True))
    for looked_up, last, stands_by, closed, late in itertools.product(*choices):
        step, reason = rules.follow(view.record, looked_up, last, stands_by, closed, late)
        check_message(reason)
        if step is rules.Step.LOOK_UP:
            assert view.record is not None
            assert view.record.shards > 0
            assert view.record.attempt
    rules.has_place(view.record, _ID)
    check_message(rules.progress(view.record, 2))
    check_message(rules.closed_message("run", view.closed))


def check_nodes(data: Reader) -> None:
    """Give a coordinator events about nodes, and let it count, decide and choose."""
    logging.disable()
    try:
        _coordinate(data)
    finally:
        logging.disable(logging.NOTSET)


def _coordinate(data: Reader) -> None:
    table, changes = Table(), [0]

    def notice() -> None:
        changes[0] += 1

    agreement = Agreement("run", "node-1_1_0", _SETTINGS)
    watch = NodeWatch(None, KEYS, table, agreement, notice)  # type: ignore[arg-type]
    unit = data.byte() % 3 + 1
    limits = rules.Limits(
        *(unit, unit * (data.byte() % 4 + 1), 1.0, unit, data.flag(), data.flag()),
        data.pick(tuple(rules.RankPolicy)),
    )
    members = {number: f"m_{number}" for number in range(1, data.byte() % 4)}
    table.complete(data.byte() % 3, members)
    templates = _KINDS[4][2]
    for revision in range(1, data.byte() % 12 + 2):
        number = data.byte() % 6
        name = b"%016x" % number if data.byte() % 8 else data.data()
        lease = number if data.byte() % 8 else data.byte()
        kv = KeyValue(key=KEYS.nodes + name, mod_revision=revision)
        if data.byte() % 4:
            kv.value, kv.lease, kv.create_revision = data.json(data.pick(templates)), lease, revision
            watch._receive([Event(type=PUT, kv=kv)])
        else:
            watch._receive([Event(type=DELETE, kv=kv)])
        _check_table(table, members, limits)


def _check_table(table: Table, members: dict[int, str], limits: rules.Limits) -> None:
    """Compare the table with a slow count, and decide as a coordinator does."""
    nodes = table.nodes
    present = sum(node.record.last_round < table.number for number, node in nodes.items() if number in members)
    returned = sum(node.record.last_round >= table.number for number, node in nodes.items() if number in members)
    lost = sum(number not in nodes for number in members)
    newcomers = len(nodes) - present - returned
    counts = table.counts(False)
    assert counts == (True, present, returned, lost, newcomers, False), counts
    assert table.lost() == [name for number, name in members.items() if number not in nodes]
    assert table.highest >= max((node.record.last_round for node in nodes.values()), default=-1)
    for last_call in (None, LastCall(0, 0), LastCall(30, 30)):
        check_message(rules.coordinate(counts, limits, last_call).reason)
    assert rules.waiting(counts, limits) >= 0
    assert rules.spares(counts, limits) >= 0
    chosen = candidates.choose(nodes.values(), table.number, limits)
    assert len(chosen) == rules.usable(len(nodes), limits)
    assert len({node.node_id for node in chosen}) == len(chosen)
    table.rank_0_gone()
    missing = table.still_missing(list(members.values()))
    assert set(missing) <= set(members.values())
    for node in nodes.values():
        check_message(node.record.name)
