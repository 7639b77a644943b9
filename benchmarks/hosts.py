"""Seconds until a world has formed on a cluster: nodes on as many hosts as there are, and an etcd that is there.

The same command is started once on each host; each runs its part of the nodes. The hosts meet in a lobby, a rendezvous
of their own. For each world the first host tells all to go when all have their nodes ready; each takes the time from
its own go until its last node has its rank, the world size and the address where the workers meet, so that no two
clocks are compared; and tells the first, which checks that the ranks of all are 0..n-1, and prints one table.

What this does not show: the nodes of one host share its processor, and one interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Kind
from rendezvous import config
from rendezvous.api import RendezvousParameters

NAME = "formation"
"""The benchmark that runs on a cluster."""

RESULT = "formation-cluster.json"

CONTESTANTS = {
    name: contender
    for name, contender in CONTENDERS.items()
    if contender.kind is not Kind.FLOOR and not contender.pure and contender.backend != "c10d"
}
"""Who can be measured: who needs etcd alone. The pure twin is measured with RENDEZVOUS_NO_EXTENSIONS=1."""

_ROUNDS = 3
_LAUNCHERS = ("PMIX_NAMESPACE",), ("SLURM_JOB_ID", "SLURM_STEP_ID")
"""Variables that have the same values in all processes of one start, and others in those of the next."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a run on a cluster takes."""
    group = parser.add_argument_group(
        "on a cluster",
        f"With --endpoint, '{NAME}' runs on the hosts and the etcd of a cluster: start the same command once on each "
        "host (with srun, mpirun, kubectl or ssh). They find each other by the endpoint and the run id; the first of "
        f"them, in the order of their addresses, prints one table for all and writes {RESULT} into FOLDER. The exit "
        "code is 1 on every host unless each world formed.",
    )
    group.add_argument("--endpoint", metavar="HOST:PORT[,...]", help="the etcd cluster")
    group.add_argument("--nodes", type=at_least(1), metavar="N", help="how many nodes on all hosts together")
    group.add_argument("--per-host", type=at_least(1), metavar="K", help="how many of them on each host (default: 1)")
    group.add_argument(
        "--run-id",
        metavar="ID",
        help="the same on all hosts, and for no other benchmark at the same time; taken from the launcher where that "
        "is mpirun (PMIX_NAMESPACE) or srun (SLURM_JOB_ID and SLURM_STEP_ID)",
    )
    group.add_argument(
        "--rounds",
        type=at_least(1),
        metavar="R",
        help=f"how many worlds to form, one after another (default: {_ROUNDS})",
    )
    group.add_argument(
        "--contender", metavar="NAME", help=f"which rendezvous (default: etcd-v3): {'; '.join(CONTESTANTS)}"
    )
    group.add_argument(
        "--rdzv-conf",
        metavar="KEY=VALUE,...",
        help="the configuration of the nodes, as for torchrun: TLS, username, password_file, prefix, join_timeout "
        "(seconds for all hosts to come, and for each world to form) and all else",
    )
    group.add_argument("--local-addr", metavar="ADDRESS", help="the address of this host (default: its full name)")


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads an integer from ``least``, above 0, on a command line."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 0
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer from {least}, not '{text}'")
        return value

    return read


def wanted(options: argparse.Namespace) -> bool:
    """Return whether the command line asks for a run on a cluster. Raises ValueError where it is at odds."""
    if options.endpoint is not None:
        if options.names != [NAME] or options.full or options.readme:
            raise ValueError(f"with --endpoint there is one benchmark, '{NAME}', and neither --full nor --readme")
        return True
    flags = ("nodes", "per_host", "run_id", "rounds", "contender", "rdzv_conf", "local_addr")
    given = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag) is not None]
    if given:
        raise ValueError(f"{', '.join(given)} without --endpoint: name the etcd of the cluster")
    return False


@dataclass(frozen=True)
class Plan:
    """What is run, and this host's part in it.

    Attributes:
        endpoint: the etcd cluster.
        run_id: what the hosts find each other by.
        nodes: how many nodes there are in all.
        per_host: how many of them each host runs.
        rounds: how many worlds to form.
        contender: a name of :data:`CONTESTANTS`.
        conf: the configuration of the nodes.
        address: this host's.
    """

    endpoint: str
    run_id: str
    nodes: int
    per_host: int
    rounds: int
    contender: str
    conf: Mapping[str, str]
    address: str

    @property
    def hosts(self) -> int:
        """How many hosts there are."""
        return self.nodes // self.per_host

    @property
    def common(self) -> dict[str, Any]:
        """What all hosts must have been told alike."""
        return {name: getattr(self, name) for name in ("nodes", "per_host", "rounds", "contender")}

    @property
    def timeout(self) -> int:
        """Seconds for all hosts to come, and for each world to form."""
        return config.JOIN_TIMEOUT.read(self.parameters(self.run_id))

    def parameters(self, run_id: str, *keys: str) -> RendezvousParameters:
        """Return a configuration of ``etcd-v3`` in which all hosts must come; with only ``keys`` of it, where given."""
        conf = {key: value for key, value in self.conf.items() if not keys or key in keys}
        return RendezvousParameters("etcd-v3", self.endpoint, run_id, self.hosts, self.hosts, self.address, **conf)


def plan_of(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Plan:
    """Return what the command line asks for. Raises ValueError where something is missing or does not fit."""
    nodes, per_host = options.nodes, options.per_host or 1
    if nodes is None:
        raise ValueError("--nodes is missing: how many nodes on all hosts together")
    if nodes % per_host:
        below = nodes - nodes % per_host
        choices = " or ".join(str(number) for number in (below, below + per_host) if number)
        raise ValueError(
            f"--nodes {nodes} is not a multiple of --per-host {per_host}: each host runs as many; ask for {choices}"
        )
    contender = options.contender or "etcd-v3"
    if contender not in CONTESTANTS:
        raise ValueError(f"no such contender: '{contender}'; there are: {'; '.join(CONTESTANTS)}")
    plan = Plan(
        options.endpoint,
        options.run_id or _launched_as(environment),
        nodes,
        per_host,
        options.rounds or _ROUNDS,
        contender,
        configuration(options.rdzv_conf or ""),
        options.local_addr or socket.getfqdn(),
    )
    _ = plan.timeout  # is it a number
    return plan


def _launched_as(environment: Mapping[str, str]) -> str:
    """Return the run id that the launcher gives to all its processes."""
    for names in _LAUNCHERS:
        values = [environment.get(name, "") for name in names]
        if all(values):
            return ".".join(values)
    known = "; ".join(" and ".join(names) for names in _LAUNCHERS)
    raise ValueError(f"--run-id is missing: the same on all hosts. (No launcher has set one: {known}.)")


def configuration(text: str) -> dict[str, str]:
    """Return what ``--rdzv-conf`` says. Raises ValueError where it is malformed, or tells all a password."""
    conf = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals:
            raise ValueError(f"--rdzv-conf must be of the form key=value,key=value; '{part}' is not")
        conf[key] = value
    if "password" in conf:
        raise ValueError(
            "--rdzv-conf: all who can list the processes of a host could read the password; name a file that holds it "
            f"with password_file, or set the environment variable {config.PASSWORD_VARIABLE}"
        )
    return conf


def run(options: argparse.Namespace) -> int:
    """Do this host's part; return the exit code."""
    from benchmarks import worlds

    plan = plan_of(options)
    result = worlds.run(plan)
    if result is None:
        return 0
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    worlds.table(result).show()
    return int(any("failed" in row for row in result["rows"]))
