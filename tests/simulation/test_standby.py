"""A node that stands by has the whole time to join again from the moment that a place is free."""

from __future__ import annotations

import asyncio
import random

import pytest

from rendezvous.coordinated.member import Member, Settings
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Limits
from tests.simulation.etcd import Etcd
from tests.simulation.network import Link, Weather
from tests.simulation.virtual import VirtualLoop

pytestmark = pytest.mark.both_twins

TIMEOUT = 3.0


async def scenario(life: float) -> None:
    """Two nodes form a full world, a third stands by, and one of the two dies after ``life`` seconds."""
    etcd, weather, keys = Etcd(), Weather(latency=0.1), Keys("/p", "run")
    settings = Settings("run", Limits(2, 2, last_call=0.5), 1.0, 2)

    def node(number: int) -> tuple[Link, Member]:
        rng = random.Random(number)
        link = Link(etcd, weather, None, rng)
        return link, Member(link, keys, NodeRecord(f"node-{number}", number, 0), settings, rng)

    (_, survivor), (link, doomed), (_, spare) = map(node, range(3))
    first = asyncio.ensure_future(survivor.join(TIMEOUT, lambda: 29500))
    await asyncio.sleep(0.5)  # it coordinates, so that a standby hears of nothing until the loss
    await asyncio.gather(first, doomed.join(TIMEOUT, lambda: 29500))
    standing_by = asyncio.ensure_future(spare.join(TIMEOUT, lambda: 29500))
    await asyncio.sleep(life)
    link.dead = True
    while not survivor.num_nodes_waiting():
        await asyncio.sleep(0.1)
    places = [place for place, _ in await asyncio.gather(survivor.join(TIMEOUT, lambda: 29500), standing_by)]
    assert sorted((place.rank, place.world_size) for place in places) == [(0, 2), (1, 2)]


@pytest.mark.parametrize("tenths", range(50, 80))
def test_a_spare_has_the_whole_time_to_join_whenever_its_place_is_free(tenths: int):
    loop = VirtualLoop()
    try:
        loop.run_until_complete(scenario(tenths / 10))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
