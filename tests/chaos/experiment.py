"""One experiment: a job of four nodes meets a fault, while its first round forms or while it runs.

    forming   The nodes start at random moments within two seconds, and the fault begins at another.
    running   The fault begins at a random moment of a round that is complete. If it hits etcd, another node starts at a
              random moment while it lasts, so that the job has to form the next round meanwhile.

After the fault all nodes that run must meet in one world within a bound. Then one more node starts, and all must meet
again: so a node that hears nothing any more is found.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from tests.chaos.clusters import ChaosCluster
from tests.chaos.faults import Fault
from tests.chaos.job import Job, Node
from tests.chaos.judge import ended, lost_leases, wrong_worlds
from tests.chaos.scene import Failed, Scene
from tests.proxy import Proxy

__all__ = ["Outcome", "carry_out"]

NODES = 4

BOUND = 60.0
"""Seconds, after the fault has ended, within which all nodes must be in one world."""

GRACE = 20.0
"""Seconds, beyond the time to live of its lease, after which the others must go on without a suspended node."""


@dataclass
class Outcome:
    """What came out of an experiment.

    Attributes:
        fault: the name of the fault.
        number: the number of the experiment.
        phase: ``forming`` or ``running``.
        lasted: seconds that the fault lasted.
        lost: rounds that should have formed and did not: a sentence for each.
        wrong: what was wrong with the worlds.
        expelled: healthy nodes that ended, or lost their leases without a reason.
        leases: healthy nodes that lost their leases when etcd may end them: see :class:`Scene`.
        failed: why the experiment could not be carried out; empty if it was.
        seconds: the seconds until all nodes had met again. They begin with the fault, or with the join of the last
            node if that was later, or with the end of the fault if the job may form no round before. None if all had
            met before they began.
        without: seconds after which the others went on without a suspended node; None if there was none.
        afterwards: seconds from the start of one more node after the fault until all had met again.
    """

    fault: str
    number: int
    phase: str
    lasted: float = 0.0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    expelled: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    failed: str = ""
    seconds: float | None = None
    without: float | None = None
    afterwards: float | None = None

    @property
    def faultless(self) -> bool:
        return not (self.lost or self.wrong or self.expelled or self.failed)


class _RoundLostError(Exception):
    """A round did not form within its bound."""


def carry_out(fault: Fault, number: int, seed: int, longest: float, cluster: ChaosCluster, folder: Path) -> Outcome:
    """Carry out an experiment. What it did and all logs are kept in ``folder`` unless the outcome is faultless."""
    rng = random.Random(f"{seed} {fault.name} {number}")
    outcome = Outcome(fault.name, number, rng.choice(["forming", "running"]))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(port)) for port in cluster.ports] if fault.proxied else []
        job = Job(_params(fault, number, seed, cluster, proxies, rng), folder)
        stack.callback(job.stop)
        scene = Scene(cluster, job, proxies, rng, longest, folder)
        experiment = _Experiment(fault, scene, outcome)
        try:
            experiment.run()
        except _RoundLostError as exc:
            outcome.lost.append(str(exc))
        except Exception as exc:
            outcome.failed = f"{type(exc).__name__}: {exc}"
        job.read()
    histories = [node.history for node in job.nodes]
    outcome.wrong = wrong_worlds(histories)
    leases = lost_leases(histories)
    outcome.expelled = ended(histories) + [what for when, what in leases if when < scene.leases_end]
    outcome.leases = [what for when, what in leases if when >= scene.leases_end]
    _clean_up(cluster, scene, outcome, folder)
    return outcome


def _params(
    fault: Fault, number: int, seed: int, cluster: ChaosCluster, proxies: list[Proxy], rng: random.Random
) -> dict[str, object]:
    interval, attempts = fault.lease
    return {
        "backend": "etcd-v3",
        "endpoint": ",".join(proxy.endpoint for proxy in proxies) or cluster.endpoint,
        "run_id": f"{fault.name}-{seed}-{number}",
        "min_nodes": rng.choice([2, 3]),
        "max_nodes": 8,
        "join_timeout": 180,
        "last_call_timeout": rng.choice([1, 2]),
        "keep_alive_interval": interval,
        "keep_alive_max_attempt": attempts,
        **cluster.config(),
    }


def _clean_up(cluster: ChaosCluster, scene: Scene, outcome: Outcome, folder: Path) -> None:
    if outcome.faultless:
        shutil.rmtree(folder)
        root = f"/rendezvous/{scene.job.run_id}/".encode()
        try:
            cluster.request(rpc_pb2.DeleteRangeRequest(key=root, range_end=prefix_end(root)))
        except grpc.RpcError as exc:
            outcome.failed = f"the cluster cannot be used again: {exc}"
        return
    faults = [*outcome.lost, *outcome.wrong, *outcome.expelled, outcome.failed]
    (folder / "story.txt").write_text("\n".join([outcome.phase, *scene.story, *filter(None, faults)]) + "\n")
    cluster.copy_logs(folder)


class _Experiment:
    """The course of one experiment."""

    def __init__(self, fault: Fault, scene: Scene, outcome: Outcome) -> None:
        self._fault = fault
        self._scene = scene
        self._job = scene.job
        self._outcome = outcome

    def run(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            try:
                last_start = self._meet_fault(pool)
            finally:
                pool.shutdown()
        scene, outcome = self._scene, self._outcome
        assert scene.began is not None
        assert scene.ended is not None
        outcome.lasted = scene.ended - scene.began
        since = max(scene.began, last_start)
        if self._fault.stops_etcd or (scene.victim is not None and scene.victim.history.freezes):
            since = scene.ended
        settled = self._settle("after the fault", scene.ended + BOUND)
        outcome.seconds = settled - since if settled > since else None
        scene.say(f"the next node starts; {self._last_round()}")
        self._job.start()
        since = time.monotonic()
        outcome.afterwards = self._settle("when another node had started", since + BOUND) - since

    def _meet_fault(self, pool: ThreadPoolExecutor) -> float:
        """Start the nodes, let the fault happen, and wait until it has ended; return when the last node joined."""
        rng = self._scene.rng
        if self._outcome.phase == "forming":
            starts, delay = sorted(rng.uniform(0, 2) for _ in range(NODES)), rng.uniform(0, 2.5)
        else:
            for _ in range(NODES):
                self._job.start()
            self._settle("before the fault", time.monotonic() + BOUND)
            self._scene.say(f"the job runs; {self._last_round()}")
            delay = rng.uniform(0, 1.5)
            starts = [] if self._fault.hits_node else [delay + rng.uniform(0, 4)]
        began = self._connect(starts) if self._fault.refuses_nodes else time.monotonic()
        happening = self._happen(pool, delay)
        for start in starts:
            self._watch(happening, lambda start=start: time.monotonic() >= began + start)
            name = "another node joins" if self._fault.refuses_nodes else f"{self._job.start().name} starts"
            self._scene.say(name)
        self._watch(happening, happening.done)
        happening.result()
        self._scene.ended = time.monotonic()
        self._scene.cluster.mend()
        self._scene.say("the fault has ended")
        self._check_without()
        return began + max(starts, default=0.0)

    def _connect(self, starts: Sequence[float]) -> float:
        """Start nodes that join at ``starts``, and wait until they are connected; return when these times begin."""
        began = time.monotonic() + 2
        nodes = [self._job.start(began + start) for start in starts]
        while not all(node.history.events for node in nodes):
            if time.monotonic() > began + BOUND:
                raise Failed("the nodes did not connect")
            self._job.read()
            time.sleep(0.05)
        time.sleep(max(0.0, began - time.monotonic()))
        return began

    def _happen(self, pool: ThreadPoolExecutor, delay: float) -> Future[None]:
        def happen() -> None:
            time.sleep(delay)
            self._fault.act(self._scene)

        return pool.submit(happen)

    def _watch(self, happening: Future[None], condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, and note when the others have met without a node that is suspended."""
        scene, outcome = self._scene, self._outcome
        while not condition():
            self._job.read()
            victim = scene.victim
            frozen = victim is not None and victim.history.is_frozen(time.monotonic())
            if frozen and outcome.without is None and not happening.done() and self._job.is_settled(self._job.running):
                assert scene.began is not None
                outcome.without = time.monotonic() - scene.began
                scene.say("the others have met")
            time.sleep(0.05)

    def _check_without(self) -> None:
        """Raise if the others did not go on without a node that was suspended for long."""
        victim, outcome = self._scene.victim, self._outcome
        if victim is None or outcome.without is not None:
            return
        interval, attempts = self._fault.lease
        if any(end - begin > interval * attempts + GRACE for begin, end in victim.history.freezes):
            raise _RoundLostError(f"the others did not go on without {victim.name}: {self._states()}")

    def _settle(self, when: str, deadline: float) -> float:
        """Wait until all nodes that run have met in one world; return when they had."""
        while not self._job.is_settled(expected := self._job.running):
            self._job.read()
            ended = [f"{node.name} ended: {node.error}" for node in expected if node.error]
            if ended or time.monotonic() > deadline:
                what = "; ".join(ended) or f"the nodes did not meet in time: {self._states()}"
                raise _RoundLostError(f"{when}: {what}")
            time.sleep(0.05)
        return max(node.history.events[-1]["time"] for node in expected)

    def _states(self) -> str:
        """Return the last report of each node, for messages."""

        def state(node: Node) -> str:
            last = node.history.events[-1] if node.history.events else {"event": "starts", "time": 0}
            return f"{node.name} {last['event']} {last.get('round', '')}".rstrip()

        return ", ".join(map(state, self._job.nodes))

    def _last_round(self) -> str:
        worlds = [world for node in self._job.running if (world := node.world) is not None]
        return f"round {worlds[0][0]} of {worlds[0][1]}" if worlds else "no round"
