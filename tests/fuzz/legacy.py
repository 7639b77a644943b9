"""What the legacy protocol reads from etcd: JSON that torch's nodes write too, and what is done with it."""

from __future__ import annotations

import logging
import time
from typing import Any

import etcd

from rendezvous.api import RendezvousError, RendezvousStateError
from rendezvous.legacy import directory as directory_module
from rendezvous.legacy import extra_data, rules
from rendezvous.legacy.directory import Directory
from tests.fuzz.checks import check_message, outcome, refusal
from tests.fuzz.reader import Reader

__all__ = ["check_directory", "check_rules"]

_TEMPLATES: tuple[dict[str, Any], ...] = (
    {"status": "setup"},
    {"status": "joinable", "version": "3", "participants": [0]},
    {"status": "frozen", "version": "3", "participants": [0, 1], "keep_alives": ["/rank_0"]},
    {
        "status": "final",
        "version": "3",
        "participants": [0],
        "keep_alives": ["/run_j/rdzv/v_3/rank_0"],
        "num_workers_waiting": 0,
    },
    {"status": "closed"},
)
_LIMITS = rules.Limits(2, 4)


def _text(data: Reader) -> str | None:
    if data.byte() % 16 == 0:
        return None
    return data.json(data.pick(_TEMPLATES)).decode("utf-8", "replace")


def _decide(state: rules.State | None, version: str, key: str, alive: set[str]) -> list[rules.Decision]:
    return [
        rules.enter(state),
        rules.join(state, version, _LIMITS),
        rules.last_call(state, version, -1.0, False),
        rules.last_call(state, version, 1.0, False),
        rules.last_call(state, version, -1.0, True),
        rules.meet(state, version),
        rules.confirm(state, version, key),
        rules.finish(state, version),
        rules.announce(state, version),
        rules.end(state, version, alive),
        rules.close(state),
    ]


def check_rules(data: Reader) -> None:
    """Read a state, and decide by every rule."""
    text = _text(data)
    state = outcome(lambda: rules.parse(text), RendezvousStateError)
    if refusal(state) is not None:
        return
    version, key = data.pick(("3", "4")), data.pick(("/rank_0", "/run_j/rdzv/v_3/rank_0"))
    for decision in _decide(state, version, key, {key}):
        check_message(decision.reason)
        if decision.state is not None:
            written = rules.dump(decision.state)
            assert rules.dump(rules.parse(written) or {}) == written, "a node writes what others cannot read"
    check_message(rules.progress(state, _LIMITS))
    assert rules.waiting(state, version) >= 0
    assert rules.waiting(state, None) >= 0


class _Client:
    """Answers as python-etcd does, from a dict: what others wrote under the keys of one run."""

    def __init__(self, values: dict[str, str | None]) -> None:
        self._nodes = {key: (value, 5) for key, value in values.items()}
        self._index = 5

    def _result(self, key: str, action: str) -> Any:
        value, index = self._nodes[key]
        node = {"key": key, "createdIndex": index, "modifiedIndex": index}
        node.update({"dir": True, "nodes": []} if value is None else {"value": value})
        result = etcd.EtcdResult(action=action, node=node)
        result.etcd_index = self._index
        return result

    def read(self, key: str, **options: Any) -> Any:
        if key not in self._nodes:
            raise etcd.EtcdKeyNotFound(payload={"index": self._index})
        return self._result(key, "get")

    def write(self, key: str, value: str | None, ttl: int | None = None, **options: Any) -> Any:
        if options.get("prevExist") is False and key in self._nodes:
            raise etcd.EtcdAlreadyExist(payload={})
        if key in self._nodes and self._nodes[key][0] is None:
            raise etcd.EtcdNotFile(payload={})
        if options.get("prevIndex", 0) and self._nodes.get(key, (None, 0))[1] != options["prevIndex"]:
            raise etcd.EtcdCompareFailed(payload={})
        self._index += 1
        self._nodes[key] = (value, self._index)
        return self._result(key, "set")

    def watch(self, key: str, index: int, **options: Any) -> Any:
        raise etcd.EtcdWatchTimedOut


class _Directory(Directory):
    """The directory of a run that exists already. It renews no key."""

    def prepare(self) -> None:
        pass


def check_directory(data: Reader) -> None:
    """Read and change the keys of a run."""
    values = {
        "/p/run_j/rdzv/active_version": _text(data),
        "/p/run_j/rdzv/version_counter": data.text(),
        "/p/run_j/rdzv/v_3/extra_data": data.json({"key": "value"}).decode("utf-8", "replace"),
    }
    directory = _Directory(_Client(values), "/p", "j")
    logging.disable()
    directory_module.time, patched = _Clock(), directory_module.time
    try:
        deadline = time.monotonic() + 1e6
        for rule in (
            lambda: directory.read_state(),
            lambda: directory.peek(0.0),
            lambda: directory.swap_state(lambda state: rules.join(state, "3", _LIMITS), deadline),
            lambda: directory.swap_state(lambda state: rules.confirm(state, "3", "/rank_9"), deadline),
            lambda: directory.swap_state(rules.close, deadline),
            lambda: directory.next_version(deadline),
            lambda: directory.keep_alives("3", deadline),
            lambda: extra_data.load(directory, "3", "key", 0.0),
            lambda: extra_data.store(directory, "3", "other", 7),
        ):
            found = outcome(rule, RendezvousError)
            if isinstance(found, tuple) and found and isinstance(found[0], type):
                check_message(found[1])
                assert "run_j" in found[1] or "'j'" in found[1], f"the message does not say where: {found[1]}"
    finally:
        directory_module.time = patched
        logging.disable(logging.NOTSET)


class _Clock:
    """The clock, without pauses."""

    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        pass
