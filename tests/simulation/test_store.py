"""The store in the simulation: each change is applied once, even if requests and answers are lost or repeated."""

from __future__ import annotations

import asyncio
import random

import pytest

from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store import AsyncEtcdStore
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import run

DEADLINE = 10_000.0


async def use(number: int, store: AsyncEtcdStore, nodes: int, results: dict[str, list[object]]) -> None:
    """Do what the nodes of a round do with the store."""
    for _ in range(3):
        results["sums"].append(await store.add("n", 1, DEADLINE))
    results["sums"] += await asyncio.gather(store.add("n", 1, DEADLINE), store.add("n", 1, DEADLINE))
    for amount in (number, 1, -3):
        await store.add("m", amount, DEADLINE)
    await store.append("text", "x", DEADLINE)
    results["winners"].append(await store.compare_set("leader", "", str(number), DEADLINE))
    await store.multi_set([f"w/{number}", f"v/{number}"], ["1", "2"], DEADLINE)
    results["deletions"].append(await store.delete_key("doomed", DEADLINE))
    if await store.add("arrived", 1, DEADLINE) == nodes:
        await store.set("all", "1", DEADLINE)
    keys = ["all", *(f"w/{other}" for other in range(nodes))]
    await store.wait(keys, DEADLINE)
    assert len(await store.multi_get(keys, DEADLINE)) == nodes + 1


async def scenario(seed: int) -> None:
    rng = random.Random(seed)
    etcd = Etcd()
    conditions = Conditions(lost_requests=0.1, lost_answers=0.25, overload=0.05, repeated_events=0.3)
    nodes = rng.randint(2, 20)
    stores = [
        AsyncEtcdStore(
            Link(etcd, conditions, None, random.Random(f"{seed}/{i}")), Keys("/p", "run"), 0, 0, 1, i, random.Random(i)
        )
        for i in range(nodes)
    ]
    results: dict[str, list[object]] = {"sums": [], "winners": [], "deletions": []}
    await stores[0].set("doomed", "1", DEADLINE)

    async def elections() -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            etcd.change_leader()

    task = asyncio.ensure_future(elections())
    await asyncio.gather(*(use(i, store, nodes, results) for i, store in enumerate(stores)))
    task.cancel()
    assert sorted(results["sums"]) == list(range(1, 5 * nodes + 1))  # type: ignore[type-var]
    assert len(set(results["winners"])) == 1
    assert results["deletions"].count(True) == 1
    sums = [5 * nodes, sum(range(nodes)) - 2 * nodes, nodes]
    found = await stores[0].multi_get(["n", "m", "arrived", "text"], DEADLINE)
    assert found == [*(b"%d" % each for each in sums), b"x" * nodes]


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_each_change_is_applied_once(first):
    for seed in range(first, first + 20):
        run(scenario(seed))
