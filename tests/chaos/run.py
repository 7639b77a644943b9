"""Carries out many experiments side by side, each on a cluster that no other one uses at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.clusters import ChaosCluster
from tests.chaos.experiment import Outcome, carry_out
from tests.chaos.faults import Fault

__all__ = ["run_all"]


_STARTS = 3
"""How often the start of a cluster is tried."""


class _Clusters:
    """Clusters that no experiment uses now, by what makes them."""

    def __init__(self) -> None:
        self._idle: dict[Callable[[], ChaosCluster], list[ChaosCluster]] = {}
        self._lock = threading.Lock()
        self.versions: set[str] = set()

    def take(self, make: Callable[[], ChaosCluster]) -> ChaosCluster:
        """Return a cluster, a new one if none is idle. One of another kind that is idle is closed for it."""
        with self._lock:
            idle = self._idle.get(make)
            if idle:
                return idle.pop()
            others = [clusters for clusters in self._idle.values() if clusters]
            unused = others[0].pop() if others else None
        if unused is not None:
            unused.__exit__()
        cluster = _start(make)
        self.versions.add(cluster.version)
        return cluster

    def give_back(self, make: Callable[[], ChaosCluster], cluster: ChaosCluster) -> None:
        with self._lock:
            self._idle.setdefault(make, []).append(cluster)

    def close(self) -> None:
        for clusters in self._idle.values():
            for cluster in clusters:
                cluster.__exit__()


def _start(make: Callable[[], ChaosCluster]) -> ChaosCluster:
    """Start a cluster. Another program may take a port that was free before etcd uses it: then others are tried."""
    for _ in range(_STARTS - 1):
        try:
            return make().__enter__()
        except (RuntimeError, TimeoutError) as exc:
            print(f"a cluster did not start: {str(exc)[-300:]}", flush=True)
    return make().__enter__()


def run_all(
    faults: Sequence[Fault], numbers: Iterable[int], seed: int, longest: float, jobs: int, out: Path
) -> tuple[list[Outcome], list[str]]:
    """Carry out the experiments ``numbers`` with each of ``faults``.

    Args:
        faults: the faults.
        numbers: with the seed and the fault, each decides what is left to chance.
        seed: see ``numbers``.
        longest: the longest suspension or cut, in seconds.
        jobs: how many experiments run side by side.
        out: the folder for the logs of those that are not faultless.

    Returns:
        The outcomes, and the versions of etcd.
    """
    clusters, outcomes = _Clusters(), []

    def experiment(fault: Fault, number: int) -> Outcome:
        cluster = clusters.take(fault.cluster)
        outcome = carry_out(fault, number, seed, longest, cluster, out / f"{fault.name}-{seed}-{number}")
        if outcome.faultless:
            clusters.give_back(fault.cluster, cluster)
        else:
            cluster.__exit__()
        return outcome

    tasks = [(fault, number) for fault in faults for number in numbers]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for outcome in pool.map(lambda task: experiment(*task), tasks):
                outcomes.append(outcome)
                print(_line(outcome), flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
            clusters.close()
    return outcomes, sorted(clusters.versions)


def _line(outcome: Outcome) -> str:
    what = f"{outcome.fault} {outcome.number} ({outcome.phase}, {outcome.lasted:.1f} s)"
    if outcome.faultless:
        again = "all had met before" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
        return f"{what}: {again}, then {outcome.afterwards:.1f} s"
    found = [f"round lost {each}" for each in outcome.lost]
    found += [f"wrong world: {each}" for each in outcome.wrong]
    found += [f"expelled: {each}" for each in outcome.expelled]
    if outcome.failed:
        found.append(f"not carried out: {outcome.failed}")
    return "\n    ".join([f"{what}:", *found])
