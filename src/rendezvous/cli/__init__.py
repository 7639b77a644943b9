"""The command ``rendezvous``."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rendezvous._core import COMPILED
from rendezvous.api import RendezvousError
from rendezvous.cli import demo
from rendezvous.etcd.server import EtcdServer

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 wrongly called."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (RendezvousError, OSError, RuntimeError, ValueError) as exc:
        print(f"rendezvous: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ValueError) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rendezvous", description="The rendezvous of elastic training on etcd.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo",
        help="form a world on this machine, kill some of its nodes, form the next",
        description="Form a world of many nodes on this machine, kill one in eight of them, and form the next.",
    )
    command.add_argument("--nodes", type=int, default=64, metavar="N", help="how many nodes (default 64)")
    command.add_argument("--endpoint", metavar="HOST:PORT", help="the etcd to use; one of its own unless given")
    command.add_argument("--json", action="store_true", help="print what happened as JSON, and nothing else")
    command.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> int:
    run_id = f"demo-{uuid.uuid4().hex[:8]}"
    with _etcd(options.endpoint, quiet=options.json) as endpoint:
        plan = demo.Plan(endpoint, run_id, options.nodes)
        if options.json:
            print(json.dumps(demo.run(plan, lambda *_: None).as_dict(), indent=2))
        else:
            _show(_run_with_bar(plan))
    return 0


@contextmanager
def _etcd(endpoint: str | None, quiet: bool) -> Iterator[str]:
    if endpoint is not None:
        yield endpoint
        return
    with EtcdServer(enable_v2=False) as server:
        if not quiet:
            print(f"Started an etcd of its own at {server.get_endpoint()}.", flush=True)
        yield server.get_endpoint()


def _run_with_bar(plan: demo.Plan) -> demo.Report:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("Starting the nodes", total=plan.nodes)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return demo.run(plan, progress)


def _show(report: demo.Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.backend}, core: {'compiled' if COMPILED else 'pure Python'}")
    for heading in ("round", "world size", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("first rank")
    table.add_column("last rank")
    for row in report.rounds:
        table.add_row(str(row.round), str(row.world_size), f"{row.seconds:.2f}", row.first_rank, row.last_rank)
    console = Console()
    console.print(table)
    console.print(
        f"Between the rounds {len(report.killed)} nodes were killed ({report.killed[0]} to {report.killed[-1]}). The "
        f"time of the second round includes the 3 s until their leases end and the last call of 1 s."
    )
