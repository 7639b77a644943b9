"""A node of an experiment: a process that takes part in rounds as torch's agent does, and reports what it gets.

It appends its reports to ``<name>.ndjson``, one JSON object on each line, and its log to ``<name>.log``. Each report
has the ``time`` on the monotonic clock, which all processes of a machine share, and its kind, ``event``:

    connects  The handler has been made, so etcd has accepted the node.
    joins     A join begins.
    world     It has returned: round, attempt, rank, size, bootstrap, and the node id.
    members   The members have met in the store of the round: a token that they share, the count of arrivals that this
              node got, and the names in the order of the ranks.
    leaves    The node leaves the round, because nodes are waiting: its node id, and whether it was lost.
    error     A call of the handler or of the store failed, and the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rendezvous.api import RendezvousInfo, RendezvousParameters
from rendezvous.coordinated.handler import CoordinatedRendezvousHandler, create_handler
from rendezvous.coordinated.lifecycle import State

__all__ = ["run"]

_POLL = 0.1
"""Seconds between two looks at the number of waiting nodes: the default of torch's agent."""

_STORE_TIMEOUT = timedelta(seconds=60)


def run(params: RendezvousParameters, folder: Path, join_at: float = 0.0) -> None:
    """Take part in rounds until the process is killed, or a call fails.

    Args:
        params: the configuration of the node.
        folder: for the reports and the log.
        join_at: when to join for the first time, on the monotonic clock.
    """
    name = str(params.local_addr)
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("rendezvous").setLevel(logging.DEBUG)
    with open(folder / f"{name}.ndjson", "a", buffering=1) as reports:

        def report(event: str, **what: Any) -> None:
            reports.write(json.dumps({"time": time.monotonic(), "event": event, **what}) + "\n")

        try:
            handler = create_handler(params)
            report("connects")
            time.sleep(max(0.0, join_at - time.monotonic()))
            while True:
                _take_part(handler, name, report)
        except Exception as exc:
            logging.exception("the node ends")
            report("error", error=f"{type(exc).__name__}: {exc}")


def _take_part(handler: CoordinatedRendezvousHandler, name: str, report: Any) -> None:
    """Join a round, and stay in it until nodes are waiting for the next one."""
    member = handler.member
    report("joins")
    info = handler.next_rendezvous()
    bootstrap, assignment = info.bootstrap_store_info, member._assignment
    assert bootstrap is not None
    assert assignment is not None
    report(
        "world",
        round=assignment.round,
        attempt=assignment.attempt,
        rank=info.rank,
        size=info.world_size,
        bootstrap=[bootstrap.master_addr, bootstrap.master_port],
        node=member.node_id,
    )
    _meet(handler, info, name, assignment.round, report)
    while not handler.num_nodes_waiting():
        time.sleep(_POLL)
    report("leaves", round=assignment.round, node=member.node_id, lost=member.state is State.LOST)


def _meet(handler: CoordinatedRendezvousHandler, info: RendezvousInfo, name: str, number: int, report: Any) -> None:
    """Use the store of the round, until all members have done so, or nodes are waiting for the next round."""
    store = info.store
    store.set_timeout(_STORE_TIMEOUT)
    store.set(f"member/{info.rank}", name)
    token = store.compare_set("token", "", f"{random.getrandbits(64):016x}").decode()
    arrived = store.add("arrived", 1)
    keys = [f"member/{rank}" for rank in range(info.world_size)]
    while not store.check(keys):
        if handler.num_nodes_waiting():
            return
        time.sleep(_POLL)
    names = [value.decode() for value in store.multi_get(keys)]
    report("members", round=number, token=token, arrived=arrived, members=names)
