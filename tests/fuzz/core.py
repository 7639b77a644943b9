"""The core: state blobs, rosters and swap loops, over both twins."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from rendezvous._core import Role
from rendezvous.api import RendezvousStateError, RendezvousTimeoutError
from rendezvous.dynamic import rules
from tests.fuzz.checks import outcome, refusal, same, twins
from tests.fuzz.reader import Reader

__all__ = ["check_roster", "check_state", "check_swap"]

STATES = [module.State for module in twins("state")]
ROSTERS = [module.Roster for module in twins("roster")]
SWAPS = twins("swap")

_CALLS = (
    *("join", "wait", "stand_by", "touch", "leave", "expire", "complete_round", "open_round", "role", "rank"),
    *("heartbeat", "node_of_rank", "count", "nodes", "oldest_heartbeat", "set", "rule"),
)
_RULES = (rules.join, rules.leave, rules.close, rules.keep_alive)


def seal_state(flags: int, body: bytes) -> bytes:
    """Return a state with the right length and checksum."""
    length = (8 + len(body) + 4).to_bytes(4, "little")
    whole = b"RZ\x01" + bytes([flags]) + length + body
    return whole + crc32(whole).to_bytes(4, "little")


def seal_shard(body: bytes) -> bytes:
    """Return a shard of a roster with the right checksum."""
    whole = b"RR\x01" + body
    return whole + crc32(whole).to_bytes(4, "little")


def observe(state: Any) -> tuple[Any, ...]:
    """Return all that can be seen of a state."""
    roles = [state.nodes(role) for role in Role]
    return (
        *(state.round, state.started, state.complete, state.closed, state.deadline, state.world_size, len(state)),
        state.oldest_heartbeat(),
        [[(node, state.role(node), state.rank(node), state.heartbeat(node)) for node in nodes] for nodes in roles],
        [state.count(role) for role in Role],
        [state.node_of_rank(rank) for rank in range(3)],
    )


def check_state(data: Reader) -> None:
    """Decode a state, run a script on it, and encode it again."""
    script = Reader(data.data())
    blob = seal_state(data.byte() % 9, data.rest()) if data.flag() else data.rest()
    decoded = [outcome(lambda State=State: State.decode(blob), RendezvousStateError) for State in STATES]
    problem = same([refusal(each) for each in decoded], "decode")
    if problem is not None:
        decoded = [State() for State in STATES]
    first = same([observe(state) for state in decoded], "decoded state")
    limits = rules.Limits(2, 4, 30_000, 5_000, 15_000)
    while script:
        call, arguments = script.pick(_CALLS), _arguments(script, first)
        same([_do(state, call, arguments, limits) for state in decoded], call)
    last = same([observe(state) for state in decoded], "state after the script")
    encoded = same([outcome(state.encode) for state in decoded], "encode")
    for State in STATES:
        again = State.decode(encoded)
        assert observe(again) == last, "a state does not come back from its bytes"
        assert again.encode() == encoded, "a state is encoded in two ways"


def _arguments(script: Reader, first: tuple[Any, ...]) -> list[Any]:
    known = [node for nodes in first[8] for node, *_ in nodes]
    number: Any = abs(script.number()) if script.flag() else script.pick((0, 1, 3, "1", None, True, 2**53, -1))
    if known and script.flag():
        return [script.pick(known), number]
    addr: Any = script.text() if script.byte() % 16 else script.pick((b"a", None, 7))
    node: Any = (addr, script.byte() % 3, script.number() if script.byte() % 8 == 0 else 0)
    return [node if script.byte() % 16 else script.pick((None, [], (addr,), "abc")), number]


def _do(state: Any, call: str, arguments: list[Any], limits: rules.Limits) -> Any:
    node, number = arguments
    errors = ValueError, TypeError
    if call in ("join", "wait", "stand_by", "touch"):
        return outcome(lambda: getattr(state, call)(node, number), *errors)
    if call in ("leave", "role", "rank", "heartbeat"):
        return outcome(lambda: getattr(state, call)(node), *errors)
    if call in ("expire", "node_of_rank", "count", "nodes"):
        return outcome(lambda: getattr(state, call)(number), *errors)
    if call == "set":
        fields = ("round", "started", "deadline", "closed")
        return [outcome(lambda name=name: setattr(state, name, number), *errors) for name in fields]
    if call == "rule":
        return outcome(lambda: _apply_rules(state, node, number, limits), *errors)
    return outcome(getattr(state, call), *errors)


def _apply_rules(state: Any, name: Any, now: int, limits: rules.Limits) -> list[Any]:
    """Do what a node of the dynamic protocol does with a state that it has read."""
    node = rules.Node(*name)
    answers: list[Any] = [rules.expire(state, node, limits, now)]
    for rule in _RULES:
        decision = rule(state, node, limits, now, -1.0)
        answers.append(decision)
        if decision.action.writes:
            rules.apply(decision.action, state, node, limits, now)
    return [*answers, rules.next_event(state, node, limits), rules.who_is_missing(state, limits)]


def check_roster(data: Reader) -> None:
    """Decode the shards of a roster, look nodes up, and encode it again."""
    parts = data.byte() % 5
    lengths = [data.byte() for _ in range(parts)]
    sealed, wanted, shards = data.flag(), data.number(), data.number()
    bodies = [data.take(length) for length in lengths]
    whole = [seal_shard(body) if sealed else body for body in bodies]
    for shard in whole:
        calls = [
            outcome(lambda R=R, shard=shard: R.find(shard, wanted), RendezvousStateError, ValueError) for R in ROSTERS
        ]
        same(calls, "find")
        refusal(calls[0])
    decoded = [outcome(lambda R=R: R.decode(whole), RendezvousStateError) for R in ROSTERS]
    if same([refusal(each) for each in decoded], "decode") is not None:
        return
    nodes = same([roster.nodes() for roster in decoded], "nodes")
    for node in (*nodes[:50], wanted):
        same([outcome(lambda r=r, node=node: r.rank(node), ValueError) for r in decoded], "rank")
    encoded = same([outcome(lambda r=r: r.encode(shards), ValueError) for r in decoded], "encode")
    if isinstance(encoded, list):
        for Roster in ROSTERS:
            again = Roster.decode(encoded)
            assert (again.nodes(), len(again)) == (nodes, len(nodes)), "a roster does not come back from its shards"
            for rank, node in enumerate(nodes[:50]):
                assert Roster.find(encoded[node % shards], node) == (rank, len(nodes)), "a rank is not found"


def check_swap(data: Reader) -> None:
    """Run a compare-and-swap loop against a register that others change."""
    script = data.rest()
    same([_swap(module, Reader(script)) for module in SWAPS], "compare_and_swap")


def _swap(module: Any, script: Reader) -> Any:
    trace: list[Any] = []
    now = [0.0]
    bounds = (-1.0, 0.0, 5e-324, 0.001, 1.0, 1e308, float("inf"), float("nan"))
    made = outcome(lambda: module.Backoff(script.pick(bounds), script.pick(bounds), script.byte()), ValueError)
    backoff = module.Backoff(seed=1) if isinstance(made, tuple) else made

    def value() -> Any:
        return script.pick((None, 1, 2, "x"))

    def read() -> Any:
        trace.append("read")
        kind = script.byte() % 8
        return None if kind == 0 else (value(), kind) if kind < 7 else [1, 2]

    def write(wanted: Any, token: Any) -> Any:
        trace.append((wanted, token))
        kind = script.byte() % 8
        if kind == 7:
            raise KeyError("the backend failed")
        return None if kind == 0 else (value(), kind, kind & 1)

    def change(current: Any) -> Any:
        trace.append(current)
        return value() if script else None

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        trace.append(seconds)
        now[0] += seconds

    deadline = script.pick((None, 0.0, 0.5, 1e9, float("inf"), float("-inf"), float("nan")))

    def loop() -> Any:
        return module.compare_and_swap(read, write, change, backoff, deadline, lambda: now[0], sleep)

    # An error of a callback comes out as it is.
    return trace, made if isinstance(made, tuple) else None, outcome(loop, RendezvousTimeoutError, KeyError)
