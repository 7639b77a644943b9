"""What one host does in a benchmark on a cluster: its nodes of each world, and for the first host the outcome of all.

What the hosts tell each other in the lobby, ``<n>`` for the number of the world:

    name/<host>       each: its address
    plan              the first: what it was started with, and a part of the worlds' run ids that no other run has
    ready/<n>/<host>  each: its nodes are made, or why not
    go/<n>            the first: why not all are ready; nothing where they are, and all may go
    done/<n>/<host>   each: how its nodes fared
    over/<n>          the first: the outcome, which every host knows then; now nodes may leave
"""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from typing import Any

from benchmarks import metrics
from benchmarks.circumstances import circumstances, summary
from benchmarks.contenders import Job, Kind, make_handler
from benchmarks.crew import Failed, explain
from benchmarks.formation import check
from benchmarks.hosts import CONTESTANTS, Plan
from benchmarks.lobby import GRACE, Lobby, in_thread
from benchmarks.nodes import PORT
from benchmarks.tables import MISSING, Table
from rendezvous import config
from rendezvous.api import RendezvousError
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints

_LOBBY_KEYS = [
    setting.name for setting in (*config.CONNECTION_SETTINGS, config.KEEP_ALIVE_INTERVAL, config.KEEP_ALIVE_MAX_ATTEMPT)
]

_PATIENCE = 5.0
"""What etcd's metrics and version may take, in seconds: all hosts wait for them."""

_AT_ONCE = 16

Outcome = tuple[float, int, int] | BaseException
"""When a node had its place, its rank and the world size; or what it failed with."""


def run(plan: Plan) -> dict[str, Any] | None:
    """Do this host's part; return the results on the first host, None on the others.

    Raises:
        RendezvousError: the hosts did not come together; or, on all but the first, a world did not form.
    """
    contender = CONTESTANTS[plan.contender]
    if contender.torchs and contender.obstacle is not None:
        raise RendezvousError(f"{plan.contender} cannot be measured: {contender.obstacle}")
    lobby = Lobby(plan.parameters(f"{plan.run_id}-lobby", *_LOBBY_KEYS), plan.timeout)
    lobby.enter()
    run_ids: list[str] = []
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    try:
        lobby.say_own("name", plan.address)
        if lobby.leads:
            names = [f"{name or 'unknown'} (host {number})" for number, name in enumerate(lobby.collect("name"))]
            lobby.say("plan", {**plan.common, "token": uuid.uuid4().hex[:8]})
        told = lobby.hear("plan")
        token = told.pop("token")
        for number in range(plan.rounds):
            run_ids.append(f"{plan.run_id}-{token}-{number}")
            rows.append({"world": number, **_form(plan, lobby, number, run_ids[-1], told, names)})
            if "failed" in rows[-1]:
                break
        version = _etcd_version(plan) if lobby.leads else None
    finally:
        lobby.leave(run_ids)
    if lobby.leads:
        told |= {"hosts": plan.hosts, "endpoint": plan.endpoint, "join_timeout": plan.timeout}
        return {
            "benchmark": "formation-cluster",
            "circumstances": circumstances(version),
            **told,
            "rows": rows,
        }
    if "failed" in rows[-1]:
        raise RendezvousError(f"world {len(rows) - 1} did not form: {_reasons(rows[-1]['failed'])}")
    return None


# One world.


def _form(plan: Plan, lobby: Lobby, number: int, run_id: str, told: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Form one world; return its outcome, which all hosts get. The first has the ``names`` of all."""
    nodes: list[Any] = []
    before = None
    try:
        lobby.say_own(f"ready/{number}", _prepare(plan, run_id, told, nodes))
        if lobby.leads:
            obstacles = failures(names, lobby.collect(f"ready/{number}"))
            before = _load(plan)
            lobby.say(f"go/{number}", obstacles)
        if obstacles := lobby.hear(f"go/{number}"):
            return {"failed": obstacles}
        lobby.say_own(f"done/{number}", _join(plan, lobby, nodes))
        if lobby.leads:
            row = outcome(names, lobby.collect(f"done/{number}"), plan.nodes)
            after = _load(plan)
            if before is not None and after is not None:
                row["per_node"] = metrics.difference(after, before, plan.nodes)
            # Closed before anyone leaves, nobody who stays forms another round.
            with suppress(Exception):
                nodes[0].set_closed()
            lobby.say(f"over/{number}", row)
        heard: dict[str, Any] = lobby.hear(f"over/{number}")
        return heard
    finally:
        _leave(nodes)


def _prepare(plan: Plan, run_id: str, told: dict[str, Any], nodes: list[Any]) -> dict[str, str]:
    """Make the ``nodes`` of this host; return what it tells of them."""
    if told != plan.common:
        return {"failed": f"started with {_words(plan.common)}; the first host with {_words(told)}"}
    try:
        _make(plan, run_id, nodes)
    except Exception as exc:
        return {"failed": explain(exc)}
    return {}


def _words(common: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in common.items())


def _make(plan: Plan, run_id: str, nodes: list[Any]) -> None:
    """Make the nodes of this host."""
    contender = CONTESTANTS[plan.contender]
    job = Job(plan.contender, plan.nodes, plan.endpoint, float(plan.timeout), run_id)
    conf = {key: value for key, value in plan.conf.items() if key != "prefix" or not contender.v2}
    if contender.kind is Kind.COROUTINES:
        gc.disable()  # as in nodes.py
    try:
        for index in range(plan.per_host):
            nodes.append(make_handler(job, index, name=f"{plan.address}-{index}", **conf))
            logging.disable(logging.WARNING)  # the first has said what there is to say of the configuration
    finally:
        logging.disable(logging.ERROR if contender.torchs else logging.NOTSET)


def _join(plan: Plan, lobby: Lobby, nodes: list[Any]) -> dict[str, Any]:
    """Have the nodes of this host join; return what it tells of them."""
    work: Callable[[list[Any], float], list[Outcome]]
    work = _in_coroutines if CONTESTANTS[plan.contender].kind is Kind.COROUTINES else _in_threads
    start = time.monotonic()
    try:
        outcomes = lobby.wait(in_thread(lambda: work(nodes, plan.timeout)))
    except RendezvousError as exc:
        return {"failed": f"not all of its {len(nodes)} nodes had their places: {exc}"}
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    if errors:
        return {"failed": f"{len(errors)} of its {len(nodes)} nodes: {explain(errors[0])}"}
    done = [each for each in outcomes if not isinstance(each, BaseException)]
    ends = [end - start for end, _, _ in done]
    return {"seconds": max(ends), "first": min(ends), "places": [place for _, *place in done]}


def _in_threads(nodes: list[Any], timeout: float) -> list[Outcome]:
    """Have each node join in a thread of its own; ``timeout`` is the handlers' own."""

    def join(node: Any) -> Outcome:
        info = node.next_rendezvous()
        return time.monotonic(), info.rank, info.world_size

    futures = [in_thread(partial(join, node)) for node in nodes]
    wait(futures)
    return [future.exception() or future.result() for future in futures]


def _in_coroutines(nodes: list[Any], timeout: float) -> list[Outcome]:
    """Have all nodes join on one event loop: what a handler does, without a thread for each to block."""

    async def join(member: Any) -> Outcome:
        place, _ = await member.join(timeout, lambda: PORT)
        return time.monotonic(), place.rank, place.world_size

    async def join_all() -> list[Outcome]:
        return await asyncio.gather(*(join(node._member) for node in nodes), return_exceptions=True)

    return background.run(join_all())


def _leave(nodes: list[Any]) -> None:
    """Have all nodes leave, some at once. What cannot, where etcd is away, ends with its lease."""

    def shut_down(some: list[Any]) -> None:
        for node in some:
            with suppress(Exception):
                node.shutdown()

    wait([in_thread(partial(shut_down, nodes[start::_AT_ONCE])) for start in range(_AT_ONCE)], GRACE)


# What comes of it.


def failures(names: list[str], reports: list[dict[str, Any] | None]) -> dict[str, str]:
    """Return why hosts failed, by name."""
    silent = {"failed": "nothing was heard of it in time"}
    said = {
        name: (silent if report is None else report).get("failed") for name, report in zip(names, reports, strict=True)
    }
    return {name: " ".join(reason.split()) for name, reason in said.items() if reason is not None}


def outcome(names: list[str], reports: list[dict[str, Any] | None], nodes: int) -> dict[str, Any]:
    """Return what all hosts' nodes took, or why they are not one world."""
    failed = failures(names, reports)
    if failed:
        return {"failed": failed}
    done = [report for report in reports if report is not None]
    try:
        check([(rank, size) for report in done for rank, size in report["places"]], nodes)
    except Failed as exc:
        return {"failed": {"all hosts": str(exc)}}
    seconds = [report["seconds"] for report in done]
    return {
        "seconds": max(seconds),
        "median": statistics.median(seconds),
        "fastest": min(seconds),
        "first_node": min(report["first"] for report in done),
        "by_host": dict(zip(names, seconds, strict=True)),
    }


def _load(plan: Plan) -> dict[str, float] | None:
    """Return the counters of all endpoints together, or None where one does not tell."""
    params = plan.parameters(plan.run_id)
    try:
        loads = [
            metrics.load(format_endpoint(*endpoint), _tls(plan), _PATIENCE)
            for endpoint in parse_rendezvous_endpoints(params.endpoint, 2379)
        ]
    except Failed:
        return None
    total = {name: sum(load[name] for load in loads) for name in metrics.NAMES}
    # Every member applies every write.
    return {**total, "raft": max(load["raft"] for load in loads)}


def _tls(plan: Plan) -> ssl.SSLContext | None:
    connection = config.connection(plan.parameters(plan.run_id), config.Backend.COORDINATED)
    if connection.protocol == "http":
        return None
    context = ssl.create_default_context(cafile=connection.ca_cert)
    if connection.cert is not None:
        context.load_cert_chain(connection.cert, connection.key)
    return context


def _etcd_version(plan: Plan) -> str:
    client = connect(plan.parameters(plan.run_id))

    async def ask() -> str:
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        return str((await client.request(Call.STATUS, rpc_pb2.StatusRequest(), deadline)).version)

    try:
        return background.run(ask())
    except RendezvousError:
        return "of unknown version"


def _reasons(failed: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items())


def table(result: dict[str, Any]) -> Table:
    """Return the table of a run."""
    lines = []
    for row in result["rows"]:
        line = [str(row["world"]), str(result["hosts"]), f"{result['nodes']:,}"]
        if "failed" in row:
            lines.append([*line, "failed", *(MISSING for _ in range(6))])
            continue
        line += [f"{row[name]:.3f} s" for name in ("seconds", "median", "fastest", "first_node")]
        lines.append([*line, *_cost(row.get("per_node"))])
    remarks = [
        f"World {row['world']} did not form, and no other was tried: {_reasons(row['failed'])}."
        for row in result["rows"]
        if "failed" in row
    ]
    remarks.append(
        "What a node of it costs etcd is by the metrics of the endpoints named, and holds what the hosts tell each "
        "other, one write and a request or two a host, and whatever else uses this etcd."
    )
    made = result["circumstances"]
    remarks.append(f"{summary(made)} The core: {made['core']}. The etcd at {result['endpoint']}.")
    return Table(
        f"{result['contender']}: seconds from a host's go until its last node had its place.",
        [
            *("world", "hosts", "nodes", "slowest host", "median", "fastest", "first node"),
            *("requests and watches a node", "raft writes", "etcd's CPU"),
        ],
        lines,
        tuple(remarks),
    )


def _cost(load: dict[str, float] | None) -> list[str]:
    if load is None:
        return [MISSING] * 3
    return [f"{load['requests'] + load['watches']:.1f}", f"{load['raft']:.1f}", f"{load['cpu'] * 1000:.1f} ms"]
