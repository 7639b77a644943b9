"""What happens in one run of the simulation. It is drawn from a seed: the same seed always gives the same run."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from enum import Enum

from rendezvous.coordinated import rules
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.rules import Limits, RankPolicy
from tests.simulation.network import Conditions

__all__ = [
    "CLOSED_ENDS",
    "CLOSED_RUN_ENDS",
    "FAULTS_END",
    "MUST_BE_STABLE",
    "RUN_ENDS",
    "Fault",
    "Habits",
    "Kind",
    "Plan",
    "Restoration",
]

FAULTS_END = 60.0
"""The time in seconds after which there are no more faults."""
CLOSED_ENDS = 85.0
"""The time in seconds at which no node may wait any more if the rendezvous was closed."""
MUST_BE_STABLE = 98.0
"""The time in seconds at which every node must be in a complete round or be a spare.

It is less than a join timeout after the end of the faults, so a node that waits in vain is still waiting.
"""
RUN_ENDS = 118.0
"""The time in seconds until which nothing may change any more."""
CLOSED_RUN_ENDS = 170.0
"""The time in seconds until which a closed run must stay closed while members run."""

_MANY_HOSTS = 64


class Kind(Enum):
    """The kinds of faults and other events."""

    CRASH = "crash"
    RESTART = "restart"
    FREEZE = "freeze"
    LEAVE = "leave"
    LEAVE_AND_JOIN = "leave and join"
    LATE = "late"
    REJOIN = "rejoin"
    CLOSE = "close"
    CANNOT_SERVE = "cannot serve"
    STEP_CLOCK = "step clock"
    CUT = "cut"
    CUT_AND_COMPACT = "cut and compact"
    CUT_REQUESTS = "cut requests"
    CUT_ANSWERS = "cut answers"
    SLOW = "slow"
    SILENT_KEEP_ALIVES = "silent keep-alives"
    BEHIND = "behind"
    NO_LEADER = "no leader"
    OVERLOAD = "overload"
    COMPACT = "compact"
    NO_SPACE = "no space"
    REFUSE_ONE = "refuse one"
    REFUSE_ALL = "refuse all"
    END_RUN_LEASE = "end run lease"
    PLANT = "plant"


# Of these a plan has some: the fewer kinds there are in one run, the more often each meets the others' consequences.
_KINDS = [kind for kind in Kind if kind not in (Kind.CRASH, Kind.CLOSE)]


@dataclass(frozen=True)
class Restoration:
    """When and how etcd is restored from a snapshot.

    Attributes:
        snapshot_at: the time of the snapshot, in seconds.
        at: the time at which etcd stops.
        down: seconds until it runs again.
        new_cluster_id: whether the restored cluster has another cluster id.
        pushed: whether other programs push the revision beyond the old one before any node sees it.
        during_roster: whether the snapshot is taken before a roster is written after ``at``, and etcd stops meanwhile.
    """

    snapshot_at: float
    at: float
    down: float
    new_cluster_id: bool
    pushed: bool
    during_roster: bool = False


@dataclass(frozen=True)
class Fault:
    """One event.

    Attributes:
        when: the time in seconds.
        kind: what happens.
        host: to which host. Events that concern etcd ignore it.
        seconds: for how long.
    """

    when: float
    kind: Kind
    host: int
    seconds: float


@dataclass(frozen=True)
class Habits:
    """What lasts until the end of the faults, besides the state of the network.

    Attributes:
        clock_rates: the clock of each process is wrong by at most this fraction.
        late_leases: by how many seconds at most a lease ends too late.
        serving: seconds that it takes at most to start what the workers connect to.
    """

    clock_rates: float = 0.0
    late_leases: float = 0.0
    serving: float = 0.05


@dataclass(frozen=True)
class Plan:
    """What happens in one run.

    Attributes:
        seed: the seed from which everything follows.
        limits: the configuration of the rules.
        other_limits: another configuration; see ``others``.
        others: on which hosts the other configuration applies.
        hosts: the number of hosts; each runs one node.
        faults: the events, in the order of time.
        kill_coordinator_at: ("before" or "after", n): the coordinator is killed before or after its n-th transaction.
        conditions: the state of the network.
        habits: what else lasts until the end of the faults.
        shard_nodes: the number of nodes in a shard of the roster. It is small, so that rosters have several shards.
        operations: the number of operations in a transaction. It is small, so that writes need several transactions.
        close_at_completion: whether another program closes the rendezvous before the roster of round 1 is written.
        strike_rank_0: (round, seconds): rank 0 of that round is cut off for that time, or killed if it is 0, before
            its bootstrap is written.
        restoration: when etcd is restored from a snapshot; None if it is not.
    """

    seed: int
    limits: Limits
    other_limits: Limits
    others: frozenset[int]
    hosts: int
    faults: tuple[Fault, ...]
    kill_coordinator_at: tuple[str, int] | None
    conditions: Conditions
    habits: Habits
    shard_nodes: int
    operations: int
    close_at_completion: bool
    strike_rank_0: tuple[int, float] | None
    restoration: Restoration | None = None

    def options(self) -> Options:
        """Return the options of all members.

        If the run lease is not renewed, it ends before the run does, but not during the faults.
        """
        return Options(
            run_ttl=100,
            run_keep_alive_interval=10.0,
            inline_nodes=self.shard_nodes,
            shard_nodes=self.shard_nodes,
            operations=self.operations,
        )

    def conditions_now(self) -> Conditions:
        """Return the state of the network at the beginning. It changes during the run."""
        return dataclasses.replace(self.conditions)

    def late_hosts(self) -> set[int]:
        """Return the hosts whose nodes do not start with the others."""
        return {fault.host for fault in self.faults if fault.kind is Kind.LATE}

    def limits_of(self, host: int) -> Limits:
        """Return the configuration of the rules on a host."""
        return self.other_limits if host in self.others else self.limits

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Return the plan of a seed. In one of ten, etcd is restored from a snapshot."""
        plan, rng = cls._without_restoration(seed), random.Random(f"restoration {seed}")
        if rng.random() >= 0.1:
            return plan
        # If the rendezvous is closed, the restored etcd may say otherwise. There are tests for that.
        faults = tuple(fault for fault in plan.faults if fault.kind is not Kind.CLOSE)
        restoration = _draw_restoration(rng)
        return dataclasses.replace(plan, faults=faults, close_at_completion=False, restoration=restoration)

    @classmethod
    def _without_restoration(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        large = rng.random() < 0.01
        limits = _draw_limits(rng, large)
        other_limits = _draw_limits(rng, large) if rng.random() < 0.1 else limits
        other_limits = dataclasses.replace(other_limits, reform_on_loss=limits.reform_on_loss)
        least = max(rules.least(limits), rules.least(other_limits))
        hosts = rng.randint(least, max(least, limits.max_nodes + 2))
        kinds = [Kind.CRASH, *rng.sample(_KINDS, rng.randint(1, 8))]
        if rng.random() < 0.15:
            kinds.append(Kind.CLOSE)
        return cls(
            seed,
            limits,
            other_limits,
            _draw_others(rng, hosts),
            hosts,
            _draw_faults(rng, kinds, hosts),
            (rng.choice(["before", "after"]), rng.randint(1, 12)) if rng.random() < 0.5 else None,
            Conditions(
                lost_requests=rng.choice([0.0, 0.0, 0.05, 0.2]),
                lost_answers=rng.choice([0.0, 0.0, 0.05, 0.2]),
                late_requests=rng.choice([0.0, 0.03, 0.1]),
                repeated_events=rng.choice([0.0, 0.3]),
                latency=rng.choice([0.002, 0.01, 0.3]),
            ),
            Habits(
                clock_rates=rng.choice([0.0, 0.0, 0.01, 0.2]),
                late_leases=rng.choice([0.0, 0.0, 0.5, 13.0]),
                serving=rng.choice([0.05, 0.05, 3.0, 12.0]),
            ),
            shard_nodes=rng.choice([1, 2, 128]),
            operations=100 if large else rng.choice([1, 2, 100]),
            close_at_completion=rng.random() < 0.1,
            strike_rank_0=(rng.randint(0, 2), rng.choice([0.0, 9.0, 15.0])) if rng.random() < 0.2 else None,
        )


def _draw_restoration(rng: random.Random) -> Restoration:
    at = rng.uniform(1.0, FAULTS_END - 5.0)
    return Restoration(
        snapshot_at=max(0.1, at - rng.choice([0.5, 3.0, 10.0, 30.0])),
        at=at,
        down=rng.choice([0.2, 2.0, 5.0]),
        new_cluster_id=rng.random() < 0.3,
        pushed=rng.random() < 0.5,
        during_roster=rng.random() < 0.3,
    )


def _draw_faults(rng: random.Random, kinds: list[Kind], hosts: int) -> tuple[Fault, ...]:
    faults = [
        Fault(
            rng.uniform(0, FAULTS_END),
            rng.choice(kinds),
            rng.randrange(hosts),
            rng.choice([0.3, 1.5, 4.0, 9.0, 15.0]),
        )
        for _ in range(rng.randint(0, 12))
    ]
    return tuple(sorted(faults, key=lambda fault: fault.when))


def _draw_others(rng: random.Random, hosts: int) -> frozenset[int]:
    """Return the hosts with the other configuration: one, or half of them, as of another job with the same run id."""
    half = range(hosts // 2) if rng.random() < 0.5 else range(hosts // 2, hosts)
    return frozenset(half if rng.random() < 0.5 else [rng.randrange(hosts)])


def _draw_limits(rng: random.Random, large: bool) -> Limits:
    unit = rng.choice([1, 1, 1, 2])
    most = rng.randint(8, _MANY_HOSTS - 2) if large else rng.randint(2, 7) * unit
    least = rng.randint(1, most - most % unit)
    return Limits(
        least,
        most,
        last_call=rng.choice([0.5, 2.0, 5.0]),
        rejoin_settle=rng.choice([0.0, 0.3, 1.0]),
        node_unit=unit,
        upscale=rng.random() < 0.8,
        reform_on_loss=rng.random() < 0.85,
        rank_policy=rng.choice(list(RankPolicy)),
    )
