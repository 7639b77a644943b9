"""The configuration of a member."""

from __future__ import annotations

from dataclasses import dataclass

from rendezvous.coordinated import rules
from rendezvous.coordinated.options import Options

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The configuration of a member.

    Attributes:
        run_id: the name of the job, for messages.
        limits: the configuration of the rules.
        interval: seconds between keep-alives of the node's lease.
        ttl: seconds without a keep-alive after which etcd ends the lease and the node is lost.
        options: intervals and limits that a user does not configure.
    """

    run_id: str
    limits: rules.Limits
    interval: float
    ttl: int
    options: Options = Options()  # noqa: RUF009, it is immutable
