"""What each host runs: it forms worlds together with the other hosts, and measures how long each takes.

The hosts join a lobby first. For each world, the first host tells all hosts to start once all of them have their nodes
ready. Each host measures the time from there until its last node has its rank and the world size, so that the clocks of
two hosts are never compared. The first host checks that the ranks of all nodes are 0 to n-1.

The keys in the lobby; ``<n>`` is the number of the world:

- ``name/<host>``: published by each host: its address
- ``plan``: published by the first host: its arguments, and a token that makes the worlds' run ids unique
- ``ready/<n>/<host>``: published by each host: its nodes are ready, or why not
- ``go/<n>``: published by the first host: empty if all may start; otherwise why hosts are not ready
- ``done/<n>/<host>``: published by each host: the places of its nodes and the times
- ``over/<n>``: published by the first host: the outcome of the world; the nodes leave after that
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

from rendezvous import config
from rendezvous.api import RendezvousError
from rendezvous.bench import metrics
from rendezvous.bench.checks import Failed, check_places, explain
from rendezvous.bench.contenders import PORT, Job, make_handler
from rendezvous.bench.lobby import GRACE, Lobby, in_thread
from rendezvous.bench.metadata import metadata, summary
from rendezvous.bench.plan import Plan
from rendezvous.bench.tables import MISSING, Table
from rendezvous.etcd.v3 import background
from rendezvous.utils import format_endpoint, parse_rendezvous_endpoints

__all__ = ["outcome", "run", "table"]

_LOBBY_KEYS = [
    setting.name for setting in (*config.CONNECTION_SETTINGS, config.KEEP_ALIVE_INTERVAL, config.KEEP_ALIVE_MAX_ATTEMPT)
]

_ETCD_TIMEOUT = 5.0
"""Seconds to wait for etcd's counters and version; all hosts wait meanwhile."""

_LEAVING_THREADS = 16

Result = tuple[float, int, int] | BaseException
"""When a node got its place, its rank and the world size; or the error that it failed with."""


def run(plan: Plan) -> dict[str, Any] | None:
    """Run this host's part of the benchmark.

    Returns:
        The results on the first host, None on the others.

    Raises:
        RendezvousError: the hosts did not all join; or, on all hosts but the first, a world did not form.
    """
    if plan.contender.obstacle is not None:
        raise RendezvousError(f"{plan.contender.name} cannot be measured: {plan.contender.obstacle}")
    lobby = Lobby(plan.parameters(f"{plan.run_id}-lobby", *_LOBBY_KEYS), plan.timeout)
    lobby.enter()
    run_ids: list[str] = []
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    try:
        lobby.publish_own("name", plan.address)
        if lobby.first:
            names = [f"{name or 'unknown'} (host {number})" for number, name in enumerate(lobby.collect("name"))]
            lobby.publish("plan", {**plan.common, "token": uuid.uuid4().hex[:8]})
        common = lobby.read("plan")
        token = common.pop("token")
        for number in range(plan.rounds):
            run_ids.append(f"{plan.run_id}-{token}-{number}")
            rows.append({"world": number, **_form(plan, lobby, number, run_ids[-1], common, names)})
            if "failed" in rows[-1]:
                break
        version = _etcd_version(plan) if lobby.first else None
    finally:
        lobby.leave(run_ids)
    if lobby.first:
        return {
            "benchmark": "formation-cluster",
            "metadata": metadata(version),
            **common,
            **{"hosts": plan.hosts, "endpoint": plan.endpoint, "join_timeout": plan.timeout},
            "rows": rows,
        }
    if "failed" in rows[-1]:
        raise RendezvousError(f"world {len(rows) - 1} did not form: {_reasons(rows[-1]['failed'])}")
    return None


# One world.


def _form(
    plan: Plan, lobby: Lobby, number: int, run_id: str, common: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    """Form one world.

    Args:
        plan: what is measured.
        lobby: all hosts.
        number: the number of the world.
        run_id: its run id.
        common: the arguments of the first host.
        names: the names of all hosts, on the first host.

    Returns:
        The outcome, the same on all hosts.
    """
    nodes: list[Any] = []
    before = None
    try:
        lobby.publish_own(f"ready/{number}", _prepare(plan, run_id, common, nodes))
        if lobby.first:
            obstacles = _failures(names, lobby.collect(f"ready/{number}"))
            before = _load(plan)
            lobby.publish(f"go/{number}", obstacles)
        if obstacles := lobby.read(f"go/{number}"):
            return {"failed": obstacles}
        lobby.publish_own(f"done/{number}", _join(plan, lobby, nodes))
        if lobby.first:
            row = outcome(names, lobby.collect(f"done/{number}"), plan.nodes)
            after = _load(plan)
            if before is not None and after is not None:
                row["per_node"] = metrics.difference(after, before, plan.nodes)
            # Once it is closed, nodes that leave later than others do not form the next round.
            with suppress(Exception):
                nodes[0].set_closed()
            lobby.publish(f"over/{number}", row)
        over: dict[str, Any] = lobby.read(f"over/{number}")
        return over
    finally:
        _leave(nodes)


def _prepare(plan: Plan, run_id: str, common: dict[str, Any], nodes: list[Any]) -> dict[str, str]:
    """Add the nodes of this host to ``nodes``; return what it publishes about them."""
    if common != plan.common:
        return {"failed": f"started with {_words(plan.common)}; the first host with {_words(common)}"}
    try:
        _make(plan, run_id, nodes)
    except Exception as exc:
        return {"failed": explain(exc)}
    return {}


def _words(common: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in common.items())


def _make(plan: Plan, run_id: str, nodes: list[Any]) -> None:
    """Add a handler for each node of this host to ``nodes``."""
    contender = plan.contender
    job = Job(contender, plan.nodes, plan.endpoint, float(plan.timeout), run_id)
    conf: dict[str, Any] = {key: value for key, value in plan.conf.items() if key != "prefix" or not contender.v2}
    if contender.coroutines:
        # A collection visits the objects of all nodes in this process; the process of a real job has only one node.
        gc.disable()
    try:
        for index in range(plan.per_host):
            nodes.append(make_handler(job, index, addr=f"{plan.address}-{index}", **conf))
            logging.disable(logging.WARNING)  # the warnings about the configuration are the same for all nodes
    finally:
        # Torch's etcd backend logs each step of each node.
        logging.disable(logging.ERROR if contender.torchs else logging.NOTSET)


def _join(plan: Plan, lobby: Lobby, nodes: list[Any]) -> dict[str, Any]:
    """Let the nodes of this host join; return what it publishes about them."""
    work: Callable[[list[Any], float], list[Result]]
    work = _in_coroutines if plan.contender.coroutines else _in_threads
    start = time.monotonic()
    try:
        results = lobby.wait(in_thread(lambda: work(nodes, plan.timeout)))
    except RendezvousError as exc:
        return {"failed": f"its {len(nodes)} nodes did not all get a place: {exc}"}
    errors = [each for each in results if isinstance(each, BaseException)]
    if errors:
        return {"failed": f"{len(errors)} of its {len(nodes)} nodes: {explain(errors[0])}"}
    done = [each for each in results if not isinstance(each, BaseException)]
    seconds = [end - start for end, _, _ in done]
    return {"seconds": max(seconds), "first": min(seconds), "places": [place for _, *place in done]}


def _in_threads(nodes: list[Any], timeout: float) -> list[Result]:
    """Let each node join in a thread of its own. The handlers themselves apply the ``timeout``."""

    def join(node: Any) -> Result:
        info = node.next_rendezvous()
        return time.monotonic(), info.rank, info.world_size

    futures = [in_thread(partial(join, node)) for node in nodes]
    wait(futures)
    return [future.exception() or future.result() for future in futures]


def _in_coroutines(nodes: list[Any], timeout: float) -> list[Result]:
    """Let all nodes join on the background loop: the protocol of the handlers, without a thread for each node."""

    async def join(node: Any) -> Result:
        place, _ = await node.member.join(timeout, lambda: PORT)
        return time.monotonic(), place.rank, place.world_size

    async def join_all() -> list[Result]:
        return list(await asyncio.gather(*map(join, nodes), return_exceptions=True))

    return background.run(join_all())


def _leave(nodes: list[Any]) -> None:
    """Let all nodes leave. If etcd does not answer, a node is removed when its lease ends."""

    def shut_down(some: list[Any]) -> None:
        for node in some:
            with suppress(Exception):
                node.shutdown()

    threads = [in_thread(partial(shut_down, nodes[start::_LEAVING_THREADS])) for start in range(_LEAVING_THREADS)]
    wait(threads, GRACE)


# The outcome.


def _failures(names: list[str], reports: list[dict[str, Any] | None]) -> dict[str, str]:
    """Return why hosts failed, by the name of the host; empty if none did."""
    silent = {"failed": "it published no report in time"}
    reasons = {
        name: (silent if report is None else report).get("failed") for name, report in zip(names, reports, strict=True)
    }
    return {name: " ".join(reason.split()) for name, reason in reasons.items() if reason is not None}


def outcome(names: list[str], reports: list[dict[str, Any] | None], nodes: int) -> dict[str, Any]:
    """Return the times of a world, or why its nodes do not form one.

    Args:
        names: the names of the hosts.
        reports: what each host published about its nodes; None if nothing.
        nodes: the number of nodes on all hosts.
    """
    failed = _failures(names, reports)
    if failed:
        return {"failed": failed}
    done = [report for report in reports if report is not None]
    try:
        check_places([(rank, size) for report in done for rank, size in report["places"]], nodes)
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
    """Return the sums of the counters of all endpoints; None if one of them does not answer."""
    params = plan.parameters(plan.run_id)
    try:
        loads = [
            metrics.load(format_endpoint(*endpoint), _tls(plan), _ETCD_TIMEOUT)
            for endpoint in parse_rendezvous_endpoints(params.endpoint, 2379)
        ]
    except Failed:
        return None
    total = {name: sum(load[name] for load in loads) for name in metrics.NAMES}
    # Each member counts each write.
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
    first = parse_rendezvous_endpoints(plan.parameters(plan.run_id).endpoint, 2379)[0]
    try:
        return metrics.version(format_endpoint(*first), _tls(plan), _ETCD_TIMEOUT)
    except Failed:
        return "of unknown version"


def _reasons(failed: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items())


# The table.


def table(result: dict[str, Any]) -> Table:
    """Return the table of the results of :func:`run`."""
    lines = []
    for row in result["rows"]:
        line = [str(row["world"]), str(result["hosts"]), f"{result['nodes']:,}"]
        if "failed" in row:
            lines.append([*line, "failed", *(MISSING for _ in range(6))])
            continue
        line += [f"{row[name]:.3f} s" for name in ("seconds", "median", "fastest", "first_node")]
        lines.append([*line, *_cost(row.get("per_node"))])
    remarks = [
        f"World {row['world']} did not form, and the benchmark stopped: {_reasons(row['failed'])}."
        for row in result["rows"]
        if "failed" in row
    ]
    remarks.append(
        "The load of etcd is read from the metrics of the given endpoints. It includes what the hosts exchange (one "
        "write and one or two requests for each host), and everything else that uses this etcd."
    )
    made = result["metadata"]
    remarks.append(f"{summary(made)} Core: {made['core']}. etcd at {result['endpoint']}.")
    return Table(
        f"{result['contender']}: seconds from the start on a host until its last node has its place.",
        [
            *("world", "hosts", "nodes", "slowest host", "median", "fastest", "first node"),
            *("requests and watches per node", "raft writes per node", "etcd's CPU per node"),
        ],
        lines,
        tuple(remarks),
    )


def _cost(load: dict[str, float] | None) -> list[str]:
    if load is None:
        return [MISSING] * 3
    return [f"{load['requests'] + load['watches']:.1f}", f"{load['raft']:.1f}", f"{load['cpu'] * 1000:.1f} ms"]
