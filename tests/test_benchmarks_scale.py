"""The model of the benchmark scale: its queues in cases that can be calculated by hand, and small worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from benchmarks import capacities, scale, simulated
from benchmarks.model import GRANT, KINDS, READ, SERIALIZABLE, WATCH, WRITE, Cost, Prices
from benchmarks.queueing import Cores, Station
from benchmarks.simulated import Machine
from tests.simulation.virtual import Deadlock, LargeLoop, VirtualLoop

FREE = dict.fromkeys(("etcd_byte", "client_byte", "etcd_key", "client_key", "node", "completion", "join"), 0.0)


def prices(etcd: float = 1e-4, client: float = 1e-4, latency: float = 1e-3, **others: float) -> Prices:
    return Prices(dict.fromkeys(KINDS, Cost(etcd, client, latency)), **{**FREE, **others})


@pytest.fixture(params=[VirtualLoop, LargeLoop])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a coroutine on a virtual loop."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = request.param()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    return run


async def finish(*work: tuple[Station, float]) -> list[float]:
    """Submit work all at once; return when each piece is done."""
    loop = asyncio.get_running_loop()
    done = [loop.create_future() for _ in work]
    for (station, seconds), future in zip(work, done, strict=True):
        station.submit("work", seconds, lambda future=future: future.set_result(loop.time()))
    return await asyncio.gather(*done)


# The queues.


def test_requests_take_their_number_divided_by_the_capacity(run):
    async def scenario() -> tuple[list[float], float]:
        station = Station(Cores(1))
        return await finish(*[(station, 1 / 500)] * 1000), station.busy["work"]

    times, busy = run(scenario())
    assert times[0] == pytest.approx(1 / 500)
    assert times[-1] == pytest.approx(1000 / 500)
    assert busy == pytest.approx(times[-1])  # it was busy all the time


def test_a_wide_station_uses_all_cores_and_a_narrow_one_uses_one(run):
    async def scenario() -> tuple[list[float], list[float]]:
        wide = await finish(*[(Station(Cores(2), 2), 1.0)] * 4)
        begin = asyncio.get_running_loop().time()
        narrow = await finish(*[(Station(Cores(2)), 1.0)] * 4)
        return wide, [time - begin for time in narrow]

    wide, narrow = run(scenario())
    assert wide == pytest.approx([1, 1, 2, 2])
    assert narrow == pytest.approx([1, 2, 3, 4])


def test_stations_share_a_core_fairly(run):
    async def scenario() -> list[float]:
        cores = Cores(1)
        one, other = Station(cores), Station(cores)
        return await finish(*[(one, 1.0)] * 3, *[(other, 1.0)] * 3)

    assert run(scenario()) == pytest.approx([1, 3, 5, 2, 4, 6])


def test_three_processes_on_two_cores_take_all_work_divided_by_two(run):
    async def scenario() -> list[float]:
        cores = Cores(2)
        stations = [Station(cores), Station(cores), Station(cores, 2)]
        return await finish(*[(station, 0.001) for station in stations for _ in range(1000)])

    assert max(run(scenario())) == pytest.approx(3000 * 0.001 / 2, rel=0.01)


def test_a_station_serves_again_after_it_was_idle(run):
    async def scenario() -> list[float]:
        station = Station(Cores(1))
        await finish((station, 1.0))
        await asyncio.sleep(1.0)
        return await finish((station, 1.0))

    assert run(scenario()) == pytest.approx([3.0])


# The event loop.


def test_timers_fire_in_order_and_cancelled_ones_do_not():
    loop = LargeLoop()
    fired: list[str] = []

    async def scenario() -> None:
        loop.call_later(2, fired.append, "third")
        loop.call_later(1, fired.append, "first")
        loop.later(1, fired.append, "second")
        loop.call_later(1.5, fired.append, "never").cancel()
        await asyncio.sleep(3)

    loop.run_until_complete(scenario())
    assert fired == ["first", "second", "third"]
    assert loop.time() == 3
    with pytest.raises(Deadlock):
        loop.run_until_complete(asyncio.Event().wait())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


# Worlds.


def test_a_world_of_one_node_takes_its_requests_one_after_the_other():
    found = simulated.run(Machine(prices(etcd=0.0, client=0.0, latency=0.1)), 1, formation_only=True)
    # The lease and the watch at the same time; the transaction; then, as the coordinator: its watch, ctl/, the run
    # lease, the nodes, and the outcome, which the node receives half a second after etcd has it; then, as rank 0, the
    # bootstrap.
    assert found["formation"]["seconds"] == pytest.approx((1 + 1 + 4 + 0.5 + 0.5 + 1) * 0.1)


def test_a_world_takes_at_least_its_work_at_the_capacity_of_etcd():
    machine = Machine(prices(etcd=1 / 1000, client=0.0, latency=0.0))
    formation = simulated.run(machine, 200, formation_only=True)["formation"]
    requests = sum(formation["per_node"][kind] for kind in (GRANT, WRITE, WATCH, READ))
    assert requests == pytest.approx(3, abs=0.05)
    assert formation["seconds"] > 200 * requests / 1000
    assert sum(formation["etcd_busy"].values()) == pytest.approx(1.0, abs=0.05)


def test_a_world_is_the_same_each_time_for_a_seed():
    machine = Machine(prices())
    first, second, other = (simulated.run(machine, 30, seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert first["loss"]["seconds"] < 1.0
    assert first["steady"]["keep_alives_per_second"] == pytest.approx(30 / 4.5, rel=0.2)


def test_the_nodes_of_a_large_world_read_their_shards():
    formation = simulated.run(Machine(prices(etcd=1e-5)), 1500, formation_only=True)["formation"]
    assert formation["per_node"][SERIALIZABLE] == 1.0


def test_nodes_that_share_two_cores_with_etcd_need_all_their_work_divided_by_two():
    machine = Machine(prices(etcd=2e-4, client=3e-4, latency=0.0), shared=True)
    formation = simulated.run(machine, 100, formation_only=True)["formation"]
    pieces = sum(formation["per_node"].get(kind, 0.0) for kind in KINDS)
    assert formation["seconds"] == pytest.approx(100 * pieces * 5e-4 / 2, rel=0.1)


def test_a_request_that_times_out_is_sent_again():
    slow = prices()
    slow.kinds[GRANT] = Cost(0.1, 0.0, 0.0)
    formation = simulated.run(Machine(slow), 80, formation_only=True)["formation"]
    assert formation["per_node"][GRANT] > 1.3  # those that were answered within 5 s were not


# From measurements to prices.


def measured(seconds: float = 1e-3) -> dict[str, Any]:
    stage = {"etcd": seconds, "client": seconds, "per_second": 1000.0, "count": 100}
    return {
        "latency": dict.fromkeys((WRITE, READ, SERIALIZABLE), 5e-3),
        "stages": {name: dict(stage) for name in capacities.STAGES},
        "share": 1.0,
        "own": {"join": 1e-3, "node": 1e-3, "completion": 1e-3},
    }


def test_latency_is_the_time_in_which_neither_side_works():
    assert capacities.prices(measured()).kinds[WRITE] == Cost(1e-3, 1e-3, pytest.approx(3e-3))
    assert capacities.prices(measured(4e-3)).kinds[WRITE].latency == 0.0


def test_the_share_of_the_cores_is_the_work_divided_by_the_time_available():
    stages = measured()["stages"]
    assert capacities.share(stages, cores=2) == pytest.approx(1000 * 2e-3 / 2)
    for stage in stages.values():
        stage["per_second"] = 250.0
    assert capacities.share(stages, cores=2) == pytest.approx(250 * 2e-3 / 2)


def test_a_share_of_the_cores_slows_all_but_the_latency():
    slow = prices(etcd=1.0, client=2.0, latency=3.0, node=4.0).slowed(0.5)
    assert slow.kinds[READ] == Cost(2.0, 4.0, 3.0)
    assert slow.node == 8.0


def test_published_figures_are_capacities_and_the_time_of_one_client():
    cost = scale.published(prices()).kinds[WRITE]
    assert cost.etcd == pytest.approx(1 / 44_341)
    assert cost.etcd + cost.latency == pytest.approx(1.6e-3)
    assert cost.client == 1e-4


def test_the_tables_show_predictions_errors_and_failures():
    machine = Machine(prices())
    world = simulated.run(machine, 10)
    load = {"requests": 2.0, "watches": 1.0, "bytes": 1024.0}
    real = {"seconds": 2 * world["formation"]["seconds"], "per_node": load}
    rows = [
        {"part": "capacities", **measured(), "prices": {"kinds": {kind: vars(Cost(1, 1, 1)) for kind in KINDS}}},
        {"part": "published", "source": "etcd", "prices": {"kinds": {kind: vars(Cost(1, 1, 1)) for kind in KINDS}}},
        {"part": "check", "nodes": 10, "predicted": world, "real": real, "error": -0.5},
        {"part": "check", "nodes": 20, "failed": "not done in time"},
        {"part": "prediction", "nodes": 10, **world},
    ]
    predictions, checks, _ = (table.markdown() for table in scale.tables(rows))
    assert "Predictions of a model, not measurements" in predictions
    assert "-50%" in checks
    assert "20 nodes: not done in time." in checks
