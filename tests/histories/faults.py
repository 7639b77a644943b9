"""What happens to the network and to the members of etcd while a history is recorded."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.etcd.clusters import Cluster
from tests.proxy import Proxy

Proxies = Sequence[Sequence[Proxy]]
"""For each worker, a proxy before each member."""


class Faults:
    """Makes faults, one of the network and one of the members at a time, as a context manager.

    Args:
        cluster: etcd.
        proxies: between the workers and etcd.
        seed: decides which faults, and when.
        members: whether members of etcd are killed and paused too.
        pause: the least and the most seconds between two faults.

    Attributes:
        counts: how many faults of each kind were made.
    """

    def __init__(
        self,
        cluster: Cluster,
        proxies: Proxies,
        seed: str,
        members: bool = True,
        pause: tuple[float, float] = (0.05, 0.4),
    ) -> None:
        self._cluster, self._proxies, self._pause = cluster, proxies, pause
        self.counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        kinds: dict[str, Sequence[Callable[[random.Random], None]]] = {
            "network": (self._cut, self._lose_answers, self._delay_requests, self._stall)
        }
        if members:
            kinds["members"] = (self._kill, self._suspend, self._move_leader)
        self._threads = [
            threading.Thread(target=self._disturb, args=(each, random.Random(f"{seed}/{name}")))
            for name, each in kinds.items()
        ]

    def __enter__(self) -> Faults:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the faults, and repair everything."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._cluster.mend()
        if self._errors:
            raise self._errors[0]

    def _disturb(self, kinds: Sequence[Callable[[random.Random], None]], rng: random.Random) -> None:
        try:
            while not self._over.wait(rng.uniform(*self._pause)):
                fault = rng.choice(kinds)
                fault(rng)
                self.counts[fault.__name__.strip("_").replace("_", " ")] += 1
        except BaseException as exc:
            self._errors.append(exc)

    # The network: between one worker or all of them, and one member or all of them.

    def _some(self, rng: random.Random) -> list[Proxy]:
        workers = self._proxies if rng.random() < 0.5 else [rng.choice(self._proxies)]
        member = rng.choice((None, *self._cluster.members))
        return [proxy for each in workers for i, proxy in enumerate(each) if member in (None, i)]

    def _cut(self, rng: random.Random) -> None:
        """Break connections."""
        proxies = self._some(rng)
        for proxy in proxies:
            proxy.cut()
        time.sleep(rng.uniform(0.0, 0.5))
        for proxy in proxies:
            proxy.restore()

    def _lose_answers(self, rng: random.Random) -> None:
        """Deliver requests, but no answers; then break the connections."""
        proxies = self._some(rng)
        for proxy in proxies:
            proxy.stall(requests=False)
        time.sleep(rng.uniform(0.02, 0.6))
        for proxy in proxies:
            proxy.cut()
            proxy.resume()
            proxy.restore()

    def _delay_requests(self, rng: random.Random) -> None:
        """Keep requests back until their senders have sent them to another member; deliver them then."""
        member = rng.choice(self._cluster.members)
        proxies = [each[member] for each in self._proxies]
        for proxy in proxies:
            proxy.stall(answers=False)
        time.sleep(rng.uniform(0.5, 1.2))
        for proxy in proxies:
            proxy.strand()

    def _stall(self, rng: random.Random) -> None:
        """Forward nothing for a while."""
        proxies = self._some(rng)
        for proxy in proxies:
            proxy.stall()
        time.sleep(rng.uniform(0.1, 1.0))
        for proxy in proxies:
            proxy.resume()

    # The members: one at a time, so that a majority is left.

    def _kill(self, rng: random.Random) -> None:
        """End a member with SIGKILL, and start it again."""
        member = rng.choice(self._cluster.members)
        self._cluster.kill(member)
        time.sleep(rng.uniform(0.1, 1.0))
        self._cluster.mend()

    def _suspend(self, rng: random.Random) -> None:
        """Suspend a member with SIGSTOP."""
        member = rng.choice(self._cluster.members)
        self._cluster.pause(member)
        time.sleep(rng.uniform(0.3, 1.5))
        self._cluster.resume(member)

    def _move_leader(self, rng: random.Random) -> None:
        """Make another member the leader."""
        self._cluster.have_lead(rng.choice(self._cluster.members))
