"""The store in the simulation: each change is applied once, even if requests and answers are lost or repeated."""

from __future__ import annotations

import asyncio
import random

import pytest

from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.store import AsyncEtcdStore
from tests.simulation.etcd import Etcd
from tests.simulation.network import Link, Weather
from tests.simulation.virtual import VirtualLoop

PATIENCE = 10_000.0


async def use(number: int, store: AsyncEtcdStore, nodes: int, results: dict[str, list[object]]) -> None:
    """Do what the nodes of a round do with the store."""
    for _ in range(3):
        results["sums"].append(await store.add("n", 1, PATIENCE))
    results["sums"] += await asyncio.gather(store.add("n", 1, PATIENCE), store.add("n", 1, PATIENCE))
    for amount in (number, 1, -3):
        await store.add("m", amount, PATIENCE)
    await store.append("text", "x", PATIENCE)
    results["winners"].append(await store.compare_set("leader", "", str(number), PATIENCE))
    await store.multi_set([f"w/{number}", f"v/{number}"], ["1", "2"], PATIENCE)
    results["deletions"].append(await store.delete_key("doomed", PATIENCE))
    if await store.add("arrived", 1, PATIENCE) == nodes:
        await store.set("all", "1", PATIENCE)
    keys = ["all", *(f"w/{other}" for other in range(nodes))]
    await store.wait(keys, PATIENCE)
    assert len(await store.multi_get(keys, PATIENCE)) == nodes + 1


async def scenario(seed: int) -> None:
    rng = random.Random(seed)
    etcd = Etcd()
    weather = Weather(loss=0.1, amnesia=0.25, storm=0.05, repeats=0.3)
    nodes = rng.randint(2, 20)
    stores = [
        AsyncEtcdStore(
            Link(etcd, weather, None, random.Random(f"{seed}/{i}")), Keys("/p", "run"), 0, 0, 1, i, random.Random(i)
        )
        for i in range(nodes)
    ]
    results: dict[str, list[object]] = {"sums": [], "winners": [], "deletions": []}
    await stores[0].set("doomed", "1", PATIENCE)

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
    found = await stores[0].multi_get(["n", "m", "arrived", "text"], PATIENCE)
    assert found == [*(b"%d" % each for each in sums), b"x" * nodes]


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_each_change_is_applied_once(first):
    for seed in range(first, first + 20):
        loop = VirtualLoop()
        try:
            loop.run_until_complete(scenario(seed))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
