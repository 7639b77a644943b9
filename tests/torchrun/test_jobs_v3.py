"""Jobs on etcd-v3 that lose nodes and etcd members, under real torchrun; and how quiet they are.

``test_jobs`` has the jobs that every backend of ours must run.
"""

from __future__ import annotations

import os
import re

import grpc
import psutil
import pytest

from benchmarks.etcd_cluster import send
from rendezvous.coordinated.records import Keys
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from rendezvous.utils import get_free_port
from tests.etcd.clusters import Certificates, Cluster
from tests.etcd.snapshots import go_back, take_snapshot
from tests.nodes import BOUND, eventually
from tests.torchrun.conftest import TRAIN

pytestmark = pytest.mark.parametrize("agents", ["etcd-v3"], indirect=True)

# What the agents of ``conftest`` run with, in seconds.
TTL = 3
LAST_CALL = 2

PASSWORD = "correct-horse"

# What gRPC, absl, protobuf, asyncio or an interpreter that shuts down would print.
NOISE = re.compile(
    r"grpc|fork|absl|protobuf|asyncio|[EWI]0000|\.cc:\d+\]|never (retrieved|awaited)|was destroyed|BlockingIOError"
    r"|unclosed|DeprecationWarning|ResourceWarning|RuntimeWarning|UserWarning|Exception ignored|Fatal|leaked"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Torchrun logs what it does, and only this package can set environment variables for gRPC."""
    monkeypatch.setenv("LOGLEVEL", "INFO")
    for name in [name for name in os.environ if name.startswith("GRPC_")]:
        monkeypatch.delenv(name)


def script(agents, *options):
    return (str(TRAIN), f"--journal={agents.log}", f"--until={agents.folder / 'finish'}", *options)


def allow_to_finish(agents):
    (agents.folder / "finish").touch()


def next_round(agents, size, seen=0):
    """Wait until ``size`` workers have started beside the first ``seen``; return them as (rank, port, agent)."""

    def started():
        lines = [line for line in agents.lines("start")[seen:] if line[2] == str(size)]
        return len(lines) == size and lines

    lines = eventually(started, f"a world of {size}\n{agents.outputs()}", 2 * BOUND)
    pids = [process.pid for process in agents.processes]
    workers = sorted((int(rank), int(port), pids.index(int(pid))) for _, rank, _, port, pid in lines)
    assert [rank for rank, *_ in workers] == list(range(size))
    assert len({port for _, port, _ in workers}) == 1
    return workers


def count(agents, text, *numbers):
    return [agents.output(number).count(text) for number in numbers]


def check_quiet(agents, *left):
    """Only torch and this package print anything, and only the agents in ``left`` show a traceback."""
    for number in range(len(agents.processes)):
        output = agents.output(number)
        assert not NOISE.search(output), f"agent {number}: {NOISE.search(output)}\n{output[-6000:]}"
        assert number in left or "Traceback" not in output, output[-6000:]
    variables = agents.lines("grpc")
    assert variables == [["grpc"]] * len(variables)  # the workers' own gRPC is left alone


def test_agents_leave_come_back_and_die(agents):
    """Only the rendezvous can inform the others: the workers do no collective that would fail or time out."""
    with Cluster(1) as cluster:
        agents.endpoint = cluster.endpoint
        idle = script(agents, "--idle")
        for _ in range(2):
            agents.start("2:3", *idle, workers=1)
        agents.start("2:3", *idle, workers=1, conf=f"keep_alive_max_attempt={int(4 * BOUND)}")
        next_round(agents, 3)

        # One leaves and ends its lease, which would otherwise last until the test has failed.
        seen = len(agents.lines("start"))
        agents.processes[2].terminate()
        agents.processes[2].wait(timeout=BOUND)
        next_round(agents, 2, seen)

        # It returns.
        seen = len(agents.lines("start"))
        agents.start("2:3", *idle, workers=1)
        (_, port, head), *others = next_round(agents, 3, seen)
        others = [agent for *_, agent in others]

        # The node of rank 0 is killed: the others learn it when its lease ends, and rank 0 moves.
        seen, complete = len(agents.lines("start")), count(agents, "Rendezvous complete", *others)
        agents.kill(head)
        eventually(
            lambda: count(agents, "Rendezvous complete", *others) == [number + 1 for number in complete],
            f"the others re-form\n{agents.outputs()}",
            TTL + LAST_CALL + 10,
        )
        workers = next_round(agents, 2, seen)
        assert {agent for *_, agent in workers} == set(others)
        assert workers[0][1] != port

        allow_to_finish(agents)
        assert agents.finish(*others) == [0, 0], agents.outputs()
        assert sorted(int(rank) for _, rank, _, _ in agents.lines("done")) == [0, 1]
        assert "Worker group FAILED" not in "".join(agents.output(number) for number in others)
        check_quiet(agents, 2)


def silent_node_is_given_up(cluster, member):
    """Grant a lease like a node's, and wait until etcd ends it since nobody keeps it alive."""
    channel = cluster.channel(member)

    def grant():
        try:
            return send(channel, rpc_pb2.LeaseGrantRequest(TTL=TTL), timeout=1).ID
        except grpc.RpcError:  # no leader yet
            return None

    lease = rpc_pb2.LeaseTimeToLiveRequest(ID=eventually(grant, "a lease"))
    eventually(lambda: send(channel, lease, BOUND).TTL == -1, "the lease ends")


def test_a_dead_endpoint_and_a_killed_leader_of_etcd_do_not_disturb_a_job(agents):
    with Cluster(3) as cluster:
        ports = [get_free_port("127.0.0.1"), *cluster.ports[:2]]
        agents.endpoint = ",".join(f"127.0.0.1:{port}" for port in ports)
        for _ in range(3):
            agents.start("3", *script(agents), workers=1)
        workers = next_round(agents, 3)

        def uses(agent, member):
            peers = [connection.raddr for connection in psutil.Process(agent.pid).net_connections()]
            return any(peer and peer.port == cluster.ports[member] for peer in peers)

        def keys():
            root = Keys("/rendezvous", agents.run_id).nodes
            request = rpc_pb2.RangeRequest(key=root, range_end=prefix_end(root))
            return {(kv.key, kv.lease) for kv in send(cluster.channel(other), request).kvs}

        # Which endpoint an agent begins with is left to chance.
        leader, other = (0, 1) if uses(agents.processes[0], 0) else (1, 0)
        assert uses(agents.processes[0], leader)
        cluster.have_lead(leader)
        nodes = keys()
        assert len(nodes) == 3
        cluster.kill(leader)
        everybody = f"all use the other member\n{agents.outputs()}"
        eventually(lambda: all(uses(agent, other) for agent in agents.processes), everybody)
        silent_node_is_given_up(cluster, other)
        assert keys() == nodes

        allow_to_finish(agents)
        assert agents.finish() == [0, 0, 0], agents.outputs()
        assert len(agents.lines("start")) == len(workers)  # there was one round
        assert count(agents, "Rendezvous complete", 0, 1, 2) == [1, 1, 1]
        assert [line[2] for line in agents.lines("done")] == ["3", "3", "3"]
        check_quiet(agents)


def test_agents_form_the_next_round_if_etcd_is_restored_from_a_snapshot(agents):
    with Cluster(1) as cluster:
        agents.endpoint = cluster.endpoint
        idle = script(agents, "--idle")
        for _ in range(2):
            agents.start("2:3", *idle, workers=1)
        next_round(agents, 2)
        restore = take_snapshot(cluster)
        seen = len(agents.lines("start"))
        agents.start("2:3", *idle, workers=1)
        next_round(agents, 3, seen)

        seen = len(agents.lines("start"))
        go_back(cluster, restore, pushed=False)
        next_round(agents, 3, seen)
        allow_to_finish(agents)
        assert agents.finish() == [0, 0, 0], agents.outputs()
        assert [line[2] for line in agents.lines("done")] == ["3", "3", "3"]
        assert count(agents, "etcd was restored from a snapshot", 0, 1, 2) == [1, 1, 1]
        assert "Worker group FAILED" not in agents.outputs()
        check_quiet(agents)


def test_certificates_and_a_user_under_torchrun(agents, tmp_path, monkeypatch):
    tls = Certificates(tmp_path, mutual=True)
    with Cluster(1, tls=tls) as cluster:
        channel = cluster.channel()
        for user in ("root", "node"):
            send(channel, rpc_pb2.AuthUserAddRequest(name=user, password=PASSWORD), BOUND)
            send(channel, rpc_pb2.AuthRoleAddRequest(name=user), BOUND)
            send(channel, rpc_pb2.AuthUserGrantRoleRequest(user=user, role=user), BOUND)
        jobs = b"/jobs/"
        mine = rpc_pb2.Permission(permType=rpc_pb2.Permission.READWRITE, key=jobs, range_end=prefix_end(jobs))
        send(channel, rpc_pb2.AuthRoleGrantPermissionRequest(name="node", perm=mine), BOUND)
        send(channel, rpc_pb2.AuthEnableRequest(), BOUND)

        agents.endpoint = cluster.endpoint
        secret = tmp_path / "secret"
        secret.write_text(f"{PASSWORD}\n")
        files = f"protocol=https,ca_cert={tls.ca},ssl_cert={tls.cert},ssl_cert_key={tls.key}"
        conf = f"{files},prefix=/jobs,username=node"
        agents.start("2", workers=1, conf=f"{conf},password_file={secret}")
        monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", PASSWORD)
        agents.start("2", workers=1, conf=conf)
        assert agents.finish() == [0, 0], agents.outputs()
        assert [line[2] for line in agents.lines("done")] == ["2", "2"]
        assert agents.lines("rendezvous") == [["rendezvous"], ["rendezvous"]]  # the workers do not inherit the password
        assert PASSWORD not in agents.outputs()
        check_quiet(agents)
