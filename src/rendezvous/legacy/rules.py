"""Every decision that moves a round of the legacy rendezvous: pure functions of the state that all nodes share.

The state is one JSON object under ``rdzv/active_version``. A rule looks at it (None: there is none) and says what the
node does next, why, and what it writes; nothing else changes the state. Fields, keys and times to live are those of
torch's ``EtcdRendezvous``, whose nodes share the state with ours:

    setup      A node makes a round: it draws a number and a directory. Gone after 5 s, should the node die.
    joinable   ``version``, and ``participants``, which are ranks in order of arrival. From ``min_nodes`` on it is the
               last call: whoever made it that many waits it out, and keeps the state from going after 10 s.
    frozen     The last call is over, or all ``max_nodes`` came. Each participant adds the key of its keep-alive to
               ``keep_alives``. Gone after 10 s without one.
    final      All have. Who comes now adds itself to ``num_workers_waiting`` and stands by until the state changes,
               or deletes it once a keep-alive is gone.
    closed     Final: nobody joins any more.

A participant that wants the next round stops its keep-alive and stands by, too: when that has run out, a node that
stands by ends the round. So all others have 5 to 10 s to see that somebody waits.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from rendezvous.api import RendezvousStateError

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

SETUP: State = {"status": "setup"}

# What the rules read, by status. ``closed`` keeps the fields of whatever it was before, so it promises none.
_FIELDS: dict[str, dict[str, type]] = {
    "setup": {},
    "joinable": {"version": str, "participants": list},
    "frozen": {"version": str, "participants": list, "keep_alives": list},
    "final": {"version": str, "participants": list, "keep_alives": list, "num_workers_waiting": int},
    "closed": {},
}


@dataclass(frozen=True)
class Limits:
    """How many nodes a round has."""

    min_nodes: int
    max_nodes: int


class Action(Enum):
    """What a node does next."""

    DONE = auto()
    """What the node wanted is so."""
    WRITE = auto()
    """Replace the state."""
    WAIT = auto()
    """Wait for the state to change."""
    CREATE = auto()
    """Make a round."""
    JOIN = auto()
    """Join the round."""
    STAND_BY = auto()
    """Wait for the round to end."""
    DESTROY = auto()
    """Delete the state."""
    RETRY = auto()
    """Begin again, after a pause."""
    RETRY_AT_ONCE = auto()
    """Begin again."""
    ERROR_CLOSED = auto()
    """Give up: the rendezvous is closed."""


@dataclass(frozen=True)
class Decision:
    """An action and its reason in words; for WRITE, the new state and the seconds until etcd deletes it."""

    action: Action
    reason: str
    state: State | None = None
    ttl: int | None = None


# The state's text.


def parse(text: str | None) -> State | None:
    """Return the state that ``text`` is.

    Raises:
        RendezvousStateError: it is none.
    """
    if text is None:
        return None
    try:
        state = json.loads(text)
    except ValueError:
        raise RendezvousStateError(f"the state is not JSON: {text[:80]!r}") from None
    fields = _FIELDS.get(str(state.get("status"))) if isinstance(state, dict) else None
    if fields is None:
        raise RendezvousStateError(f"the state has no status that this protocol knows: {text[:80]!r}")
    for name, kind in fields.items():
        if not isinstance(state.get(name), kind):
            raise RendezvousStateError(
                f"the field '{name}' of the {state['status']} state must be of type {kind.__name__}, "
                f"not {type(state.get(name)).__name__}"
            )
    if not str(state.get("version", "0")).isdecimal():
        raise RendezvousStateError(f"the version of the state must be a number, not {state['version']!r}")
    return dict(state)


def dump(state: State) -> str:
    """Return the text of ``state``."""
    return json.dumps(state)


# What a node decides.


def joinable(version: str) -> State:
    """Return the state of a new round."""
    return {"status": "joinable", "version": version, "participants": []}


def enter(state: State | None) -> Decision:
    """Decide how a node that wants to take part begins."""
    if state is None:
        return Decision(Action.CREATE, "there is no round")
    if state["status"] == "closed":
        return _closed()
    if state["status"] == "joinable":
        return Decision(Action.JOIN, f"round {state['version']} is joinable")
    if state["status"] == "final":
        return Decision(Action.STAND_BY, f"round {state['version']} is complete")
    return Decision(Action.WAIT, f"a round is {state['status']}: it will soon be another state, or gone")


def join(state: State | None, version: str, limits: Limits) -> Decision:
    """Take the next rank; the round is frozen with the last."""
    elsewhere = _elsewhere(state, version, "joinable")
    if state is None or elsewhere is not None:
        return elsewhere or _gone(version)
    participants = state["participants"]
    rank = len(participants)
    if rank >= limits.max_nodes:
        # Only where nodes do not agree on max_nodes.
        return Decision(Action.RETRY, f"round {version} has {rank} nodes, of {limits.max_nodes} at most")
    state = {**state, "participants": [*participants, rank]}
    if rank + 1 == limits.max_nodes:
        return Decision(Action.WRITE, f"rank {rank} is the last", _frozen(state), FROZEN_TTL)
    if rank + 1 >= limits.min_nodes:
        return Decision(Action.WRITE, f"rank {rank} joins in the last call", state, EPHEMERAL_TTL)
    return Decision(Action.WRITE, f"rank {rank} joins", state)


def last_call(state: State | None, version: str, late: float, refresh: bool) -> Decision:
    """Wait out the last call and freeze the round.

    Args:
        state: the state.
        version: the round.
        late: seconds since the end of the last call; negative before it.
        refresh: whether it is time to write, so that the state does not run out.
    """
    if state is not None and (state["status"], state.get("version")) == ("frozen", version):
        return Decision(Action.DONE, f"round {version} is frozen")
    elsewhere = _elsewhere(state, version, "joinable")
    if state is None or elsewhere is not None:
        return elsewhere or _gone(version)
    if late >= 0:
        return Decision(Action.WRITE, "the last call is over", _frozen(state), FROZEN_TTL)
    if refresh:
        return Decision(Action.WRITE, "the last call goes on", state, EPHEMERAL_TTL)
    return Decision(Action.WAIT, "the last call is not over")


def meet(state: State | None, version: str) -> Decision:
    """Wait, as a participant, until the round is frozen."""
    if state is not None and (state["status"], state.get("version")) == ("joinable", version):
        return Decision(Action.WAIT, f"round {version} is still joinable")
    return _elsewhere(state, version, "frozen") or Decision(Action.DONE, f"round {version} is frozen")


def confirm(state: State | None, version: str, key: str) -> Decision:
    """Add the key of this node's keep-alive; the last to do so completes the round."""
    if state is not None and keeps_alive(state, key):
        return Decision(Action.DONE, "the keep-alive is known")  # an earlier attempt, whose answer was lost
    elsewhere = _elsewhere(state, version, "frozen")
    if state is None or elsewhere is not None:
        return elsewhere or _gone(version)
    state = {**state, "keep_alives": [*state["keep_alives"], key]}
    if len(state["keep_alives"]) < len(state["participants"]):
        return Decision(Action.WRITE, "others have not confirmed yet", state, FROZEN_TTL)
    return Decision(Action.WRITE, "all have confirmed", {**state, "status": "final", "num_workers_waiting": 0})


def finish(state: State | None, version: str) -> Decision:
    """Wait, as a participant that has confirmed, until the round is complete."""
    if state is not None and (state["status"], state.get("version")) == ("frozen", version):
        return Decision(Action.WAIT, f"round {version} lacks confirmations")
    return _elsewhere(state, version, "final") or Decision(Action.DONE, f"round {version} is complete")


def announce(state: State | None, version: str) -> Decision:
    """Count this node among those that wait for the next round."""
    elsewhere = _elsewhere(state, version, "final")
    if state is None or elsewhere is not None:
        return elsewhere or _gone(version)
    count = state["num_workers_waiting"] + 1
    return Decision(
        Action.WRITE, f"{count} wait for the round after {version}", {**state, "num_workers_waiting": count}
    )


def end(state: State | None, version: str, alive: Collection[str]) -> Decision:
    """Wait, as a node that stands by, for the end of the round, or end it: where a keep-alive is gone.

    Args:
        state: the state.
        version: the round.
        alive: the keep-alives that are there.
    """
    if state is None or (state["status"], state.get("version")) != ("final", version):
        return Decision(Action.DONE, f"round {version} is over")
    dead = [key for key in state["keep_alives"] if key not in alive]
    if dead:
        return Decision(Action.DESTROY, f"round {version} has lost {', '.join(key.split('/')[-1] for key in dead)}")
    return Decision(Action.WAIT, f"all nodes of round {version} are alive")


def close(state: State | None) -> Decision:
    """Close the rendezvous, even one that has not begun."""
    if state is not None and state["status"] == "closed":
        return Decision(Action.DONE, "the rendezvous is closed")
    return Decision(Action.WRITE, "this node closes the rendezvous", {**(state or {}), "status": "closed"})


# What a state says.


def keeps_alive(state: State | None, key: str) -> bool:
    """Return whether the nodes of the round are told by ``key`` that one of them is alive."""
    return state is not None and state["status"] in ("frozen", "final") and key in state["keep_alives"]


def waiting(state: State | None, version: str | None) -> int:
    """Return how many nodes wait for the round after ``version``, the round of the node that asks (None: no round).

    Where that round is over, those of the next are waiting for the node: at least one of them, unless it is not
    there yet. Torch says 0 while the next round forms, so that who has not asked in time never hears of it.
    """
    if state is None or state["status"] in ("setup", "closed"):
        return 0
    count: int = state["num_workers_waiting"] if state["status"] == "final" else 0
    if version is None or state["version"] == version:
        return count
    return max(count, len(state["participants"]))


def progress(state: State | None, limits: Limits) -> str:
    """Say how far the round is and what it lacks."""
    if state is None:
        return "there is no round"
    if state["status"] in ("setup", "closed"):
        return f"the status is {state['status']}"
    version, came = state["version"], len(state["participants"])
    if state["status"] == "joinable":
        least, most = limits.min_nodes, limits.max_nodes
        needed = f"{least}" if least == most else f"at least {least}"
        return f"{came} of {needed} nodes joined round {version}, which is joinable"
    confirmed = len(state["keep_alives"])
    if state["status"] == "frozen":
        return f"{confirmed} of {came} nodes confirmed round {version}, which is frozen"
    return f"round {version} is final with {came} nodes, and {state['num_workers_waiting']} wait for the next"


# Shared by several rules.


def _closed() -> Decision:
    return Decision(Action.ERROR_CLOSED, "the rendezvous is closed")


def _gone(version: str) -> Decision:
    return Decision(Action.RETRY_AT_ONCE, f"round {version} is gone")


def _elsewhere(state: State | None, version: str, status: str) -> Decision | None:
    """Return what to do where the state is not ``version`` in ``status``; None where it is."""
    if state is None:
        return _gone(version)
    if state["status"] == "closed":
        return _closed()
    found = state.get("version")
    if found not in (None, version):
        return Decision(Action.RETRY_AT_ONCE, f"round {version} is over, round {found} is {state['status']}")
    if state["status"] != status:
        return Decision(Action.RETRY, f"round {version} is {state['status']} and no longer {status}")
    return None


def _frozen(state: State) -> State:
    return {**state, "status": "frozen", "keep_alives": []}
