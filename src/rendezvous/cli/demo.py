"""``rendezvous demo``: a world of many nodes on this machine, and the next one after some of them were killed."""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rendezvous._core import COMPILED
from rendezvous.cli.arguments import at_least

if TYPE_CHECKING:
    from rendezvous.cli.world import Plan, Report

__all__ = ["HELP", "NAME", "add_arguments", "run"]

NAME = "demo"
HELP = "Form a world of many nodes on this machine, kill one in eight of them, and form the next world."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``rendezvous demo``."""
    parser.add_argument("--nodes", type=at_least(2), default=64, metavar="N", help="number of nodes (default: 64)")
    parser.add_argument("--endpoint", metavar="HOST:PORT", help="the etcd to use (default: start one on this machine)")
    parser.add_argument("--json", action="store_true", help="print only a report, as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the demo and print what happened."""
    from rendezvous.cli.world import Plan, form_twice

    with _etcd(options.endpoint, quiet=options.json) as endpoint:
        plan = Plan(endpoint, f"demo-{uuid.uuid4().hex[:8]}", options.nodes)
        if options.json:
            print(json.dumps(form_twice(plan, lambda *_: None).as_dict(), indent=2))
        else:
            print(f"Starting {plan.nodes} nodes in {plan.processes} processes.", flush=True)
            _show(plan, _run_with_bar(plan))
    return 0


@contextmanager
def _etcd(endpoint: str | None, quiet: bool) -> Iterator[str]:
    if endpoint is not None:
        yield endpoint
        return
    from rendezvous.etcd.server import EtcdServer

    with EtcdServer(enable_v2=False) as server:
        if not quiet:
            print(f"Started etcd on this machine: {server.get_endpoint()}.", flush=True)
        yield server.get_endpoint()


def _run_with_bar(plan: Plan) -> Report:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rendezvous.cli.world import form_twice

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("Starting the nodes", total=plan.nodes)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return form_twice(plan, progress)


def _show(plan: Plan, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    from rendezvous.cli.world import LAST_CALL, LEASE

    table = Table(title=f"{report.backend}, core: {'compiled' if COMPILED else 'pure Python'}")
    for heading in ("round", "world size", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("rank 0")
    table.add_column("last rank")
    for row in report.rounds:
        table.add_row(str(row.round), str(row.world_size), f"{row.seconds:.2f}", row.first_rank, row.last_rank)
    console = Console()
    console.print(table)
    killed = report.killed
    fate = f"was killed ({killed[0]})" if len(killed) == 1 else f"were killed ({killed[0]} to {killed[-1]})"
    console.print(
        f"After round {report.rounds[0].round}, {len(killed)} of the {plan.nodes} nodes {fate}. The time of round "
        f"{report.rounds[1].round} includes {LEASE} s until their leases expire and {LAST_CALL} s of last call."
    )
