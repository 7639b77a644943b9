"""When a place becomes free, a spare has its whole join timeout to become a member."""

from __future__ import annotations

import asyncio
import random

import pytest

from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import run

pytestmark = pytest.mark.both_twins

TIMEOUT = 3.0


async def scenario(life: float) -> None:
    """Two nodes form a full round, the third one is a spare, and one of the two is killed after ``life`` seconds."""
    etcd, conditions, keys = Etcd(), Conditions(latency=0.1), Keys("/p", "run")
    settings = Settings("run", Limits(2, 2, last_call=0.5), 1.0, 2)

    def node(number: int) -> tuple[Link, Member]:
        rng = random.Random(number)
        link = Link(etcd, conditions, None, rng)
        return link, Member(link, keys, NodeRecord(f"node-{number}", number, 0), settings, rng)

    (_, survivor), (link, killed), (_, spare) = map(node, range(3))
    first = asyncio.ensure_future(survivor.join(TIMEOUT, lambda: 29500))
    await asyncio.sleep(0.5)  # it is the coordinator, so the spare receives no update until the loss
    await asyncio.gather(first, killed.join(TIMEOUT, lambda: 29500))
    joining = asyncio.ensure_future(spare.join(TIMEOUT, lambda: 29500))
    await asyncio.sleep(life)
    link.dead = True
    while not survivor.num_nodes_waiting():
        await asyncio.sleep(0.1)
    places = [place for place, _ in await asyncio.gather(survivor.join(TIMEOUT, lambda: 29500), joining)]
    assert sorted((place.rank, place.world_size) for place in places) == [(0, 2), (1, 2)]


@pytest.mark.parametrize("tenths", range(50, 80))
def test_a_spare_has_its_whole_join_timeout_when_a_place_becomes_free(tenths: int):
    run(scenario(tenths / 10))
