"""Where a fault happens: the cluster and the job of one experiment, and what the fault needs to hit them."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from rendezvous.coordinated.records import Keys
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.chaos.clusters import ChaosCluster
from tests.chaos.job import Job, Node
from tests.proxy import Proxy

__all__ = ["Failed", "Scene"]

_BOUND = 60.0


class Failed(Exception):
    """The experiment could not be carried out. This says nothing about the rendezvous."""


class Scene:
    """The surroundings of one experiment.

    Args:
        cluster: the etcd cluster.
        job: the nodes.
        proxies: what the nodes connect through, one for each member; empty if they connect to the members.
        rng: decides everything that is left to chance.
        longest: the maximum of the seconds that a process is suspended or a member is cut off.
        folder: for files.

    Attributes:
        began: when the fault began, on the monotonic clock; None if it has not.
        ended: when it ended.
        leases_end: from when on etcd may end leases that are renewed: a leader that was suspended for longer than the
            lease may do so when it continues, and a cluster that is restored does not know all leases.
        victim: the node that the fault hits; None if it hits none.
        story: what was done, with the seconds since the beginning.
    """

    def __init__(
        self,
        cluster: ChaosCluster,
        job: Job,
        proxies: list[Proxy],
        rng: random.Random,
        longest: float,
        folder: Path,
    ) -> None:
        self.cluster = cluster
        self.job = job
        self.proxies = proxies
        self.rng = rng
        self.longest = longest
        self.folder = folder
        self.began: float | None = None
        self.ended: float | None = None
        self.leases_end = float("inf")
        self.victim: Node | None = None
        self.story: list[str] = []
        self._created = time.monotonic()

    def say(self, what: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{time.monotonic() - self._created:7.3f} {what}")

    def begin(self, what: str) -> None:
        """Note that the fault begins now."""
        self.began = time.monotonic()
        self.say(what)

    def hold(self, shortest: float, longest: float) -> float:
        """Let the fault last for a random time; return it, in seconds."""
        seconds = self.rng.uniform(shortest, max(shortest, min(longest, self.longest)))
        self.say(f"for {seconds:.1f} s")
        time.sleep(seconds)
        return seconds

    # Who is hit.

    def any_member(self) -> int:
        return self.rng.choice(self.cluster.members)

    def follower(self) -> int:
        leader = self.cluster.leader
        return self.rng.choice([member for member in self.cluster.members if member != leader])

    def coordinator(self) -> Node:
        """Return the coordinator, as soon as there is one."""
        deadline = time.monotonic() + _BOUND
        while (found := self._find_coordinator()) is None:
            if time.monotonic() > deadline:
                raise Failed(f"no node became the coordinator within {_BOUND:g} s")
            time.sleep(0.02)
        return found

    def other_node(self) -> Node:
        """Return a node that does not coordinate."""
        coordinator = self.coordinator()
        deadline = time.monotonic() + _BOUND
        while not (others := [node for node in self.job.running if node is not coordinator]):
            if time.monotonic() > deadline:
                raise Failed(f"no other node was started within {_BOUND:g} s")
            time.sleep(0.02)
        return self.rng.choice(others)

    def _find_coordinator(self) -> Node | None:
        keys = Keys("/rendezvous", self.job.run_id)
        found = self.cluster.request(rpc_pb2.RangeRequest(key=keys.coordinator)).kvs
        if not found:
            return None
        own = self.cluster.request(rpc_pb2.RangeRequest(key=keys.node(found[0].lease))).kvs
        pid = json.loads(own[0].value)["pid"] if own else 0
        return next((node for node in self.job.running if node.pid == pid), None)
