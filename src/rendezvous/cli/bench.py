"""``rendezvous bench``: how fast nodes on the hosts of a cluster form a world."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rendezvous.bench.contenders import CONTENDERS
from rendezvous.bench.plan import DEFAULT_CONTENDER, DEFAULT_ROUNDS, plan_of
from rendezvous.cli.arguments import at_least

__all__ = ["HELP", "NAME", "add_arguments", "run"]

NAME = "bench"
HELP = (
    "Measure how fast nodes on the hosts of a cluster form a world on an existing etcd. Start the same command once on "
    "each host, with srun, mpirun, kubectl or ssh."
)

RESULT = "formation-cluster.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``rendezvous bench``."""
    parser.epilog = (
        f"The first host, in the order of the addresses, prints one table for all hosts and writes {RESULT}. The exit "
        "code is 1 on every host if a world did not form."
    )
    add = parser.add_argument
    add("--endpoint", required=True, metavar="HOST:PORT[,...]", help="the members of the etcd cluster")
    add("--nodes", required=True, type=at_least(1), metavar="N", help="number of nodes on all hosts together")
    add("--per-host", type=at_least(1), default=1, metavar="K", help="number of nodes on each host (default: 1)")
    add(
        "--run-id",
        metavar="ID",
        help="the same on all hosts, and different for each benchmark that runs at the same time (default: the "
        "launcher's job: PMIX_NAMESPACE of mpirun, or SLURM_JOB_ID and SLURM_STEP_ID of srun)",
    )
    add(
        "--rounds",
        type=at_least(1),
        default=DEFAULT_ROUNDS,
        metavar="R",
        help="number of worlds to form, one after another (default: %(default)s)",
    )
    add(
        "--contender",
        default=DEFAULT_CONTENDER,
        metavar="NAME",
        help=f"the implementation to measure: {'; '.join(CONTENDERS)} (default: %(default)s)",
    )
    add(
        "--rdzv-conf",
        default="",
        metavar="KEY=VALUE,...",
        help="the configuration of the nodes, as for torchrun: TLS, username, password_file, prefix, join_timeout "
        "(seconds within which all hosts must join, and within which each world must form) and so on",
    )
    add("--local-addr", metavar="ADDRESS", help="the address of this host (default: its fully qualified name)")
    add(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help=f"the folder for {RESULT} (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Run this host's part of the benchmark and return the exit code."""
    from rendezvous.bench import worlds

    plan = plan_of(options)
    result = worlds.run(plan)
    if result is None:
        return 0
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    worlds.table(result).show()
    return int(any("failed" in row for row in result["rows"]))
