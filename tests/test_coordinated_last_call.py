"""The timer of the last call."""

from __future__ import annotations

import asyncio

from rendezvous.coordinated.last_call import LastCallTimer


def test_what_etcd_confirmed_in_an_earlier_last_call_does_not_count():
    async def scenario() -> None:
        timer = LastCallTimer()
        assert timer.measure(5) is None
        timer.begin()
        assert not timer.measure(5).confirmed
        timer.confirm(5, no_other=True)
        assert timer.measure(5).confirmed
        assert not timer.measure(6).confirmed  # another node has joined since then
        timer.end()
        assert timer.measure(6) is None
        timer.confirm(6, no_other=True)
        timer.begin()
        assert not timer.measure(6).confirmed

    asyncio.run(scenario())


def test_the_time_without_another_node_begins_anew_with_each_node():
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        now = 100.0
        loop.time = lambda: now
        timer = LastCallTimer()
        timer.begin()
        now = 103.0
        assert timer.measure(0)[:2] == (3.0, 3.0)
        assert timer.measure(1)[:2] == (3.0, 0.0)
        now = 104.0
        assert timer.measure(1)[:2] == (4.0, 1.0)
        timer.confirm(1, no_other=False)  # etcd has a node that the watch has not reported yet
        assert timer.measure(1)[:2] == (4.0, 0.0)

    asyncio.run(scenario())
