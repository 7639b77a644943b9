"""Keep-alives of the etcd v3 client, on real etcd servers."""

from __future__ import annotations

import asyncio
import random

import pytest

from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated.session import Session
from tests.etcd.clients import connected, on_a_loop, until, within


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


@pytest.mark.parametrize("frozen", ["follower", "leader"])
@pytest.mark.parametrize("ttl", [3, 6])
@on_a_loop
async def test_a_short_lease_survives_a_frozen_member(members, ttl, frozen):
    member = (members.leader + (frozen == "follower")) % 3
    async with connected(*members.endpoints[member:], *members.endpoints[:member]) as client:
        home, lost, renewed = client.target, [], []
        session = await Session.open(client, ttl, ttl / 3, lambda: lost.append(True), random.Random(), within())
        answered = session._answered

        def count(exists):
            renewed.append(client.target)
            answered(exists)

        session._answered = count
        await until(lambda: renewed == [home], "the lease is renewed")
        members.pause(member)
        elsewhere = 0

        def outlives():
            nonlocal elsewhere
            elsewhere = len([target for target in renewed if target != home])
            return lost or elsewhere == 4

        await until(outlives, "the lease is renewed elsewhere, for longer than its time to live")
        assert not lost
        assert await client.keep_alive(session.lease, within())
        await session.close(within())


@on_a_loop
async def test_an_error_in_one_callback_leaves_the_others(port, caplog):
    async with connected(port) as client:
        leases = [await client.grant(60, within()) for _ in range(2)]
        answers = []

        def fail(_):
            raise RuntimeError("broken on purpose")

        client.renew(leases[0], fail, fail)
        client.renew(leases[0], answers.append, answers.append)
        client.renew(leases[1], answers.append, answers.append)
        await until(lambda: answers == [True, True], "the others are called")
        assert "broken on purpose" in caplog.text
        assert await client.keep_alive(leases[0], within())
