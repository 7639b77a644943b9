"""What the hosts of a benchmark on a cluster do, and how the command line becomes a plan."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rendezvous import config
from rendezvous.api import RendezvousParameters
from rendezvous.bench.contenders import CONTENDERS, Contender

__all__ = ["DEFAULT_CONTENDER", "DEFAULT_ROUNDS", "Plan", "plan_of"]

DEFAULT_ROUNDS = 3
DEFAULT_CONTENDER = "etcd-v3"

_LAUNCHERS = ("PMIX_NAMESPACE",), ("SLURM_JOB_ID", "SLURM_STEP_ID")
"""Environment variables of launchers: equal in all processes of one start, and different in the next start."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and this host's part of it.

    Attributes:
        endpoint: the etcd cluster.
        run_id: the run id of the benchmark, by which the hosts find each other.
        nodes: the number of nodes on all hosts together.
        per_host: the number of nodes on each host.
        rounds: the number of worlds to form, one after another.
        contender: the implementation that is measured.
        conf: the configuration of the nodes.
        address: the address of this host.
    """

    endpoint: str
    run_id: str
    nodes: int
    per_host: int
    rounds: int
    contender: Contender
    conf: Mapping[str, str]
    address: str

    @property
    def hosts(self) -> int:
        """The number of hosts."""
        return self.nodes // self.per_host

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that must be equal on all hosts."""
        return {
            "nodes": self.nodes,
            "per_host": self.per_host,
            "rounds": self.rounds,
            "contender": self.contender.name,
        }

    @property
    def timeout(self) -> int:
        """Seconds within which all hosts must join, and within which each world must form."""
        return config.JOIN_TIMEOUT.read(self.parameters(self.run_id))

    def parameters(self, run_id: str, *keys: str) -> RendezvousParameters:
        """Return parameters of ``etcd-v3`` for a rendezvous of all hosts.

        Args:
            run_id: the run id of that rendezvous.
            keys: the configuration keys to pass on; all by default.
        """
        conf = {key: value for key, value in self.conf.items() if not keys or key in keys}
        return RendezvousParameters("etcd-v3", self.endpoint, run_id, self.hosts, self.hosts, self.address, **conf)


def plan_of(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Plan:
    """Return the plan that the command line asks for.

    Args:
        options: the options of ``rendezvous bench``.
        environment: the environment, which may name the launcher's job.

    Raises:
        ValueError: an option is missing, malformed, or contradicts another one.
    """
    nodes, per_host = options.nodes, options.per_host
    if nodes % per_host:
        below = nodes - nodes % per_host
        choices = " or ".join(str(number) for number in (below, below + per_host) if number)
        raise ValueError(
            f"--nodes {nodes} is not a multiple of --per-host {per_host}, but all hosts run the same number of nodes; "
            f"use --nodes {choices}"
        )
    if options.contender not in CONTENDERS:
        raise ValueError(f"--contender '{options.contender}' is unknown; known contenders: {'; '.join(CONTENDERS)}")
    plan = Plan(
        options.endpoint,
        options.run_id or _run_id_of_launcher(environment),
        nodes,
        per_host,
        options.rounds,
        CONTENDERS[options.contender],
        _configuration(options.rdzv_conf),
        options.local_addr or socket.getfqdn(),
    )
    _ = plan.timeout  # raises ValueError if it is malformed
    return plan


def _run_id_of_launcher(environment: Mapping[str, str]) -> str:
    for names in _LAUNCHERS:
        values = [environment.get(name, "") for name in names]
        if all(values):
            return ".".join(values)
    known = "; ".join(" and ".join(names) for names in _LAUNCHERS)
    raise ValueError(
        f"--run-id is missing, and no launcher has set a variable to use instead ({known}); "
        "give the same run id on all hosts"
    )


def _configuration(text: str) -> dict[str, str]:
    conf = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals:
            raise ValueError(f"--rdzv-conf: '{part}' is not of the form key=value; write key=value,key=value")
        conf[key] = value
    if "password" in conf:
        raise ValueError(
            "--rdzv-conf: everyone who can list the processes of a host can read a password on the command line; write "
            f"it into a file and name that with password_file, or set the environment variable "
            f"{config.PASSWORD_VARIABLE}"
        )
    return conf
