"""Keep-alives of the etcd v3 client, on real etcd servers."""

from __future__ import annotations

import asyncio

import pytest

from rendezvous.api import RendezvousConnectionError
from tests.etcd.clients import connected, on_a_loop, within


@on_a_loop
async def test_keep_alives_of_many_leases_over_a_broken_stream(port, proxy):
    async with connected(proxy.port) as client:
        leases = await asyncio.gather(*(client.grant(60, within()) for _ in range(300)))
        gone = leases[::50]
        await asyncio.gather(*(client.revoke(lease, within()) for lease in gone))
        for _ in range(3):
            renewals = [asyncio.ensure_future(client.keep_alive(lease, within())) for lease in leases]
            await asyncio.sleep(0.01)  # some are answered
            proxy.cut()
            proxy.restore()
            answers = await asyncio.gather(*renewals)
            assert {lease for lease, lives in zip(leases, answers, strict=True) if not lives} == set(gone)
        await asyncio.gather(*(client.revoke(lease, within()) for lease in leases))


@on_a_loop
async def test_one_impatient_keep_alive_leaves_the_others_their_time(port, proxy):
    async with connected(proxy.port) as client:
        leases = [await client.grant(60, within()) for _ in range(3)]
        proxy.stall()
        patient = [asyncio.ensure_future(client.keep_alive(lease, within())) for lease in leases]
        with pytest.raises(RendezvousConnectionError, match=r"no answer to (a|the) keep-alive"):
            await client.keep_alive(leases[0], within(0.3))
        cancelled = asyncio.ensure_future(client.keep_alive(leases[1], within()))
        await asyncio.sleep(0)
        cancelled.cancel()
        proxy.resume()
        assert all(await asyncio.gather(*patient))
