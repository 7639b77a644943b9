"""Every decision about a round of the legacy rendezvous: pure functions of the state that all nodes share.

The state is one JSON object under ``rdzv/active_version``. A rule takes it (None: no state exists) and returns what
the node does next, the reason, and what it writes; nothing else changes the state. The fields, keys and times to live
are those of torch's ``EtcdRendezvous``, whose nodes can share the state with these. The status is one of:

    setup      A node is creating a round: its number and its directory. etcd deletes the state after 5 s, in case that
               node dies.
    joinable   Nodes join: ``participants`` holds their ranks in order of arrival. With ``min_nodes`` of them the last
               call starts. The node that was the last of these ends it, and until then renews the state, which etcd
               otherwise deletes after 10 s.
    frozen     The last call is over, or ``max_nodes`` have joined. Each participant adds the key of its keep-alive to
               ``keep_alives``. etcd deletes the state 10 s after the last of these writes.
    final      All participants have done so: the round is complete. A node that arrives now increments
               ``num_workers_waiting`` and is on standby until the state changes; it deletes the state once a keep-alive
               has expired.
    closed     No node joins any more. This status never changes.

A participant that wants the next round stops its keep-alive and is on standby too. When the keep-alive has expired, a
node on standby ends the round. The other participants therefore have 5 to 10 s to see that a node is waiting.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from rendezvous.api import RendezvousStateError
from rendezvous.utils import quoted

__all__ = [
    "EPHEMERAL_TTL",
    "FROZEN_TTL",
    "KEEP_ALIVE_TTL",
    "RUN_TTL",
    "SETUP",
    "SETUP_TTL",
    "Action",
    "Decision",
    "Limits",
    "State",
    "announce",
    "close",
    "confirm",
    "dump",
    "end",
    "enter",
    "finish",
    "is_version",
    "join",
    "joinable",
    "keeps_alive",
    "last_call",
    "meet",
    "parse",
    "progress",
    "waiting",
]

State = dict[str, Any]

# Seconds, all of them torch's.
SETUP_TTL = 5
EPHEMERAL_TTL = 10
FROZEN_TTL = 10
KEEP_ALIVE_TTL = 10
RUN_TTL = 7200

_MAX_VERSION_DIGITS = 19
_MAX_WAITING = 2**31 - 1
_ROUNDS = ("joinable", "frozen", "final")  # the statuses of a round

SETUP: State = {"status": "setup"}

# The fields that the rules read, by status. None for ``closed``, which keeps the fields of the status before it.
_FIELDS: dict[str, dict[str, type]] = {
    "setup": {},
    "joinable": {"version": str, "participants": list},
    "frozen": {"version": str, "participants": list, "keep_alives": list},
    "final": {"version": str, "participants": list, "keep_alives": list, "num_workers_waiting": int},
    "closed": {},
}


@dataclass(frozen=True)
class Limits:
    """The smallest and the greatest number of nodes in a round."""

    min_nodes: int
    max_nodes: int


class Action(Enum):
    """What a node does next."""

    FINISH = auto()
    """Nothing: the step is complete."""
    WRITE = auto()
    """Replace the state."""
    WAIT = auto()
    """Wait until the state changes."""
    CREATE = auto()
    """Create a round."""
    JOIN = auto()
    """Join the round."""
    STAND_BY = auto()
    """Wait until the round ends."""
    DESTROY = auto()
    """Delete the state, which ends the round."""
    RETRY = auto()
    """Start again after a pause."""
    RETRY_IMMEDIATELY = auto()
    """Start again without a pause."""
    ERROR_CLOSED = auto()
    """Give up: the rendezvous is closed."""


@dataclass(frozen=True)
class Decision:
    """An action and its reason; for WRITE, also the new state and the seconds until etcd deletes it (None: never)."""

    action: Action
    reason: str
    state: State | None = None
    ttl: int | None = None


# The state as text.


def parse(text: str | None) -> State | None:
    """Return the state that is encoded in ``text``; None for None.

    Raises:
        RendezvousStateError: it is not a state of this protocol.
    """
    if text is None:
        return None
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        raise RendezvousStateError(f"the state is not JSON: {quoted(text)}") from None
    fields = _FIELDS.get(str(state.get("status"))) if isinstance(state, dict) else None
    if fields is None:
        raise RendezvousStateError(f"the state has no status of this protocol: {quoted(text)}")
    for name, kind in fields.items():
        if not isinstance(state.get(name), kind):
            raise RendezvousStateError(
                f"the field '{name}' of the {state['status']} state must be of type {kind.__name__}, "
                f"not {type(state.get(name)).__name__}"
            )
    _check_elements(state)
    if not is_version(str(state.get("version", "0"))):
        raise RendezvousStateError(
            f"the version of the state must be a decimal number, not {quoted(str(state['version']))}"
        )
    return dict(state)


def _check_elements(state: State) -> None:
    """Check what is in the fields that the rules read. Raises RendezvousStateError."""
    for name, kind in (("participants", int), ("keep_alives", str)) if state["status"] in _ROUNDS else ():
        for element in state.get(name, ()):
            if type(element) is not kind:
                raise RendezvousStateError(
                    f"the field '{name}' of the {state['status']} state must contain values of type {kind.__name__}, "
                    f"not {type(element).__name__}"
                )
    if state["status"] == "final" and not 0 <= state["num_workers_waiting"] <= _MAX_WAITING:
        raise RendezvousStateError(
            f"the field 'num_workers_waiting' of the final state must be from 0 to {_MAX_WAITING}, not "
            f"{quoted(str(state['num_workers_waiting']))}"
        )


def is_version(text: str) -> bool:
    """Return whether ``text`` is the number of a round."""
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_VERSION_DIGITS


def dump(state: State) -> str:
    """Return ``state`` as JSON."""
    return json.dumps(state)


# What a node decides.


def joinable(version: str) -> State:
    """Return the state of a new round."""
    return {"status": "joinable", "version": version, "participants": []}


def enter(state: State | None) -> Decision:
    """Decide the first step of a node that wants to join."""
    if state is None:
        return Decision(Action.CREATE, "no round exists")
    if state["status"] == "closed":
        return _closed()
    if state["status"] == "joinable":
        return Decision(Action.JOIN, f"round {state['version']} is joinable")
    if state["status"] == "final":
        return Decision(Action.STAND_BY, f"round {state['version']} is complete")
    return Decision(Action.WAIT, f"the status is {state['status']}, which lasts a few seconds at most")


def join(state: State | None, version: str, limits: Limits) -> Decision:
    """Take the next rank; the last node freezes the round."""
    unexpected = _unexpected(state, version, "joinable")
    if state is None or unexpected is not None:
        return unexpected or _gone(version)
    participants = state["participants"]
    rank = len(participants)
    if rank >= limits.max_nodes:
        # Only if the nodes have different settings for max_nodes.
        return Decision(Action.RETRY, f"round {version} is full: {rank} of at most {limits.max_nodes} nodes joined")
    state = {**state, "participants": [*participants, rank]}
    if rank + 1 == limits.max_nodes:
        return Decision(Action.WRITE, f"rank {rank} joins as the last node", _frozen(state), FROZEN_TTL)
    if rank + 1 >= limits.min_nodes:
        return Decision(Action.WRITE, f"rank {rank} joins in the last call", state, EPHEMERAL_TTL)
    return Decision(Action.WRITE, f"rank {rank} joins", state)


def last_call(state: State | None, version: str, late: float, refresh: bool) -> Decision:
    """Wait until the last call is over, then freeze the round.

    Args:
        state: the state.
        version: the round.
        late: seconds since the end of the last call; negative until then.
        refresh: whether the state must be written again, so that it does not expire.
    """
    if state is not None and (state["status"], state.get("version")) == ("frozen", version):
        return Decision(Action.FINISH, f"round {version} is frozen")
    unexpected = _unexpected(state, version, "joinable")
    if state is None or unexpected is not None:
        return unexpected or _gone(version)
    if late >= 0:
        return Decision(Action.WRITE, "the last call is over", _frozen(state), FROZEN_TTL)
    if refresh:
        return Decision(Action.WRITE, "the last call continues", state, EPHEMERAL_TTL)
    return Decision(Action.WAIT, "the last call is not over")


def meet(state: State | None, version: str) -> Decision:
    """Wait, as a participant, until the round is frozen."""
    if state is not None and (state["status"], state.get("version")) == ("joinable", version):
        return Decision(Action.WAIT, f"round {version} is still joinable")
    return _unexpected(state, version, "frozen") or Decision(Action.FINISH, f"round {version} is frozen")


def confirm(state: State | None, version: str, key: str) -> Decision:
    """Add the key of this node's keep-alive; the last participant to do so completes the round."""
    if state is not None and keeps_alive(state, key):
        return Decision(Action.FINISH, "this node has confirmed")  # by an earlier attempt whose response was lost
    unexpected = _unexpected(state, version, "frozen")
    if state is None or unexpected is not None:
        return unexpected or _gone(version)
    state = {**state, "keep_alives": [*state["keep_alives"], key]}
    if len(state["keep_alives"]) < len(state["participants"]):
        return Decision(Action.WRITE, "other nodes have not confirmed yet", state, FROZEN_TTL)
    return Decision(Action.WRITE, "all nodes have confirmed", {**state, "status": "final", "num_workers_waiting": 0})


def finish(state: State | None, version: str) -> Decision:
    """Wait, as a participant that has confirmed, until the round is complete."""
    if state is not None and (state["status"], state.get("version")) == ("frozen", version):
        return Decision(Action.WAIT, f"other nodes have not confirmed round {version} yet")
    return _unexpected(state, version, "final") or Decision(Action.FINISH, f"round {version} is complete")


def announce(state: State | None, version: str) -> Decision:
    """Count this node among those that wait for the next round."""
    unexpected = _unexpected(state, version, "final")
    if state is None or unexpected is not None:
        return unexpected or _gone(version)
    count = state["num_workers_waiting"] + 1
    return Decision(
        Action.WRITE, f"nodes that wait for the round after {version}: {count}", {**state, "num_workers_waiting": count}
    )


def end(state: State | None, version: str, alive: Collection[str]) -> Decision:
    """Wait on standby until the round ends; end it if a keep-alive has expired.

    Args:
        state: the state.
        version: the round.
        alive: the keys of the keep-alives that exist.
    """
    if state is None or (state["status"], state.get("version")) != ("final", version):
        return Decision(Action.FINISH, f"round {version} is over")
    dead = [key for key in state["keep_alives"] if key not in alive]
    if dead:
        return Decision(Action.DESTROY, f"round {version} lost {', '.join(key.split('/')[-1] for key in dead)}")
    return Decision(Action.WAIT, f"all nodes of round {version} are alive")


def close(state: State | None) -> Decision:
    """Close the rendezvous, even before its first round."""
    if state is not None and state["status"] == "closed":
        return Decision(Action.FINISH, "the rendezvous is closed")
    return Decision(Action.WRITE, "this node closes the rendezvous", {**(state or {}), "status": "closed"})


# Questions about a state.


def keeps_alive(state: State | None, key: str) -> bool:
    """Return whether ``key`` is the keep-alive of a participant of the current round."""
    return state is not None and state["status"] in ("frozen", "final") and key in state["keep_alives"]


def waiting(state: State | None, version: str | None) -> int:
    """Return how many nodes wait for the round after ``version``, the round of this node (None: no round).

    If that round is over, the participants of the next one wait for this node and are counted. torch counts 0 while
    the next round forms, so that a node that did not ask in time never learns that it must join again.
    """
    if state is None or state["status"] in ("setup", "closed"):
        return 0
    count: int = state["num_workers_waiting"] if state["status"] == "final" else 0
    if version is None or state["version"] == version:
        return count
    return max(count, len(state["participants"]))


def progress(state: State | None, limits: Limits) -> str:
    """Describe how far the round is and what is missing."""
    if state is None:
        return "no round exists"
    if state["status"] in ("setup", "closed"):
        return f"the status is {state['status']}"
    version, came = state["version"], len(state["participants"])
    if state["status"] == "joinable":
        least, most = limits.min_nodes, limits.max_nodes
        needed = f"{least}" if least == most else f"at least {least}"
        return f"{came} of {needed} nodes joined round {version}"
    confirmed = len(state["keep_alives"])
    if state["status"] == "frozen":
        return f"{confirmed} of {came} nodes confirmed round {version}"
    return (
        f"round {version} is complete with a world size of {came}; nodes that wait for the next round: "
        f"{state['num_workers_waiting']}"
    )


# Shared by several rules.


def _closed() -> Decision:
    return Decision(Action.ERROR_CLOSED, "the rendezvous is closed")


def _gone(version: str) -> Decision:
    return Decision(Action.RETRY_IMMEDIATELY, f"round {version} no longer exists")


def _unexpected(state: State | None, version: str, status: str) -> Decision | None:
    """Return what to do if the state is not round ``version`` in ``status``; None if it is."""
    if state is None:
        return _gone(version)
    if state["status"] == "closed":
        return _closed()
    found = state.get("version")
    if found not in (None, version):
        return Decision(Action.RETRY_IMMEDIATELY, f"round {version} is over, round {found} is {state['status']}")
    if state["status"] != status:
        return Decision(Action.RETRY, f"round {version} is {state['status']} and no longer {status}")
    return None


def _frozen(state: State) -> State:
    return {**state, "status": "frozen", "keep_alives": []}
