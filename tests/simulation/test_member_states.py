"""A member on the simulated etcd goes through its states, and refuses calls at the wrong time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError
from rendezvous.coordinated.lifecycle import IllegalTransitionError, Lifecycle, State
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import WatchSpec
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages.rpc_pb2 import TxnRequest
from rendezvous.etcd.v3.operations import delete_op, put_op
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import run

pytestmark = pytest.mark.both_twins

TIMEOUT = 30.0


class Run:
    """A run of nodes on one simulated etcd."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.etcd, self.conditions, self.keys = Etcd(), Conditions(latency=0.01), Keys("/p", "run")
        self.links: list[Link] = []

    def node(self) -> Member:
        number = len(self.links)
        rng = random.Random(number)
        self.links.append(Link(self.etcd, self.conditions, None, rng))
        settings = Settings("run", self.limits, 1.0, 2)
        return Member(self.links[-1], self.keys, NodeRecord(f"node-{number}", number, 0), settings, rng)

    def keys_of_nodes(self) -> list[bytes]:
        return [key for key in self.etcd.current if key.startswith(self.keys.nodes)]


def join(member: Member, timeout: float = TIMEOUT) -> asyncio.Future[Any]:
    return asyncio.ensure_future(member.join(timeout, lambda: 29500))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the condition did not become true")


@pytest.fixture
def steps(monkeypatch) -> list[tuple[Lifecycle, State, State]]:
    """All transitions of all members."""
    seen: list[tuple[Lifecycle, State, State]] = []
    original = Lifecycle.become

    def become(self: Lifecycle, state: State) -> None:
        before = self.state
        original(self, state)
        seen.append((self, before, state))

    monkeypatch.setattr(Lifecycle, "become", become)
    return seen


def states_of(member: Member, steps: list[tuple[Lifecycle, State, State]]) -> list[State]:
    return [after for lifecycle, _, after in steps if lifecycle is member._lifecycle]


def test_a_member_joins_a_round_and_the_next_and_leaves(steps):
    async def scenario() -> None:
        member = Run(Limits(1, 1)).node()
        assert member.state is State.IDLE
        for _ in range(2):
            await join(member)
            assert member.state is State.IN_ROUND
        await member.leave(1)
        once = [State.ENTERING, State.WAITING, State.MEETING, State.IN_ROUND]
        assert states_of(member, steps) == [*once, *once, State.IDLE]

    run(scenario())


def test_a_spare_stands_by_and_becomes_a_member_after_a_loss(steps):
    async def scenario() -> None:
        job = Run(Limits(1, 1, last_call=0.5))
        first, spare = job.node(), job.node()
        await join(first)
        joining = join(spare)
        await until(lambda: spare.state is State.STANDING_BY)
        await first.leave(1)
        await joining
        assert states_of(spare, steps)[:3] == [State.ENTERING, State.WAITING, State.STANDING_BY]
        assert states_of(spare, steps)[-2:] == [State.MEETING, State.IN_ROUND]

    run(scenario())


def test_a_node_that_waits_when_a_full_round_completes_is_told_that_it_is_a_spare():
    async def scenario() -> None:
        job = Run(Limits(2, 4, last_call=2.0, node_unit=2))  # the third node makes no whole unit
        nodes = [job.node() for _ in range(3)]
        joining = [join(node) for node in nodes]
        await until(lambda: sum(task.done() for task in joining) == 2)
        spare = next(node for node, task in zip(nodes, joining, strict=True) if not task.done())
        await until(lambda: spare.state is State.STANDING_BY)
        await asyncio.sleep(TIMEOUT)  # the join timeout does not run
        assert spare.state is State.STANDING_BY
        for task in joining:
            task.cancel()

    run(scenario())


def test_a_member_that_leaves_a_round_which_goes_on_is_a_spare_when_it_joins_again():
    async def scenario() -> None:
        job = Run(Limits(3, 3, reform_on_loss=False))
        nodes = [job.node() for _ in range(3)]
        await asyncio.gather(*map(join, nodes))
        job.links[1].dead = True  # with it there would be enough nodes for another round
        await asyncio.sleep(5)
        await nodes[2].leave(1)
        joining = join(nodes[2])
        await until(lambda: nodes[2].state is State.STANDING_BY)
        await asyncio.sleep(TIMEOUT)  # the join timeout does not run
        assert nodes[2].state is State.STANDING_BY
        joining.cancel()

    run(scenario())


def test_a_rank_0_that_publishes_when_its_round_is_over_joins_the_next():
    async def scenario() -> None:
        job = Run(Limits(2, 2, last_call=0.5))
        nodes = [job.node(), job.node()]
        publish, link = [], job.links[0]

        def lose_the_answer(stage: str, call: Call, request: Any) -> None:
            """Let the bootstrap be applied, and keep rank 0 from knowing it until its round is over."""
            writes = call is Call.TXN and any(op.request_put.key == job.keys.bootstrap for op in request.success)
            if stage == "after" and writes and not publish:
                publish.append(request)
                link.slowness = 400.0  # also of the watch
                raise UnavailableError("the connection broke")

        link.hook = lose_the_answer
        first, second = join(nodes[0]), join(nodes[1])
        place, _ = await second
        assert place.round == 0
        assert publish
        job.etcd.handle(Call.TXN, TxnRequest(success=[delete_op(job.keys.bootstrap)]), None)
        replaced = msgspec.structs.replace(nodes[1].view.record, attempt="f" * 16)
        lease = job.etcd.current[job.keys.round].lease
        job.etcd.handle(Call.TXN, TxnRequest(success=[put_op(job.keys.round, replaced.encode(), lease)]), None)
        await asyncio.sleep(1)
        link.slowness = 1.0
        await asyncio.sleep(10)
        assert job.keys.bootstrap not in job.etcd.current
        first.cancel()

    run(scenario())


def test_a_member_whose_lease_ends_is_lost_and_joins_again(steps):
    async def scenario() -> None:
        job = Run(Limits(1, 1, last_call=0.5))
        member = job.node()
        await join(member)
        job.links[0].cut = True
        await asyncio.sleep(5)  # the lease ends, and the node cannot know it
        assert (member.state, member.num_nodes_waiting()) == (State.IN_ROUND, 0)
        job.links[0].cut = False
        await until(lambda: member.state is State.LOST)
        assert member.node_id is None
        assert member.num_nodes_waiting() == 1
        assignment, _ = await join(member)
        assert assignment.round == 1
        assert State.IDLE not in states_of(member, steps)

    run(scenario())


def test_a_join_keeps_its_timeout_while_the_node_tries_to_watch_again():
    async def scenario() -> None:
        job = Run(Limits(1, 1))
        member, link = job.node(), job.links[0]
        await join(member)
        start_watch = link._watch

        def cut_again(spec: WatchSpec, deadline: float) -> Any:
            link.cut = link.cut or spec.key == job.keys.ctl
            return start_watch(spec, deadline)

        link._watch = cut_again  # type: ignore[method-assign]
        writer = Link(job.etcd, job.conditions, None, random.Random(0))
        job.etcd.compact(job.etcd.revision + 10)
        await writer.txn([], [put_op(job.keys.root, b"")], deadline=TIMEOUT)
        await until(lambda: link.cut)  # the watch has ended, and another one cannot be started
        joining = join(member, 3)
        await until(joining.done)
        assert isinstance(joining.exception(), RendezvousConnectionError)

    run(scenario())


def test_the_campaigns_of_many_nodes_are_spread_over_the_time_that_etcd_needs():
    async def scenario() -> None:
        member = Run(Limits(2, 131072)).node()
        nodes, draws = 100_000, 2000
        member.view.record = RoundRecord(0, Phase.COMPLETE, world_size=nodes)
        seconds = Counter(int(member._election._delay()) for _ in range(draws))
        assert max(seconds.values()) / draws * nodes < 2 * 2000

    run(scenario())


def test_a_node_whose_join_is_cancelled_goes_on_trying_to_watch():
    async def scenario() -> None:
        job = Run(Limits(1, 1))
        member, link = job.node(), job.links[0]
        await join(member)
        link.cut = True
        member._tracker._watch.cancel()
        member._tracker._lose_track()
        joining = join(member)
        await asyncio.sleep(0.5)
        joining.cancel()
        await asyncio.wait([joining])
        link.cut = False
        await until(lambda: member._tracker.watching)
        await member.leave(1)

    run(scenario())


def test_a_node_whose_lease_ends_while_it_waits_enters_again(steps):
    async def scenario() -> None:
        job = Run(Limits(2, 2))
        member = job.node()
        joining = join(member, 300)
        await until(lambda: member.state is State.WAITING)
        before = member.node_id
        job.links[0].cut = True
        await asyncio.sleep(5)
        job.links[0].cut = False
        await until(lambda: member.node_id not in (None, before) and member.state is State.WAITING)
        await asyncio.gather(joining, join(job.node()))
        assert states_of(member, steps) == [
            State.ENTERING,
            State.WAITING,
            State.ENTERING,
            State.WAITING,
            State.MEETING,
            State.IN_ROUND,
        ]

    run(scenario())


def test_a_member_enters_again_if_rank_0_is_lost_before_the_bootstrap(steps):
    async def scenario() -> None:
        job = Run(Limits(1, 2, last_call=1.0))
        first, second = job.node(), job.node()

        def die_before_the_bootstrap(stage: str, call: Call, request: Any) -> None:
            if call is Call.TXN and any(op.request_put.key == job.keys.bootstrap for op in request.success):
                job.links[0].dead = True

        job.links[0].hook = die_before_the_bootstrap  # node-0 will be rank 0
        joining = [join(first), join(second)]
        assignment, _ = await joining[1]
        assert assignment.world_size == 1
        assert State.MEETING in states_of(first, steps)
        states = states_of(second, steps)
        assert states[states.index(State.MEETING) + 1] is State.ENTERING
        joining[0].cancel()

    run(scenario())


def test_a_second_join_at_the_same_time_is_refused_and_the_first_goes_on():
    async def scenario() -> None:
        job = Run(Limits(2, 2))
        member = job.node()
        joining = join(member)
        await until(lambda: member.state is State.WAITING)
        with pytest.raises(IllegalTransitionError, match="a join is already under way: the node is waiting"):
            await join(member)
        await asyncio.gather(joining, join(job.node()))
        assert member.state is State.IN_ROUND

    run(scenario())


def test_a_join_that_is_cancelled_can_be_repeated():
    async def scenario() -> None:
        job = Run(Limits(2, 2))
        member = job.node()
        joining = join(member)
        await until(lambda: member.state is State.WAITING)
        joining.cancel()
        await asyncio.wait([joining])
        assert (joining.cancelled(), member.state) == (True, State.IDLE)
        (assignment, _), _ = await asyncio.gather(join(member), join(job.node()))
        assert assignment.world_size == 2

    run(scenario())


@pytest.mark.parametrize("state", [State.ENTERING, State.WAITING])
def test_a_node_that_leaves_during_its_join_does_not_enter_again(state: State):
    async def scenario() -> None:
        job = Run(Limits(2, 2))
        member = job.node()
        joining = join(member)
        await asyncio.sleep(0.005)
        await until(lambda: member.state is state)
        await member.leave(1)
        left_at = asyncio.get_running_loop().time()
        with pytest.raises(
            RendezvousConnectionError, match="node-0_0_0 left the rendezvous 'run' while it was joining"
        ):
            await joining
        assert asyncio.get_running_loop().time() < left_at + 1  # it does not wait for its deadline
        assert (member.state, member.node_id, job.keys_of_nodes()) == (State.IDLE, None, [])

    run(scenario())


def test_a_member_watches_again_if_its_watch_ends_before_its_start_is_known(monkeypatch):
    async def scenario() -> None:
        job = Run(Limits(1, 2, last_call=0.5))
        member = job.node()
        watch, ended = job.links[0]._watch, []

        async def end_the_first(spec: WatchSpec, deadline: float) -> Any:
            started = await watch(spec, deadline)
            if spec.key == job.keys.ctl and not ended:
                ended.append(spec)
                started.cancel()
                spec.lost()
            return started

        monkeypatch.setattr(job.links[0], "_watch", end_the_first)
        await join(member)
        assert ended
        joining = join(job.node())
        await until(lambda: member.num_nodes_waiting() == 1)
        await asyncio.gather(join(member), joining)

    run(scenario())


def test_a_join_that_fails_leaves_the_run():
    async def scenario() -> None:
        job = Run(Limits(2, 2))
        member = job.node()
        with pytest.raises(RendezvousTimeoutError, match=r"the join timeout has passed \(3 s\); 1 of at least 2 nodes"):
            await join(member, 3)
        assert (member.state, member.node_id, job.keys_of_nodes()) == (State.IDLE, None, [])

    run(scenario())


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_is_out_of_range_is_refused_and_the_node_leaves(port: int):
    async def scenario() -> None:
        job = Run(Limits(1, 1))
        member = job.node()
        with pytest.raises(ValueError, match=f"must be an integer from 1 to 65535, not {port}"):
            await member.join(TIMEOUT, lambda: port)
        assert (member.state, job.keys_of_nodes()) == (State.IDLE, [])

    run(scenario())
