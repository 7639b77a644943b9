"""``rendezvous bench``; each host of the cluster is a process here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.etcd_cluster import send
from rendezvous import cli
from rendezvous.bench import worlds
from rendezvous.bench.plan import plan_of
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import prefix_end
from tests import hosts
from tests.etcd.clusters import BOUND, Certificates, Cluster
from tests.nodes import eventually

SCRIPT = Path(__file__).parents[1] / "benchmarks/cluster/formation.slurm"


# The command.


def test_help_explains_how_to_start_the_hosts(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "--help"])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Start the same command once on each host" in out
    assert "SLURM_JOB_ID and SLURM_STEP_ID of srun" in out
    assert "etcd-v3; etcd-v2; etcd; torch etcd-v2; torch etcd; etcd-v3, coroutines" in out
    assert "The exit code is 1 on every host if a world did not form" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nodes", "4"], "the following arguments are required: --endpoint"),
        (["--endpoint", "h", "--run-id", "x"], "the following arguments are required: --nodes"),
        (["formation", "--endpoint", "h", "--nodes", "4"], "unrecognized arguments: formation"),
        (["--endpoint", "h", "--nodes", "4", "--full"], "unrecognized arguments: --full"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_refused(capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *arguments])
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--nodes", "4"], "--run-id is missing"),
        (["--nodes", "10", "--per-host", "4", "--run-id", "x"], "use --nodes 8 or 12"),
        (["--nodes", "3", "--per-host", "4", "--run-id", "x"], "use --nodes 4"),
        (["--nodes", "4", "--run-id", "x", "--contender", "floor"], "--contender 'floor' is unknown"),
        (["--nodes", "4", "--run-id", "x", "--rdzv-conf", "prefix"], "'prefix' is not"),
        (["--nodes", "4", "--run-id", "x", "--rdzv-conf", "join_timeout=soon"], "'join_timeout'"),
        (["--nodes", "4", "--run-id", "x", "--endpoint", "http://h"], "starts with a scheme"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_reason(monkeypatch, capsys, arguments, reason):
    for name in ("PMIX_NAMESPACE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["bench", "--endpoint", "h", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_an_etcd_that_does_not_answer_is_named(capsys):
    etcd = ["--endpoint", "localhost:1", "--rdzv-conf", "read_timeout=1"]
    assert cli.main(["bench", *etcd, "--nodes", "4", "--run-id", "x"]) == 1
    assert "no etcd answers at localhost:1" in capsys.readouterr().err


def test_a_password_on_the_command_line_is_refused_and_not_repeated(capsys):
    arguments = ["--endpoint", "h", "--nodes", "4", "--run-id", "x", "--rdzv-conf", "username=u,password=secret"]
    assert cli.main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert "password_file" in err
    assert "secret" not in err


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers_must_be_at_least_one(capsys, number):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "--endpoint", "h", "--nodes", number])
    assert end.value.code == 2
    assert f"must be an integer from 1, not '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "run_id"),
    [
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3"}, "12.3"),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "PMIX_NAMESPACE": "prterun-7@1"}, "prterun-7@1"),
        ({"SLURM_JOB_ID": "12", "RUN": "5"}, None),
    ],
)
def test_the_launcher_gives_the_run_id_if_it_is_different_for_each_start(environment, run_id):
    options = cli._parser().parse_args(["bench", "--endpoint", "h", "--nodes", "4"])
    if run_id is None:
        with pytest.raises(ValueError, match="--run-id is missing"):
            plan_of(options, environment)
    else:
        assert plan_of(options, environment).run_id == run_id
    options.run_id = "mine"
    assert plan_of(options, environment).run_id == "mine"


# The outcome.


def report(*places: tuple[int, int], seconds: float = 1.0) -> dict[str, object]:
    return {"seconds": seconds, "first": seconds / 2, "places": [list(place) for place in places]}


def test_the_outcome_is_that_of_the_slowest_host():
    row = worlds.outcome(["a", "b", "c"], [report((2, 3)), report((0, 3), seconds=4.0), report((1, 3), seconds=2.0)], 3)
    assert row == {
        "seconds": 4.0,
        "median": 2.0,
        "fastest": 1.0,
        "first_node": 0.5,
        "by_host": {"a": 1.0, "b": 4.0, "c": 2.0},
    }


@pytest.mark.parametrize(
    ("reports", "failed"),
    [
        ([report((0, 2)), report((0, 2))], {"all hosts": "the ranks are not 0..n-1"}),
        ([report((0, 2)), report((1, 3))], {"all hosts": "the nodes do not agree on the size of the world"}),
        ([report((0, 2)), None], {"b": "it published no report in time"}),
        ([{"failed": "1 of 1:\n why"}, report((1, 2))], {"a": "1 of 1: why"}),
    ],
)
def test_a_wrong_or_incomplete_world_has_failed(reports, failed):
    assert worlds.outcome(["a", "b"], reports, 2) == {"failed": failed}


# Hosts.


def commands(endpoint: str, run_id: str, count: int, *arguments: str) -> list[list[str]]:
    common = ("--endpoint", endpoint, "--run-id", run_id, *arguments)
    return [[*hosts.COMMAND, *common, "--local-addr", f"node-{number}"] for number in range(count)]


def check_first(ended: list[hosts.Ended], folder: Path, worlds: int, nodes: int, count: int = 0) -> dict[str, Any]:
    """Check that all hosts succeeded, and that only the first one reports all worlds.

    ``count`` is the number of hosts if they ran as one process.
    """
    count = count or len(ended)
    assert [(each.code, each.err) for each in ended] == [(0, "")] * len(ended)
    assert [each.out for each in ended[1:]] == [""] * (len(ended) - 1)
    assert [row[:3] for row in ended[0].rows] == [[str(i), str(count), str(nodes)] for i in range(worlds)]
    result: dict[str, Any] = json.loads((folder / "formation-cluster.json").read_text())
    names = {f"node-{i} (host {i})" for i in range(count)}
    for row in result["rows"]:
        assert 0 < row["first_node"] <= row["fastest"] <= row["median"] <= row["seconds"] < hosts.BOUND
        assert set(row["by_host"]) == names
    return result


@pytest.mark.parametrize("contender", ["etcd-v3", "etcd-v3, coroutines"])
def test_hosts_form_worlds_together_and_leave_nothing(etcd3, run_id, tmp_path, contender):
    numbers = ("--nodes", "12", "--per-host", "4", "--rounds", "2", "--contender", contender)
    ended = hosts.run(commands(etcd3.get_endpoint(), run_id, 3, *numbers, "--output", str(tmp_path)))
    result = check_first(ended, tmp_path, worlds=2, nodes=12)
    assert result["contender"] == contender
    assert {"etcd", "etcd-rendezvous"} <= result["metadata"]["versions"].keys()
    for row in result["rows"]:
        assert row["per_node"]["raft"] >= 2  # a lease and a key
    assert f"etcd at {etcd3.get_endpoint()}" in " ".join(ended[0].out.split())
    assert hosts.keys(etcd3.get_endpoint(), f"/rendezvous/{run_id}-") == []


def test_a_run_id_can_be_used_again_after_its_benchmark(etcd3, run_id, tmp_path):
    for _ in range(2):
        numbers = ("--nodes", "2", "--rounds", "1", "--output", str(tmp_path))
        ended = hosts.run(commands(etcd3.get_endpoint(), run_id, 2, *numbers))
        check_first(ended, tmp_path, worlds=1, nodes=2)


def test_hosts_form_a_world_on_the_v2_api(etcd, run_id, tmp_path):
    numbers = ("--nodes", "4", "--per-host", "2", "--rounds", "1", "--contender", "etcd-v2")
    ended = hosts.run(commands(etcd.get_endpoint(), run_id, 2, *numbers, "--output", str(tmp_path)))
    check_first(ended, tmp_path, worlds=1, nodes=4)


def test_all_hosts_report_the_same_if_one_never_joins(etcd3, run_id):
    both = commands(etcd3.get_endpoint(), run_id, 2, "--nodes", "6", "--per-host", "2")
    lobby = f"/rendezvous/{run_id}-lobby/nodes/"
    with hosts.running(both[:1]) as waiting:
        eventually(lambda: hosts.keys(etcd3.get_endpoint(), lobby), "the first is in the lobby")
        ended = hosts.run([[*both[1], "--rdzv-conf", "join_timeout=8"]])
        ended.append(hosts.end(waiting[0]))
    for each in ended:
        assert (each.code, each.out) == (1, "")
        assert "2 of 3 hosts joined within 8 s: node-0, node-1" in each.err
        assert "Traceback" not in each.err
    eventually(lambda: not hosts.keys(etcd3.get_endpoint(), f"/rendezvous/{run_id}-"), "the lobby is deleted")


def test_a_surplus_host_is_refused_and_does_not_disturb_the_others(etcd3, run_id, tmp_path):
    numbers = ("--nodes", "2", "--rounds", "100000", "--output", str(tmp_path))
    *both, third = commands(etcd3.get_endpoint(), run_id, 3, *numbers)

    def worlds_formed() -> int:
        return len(hosts.keys(etcd3.get_endpoint(), f"/rendezvous/{run_id}-lobby/store/0000000000/over/"))

    with hosts.running(both) as here:
        eventually(worlds_formed, "the two are at work")
        (surplus,) = hosts.run([[*third, "--rdzv-conf", "join_timeout=3"]])
        assert (surplus.code, surplus.out) == (1, "")
        assert f"the run id '{run_id}-lobby' is in use by 2 other hosts" in surplus.err
        so_far = worlds_formed()
        eventually(lambda: worlds_formed() > so_far + 1, "the two go on")
        assert [host.poll() for host in here] == [None, None]


def test_different_arguments_are_reported_with_the_host(etcd3, run_id, tmp_path):
    first, second = commands(etcd3.get_endpoint(), run_id, 2, "--output", str(tmp_path))
    ended = hosts.run([[*first, "--nodes", "4", "--per-host", "2"], [*second, "--nodes", "2", "--per-host", "1"]])
    assert [each.code for each in ended] == [1, 1]
    reason = "node-1 (host 1): started with nodes 2, per host 1, rounds 3, contender etcd-v3; the first host"
    assert reason in " ".join(ended[0].out.split())
    assert reason in ended[1].err


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_report_a_host_that_dies(etcd3, run_id, tmp_path, victim):
    conf = "join_timeout=600,keep_alive_interval=1,keep_alive_max_attempt=2"
    numbers = ("--nodes", "8", "--per-host", "4", "--rounds", "100000", "--rdzv-conf", conf)
    both = commands(etcd3.get_endpoint(), run_id, 2, *numbers, "--output", str(tmp_path))
    store = f"/rendezvous/{run_id}-lobby/store/0000000000/over"
    with hosts.running(both) as here:
        eventually(lambda: hosts.keys(etcd3.get_endpoint(), store), "the first world is over")
        here[victim].kill()
        left = hosts.end(here[1 - victim])
    assert left.code == 1
    assert "Traceback" not in left.err
    if victim == 1:
        assert "node-1 (host 1): it published no report in time" in " ".join(left.out.split())
        assert left.rows[-1][3] == "failed"
    else:
        assert "a host was lost" in left.err


def test_hosts_with_tls_and_a_password_in_a_file(run_id, tmp_path):
    tls, prefix, password = Certificates(tmp_path), "/bench", "correct-horse"
    (tmp_path / "password").write_text(f"{password}\n")
    with Cluster(1, tls=tls) as cluster:
        channel = cluster.channel()
        permission = rpc_pb2.Permission(
            permType=rpc_pb2.Permission.READWRITE, key=prefix.encode(), range_end=prefix_end(prefix.encode())
        )
        for user in ("root", "bench"):
            send(channel, rpc_pb2.AuthUserAddRequest(name=user, password=password), BOUND)
            send(channel, rpc_pb2.AuthRoleAddRequest(name=user), BOUND)
            send(channel, rpc_pb2.AuthUserGrantRoleRequest(user=user, role=user), BOUND)
        send(channel, rpc_pb2.AuthRoleGrantPermissionRequest(name="bench", perm=permission), BOUND)
        send(channel, rpc_pb2.AuthEnableRequest(), BOUND)
        conf = f"protocol=https,ca_cert={tls.ca},username=bench,password_file={tmp_path / 'password'},prefix={prefix}"
        numbers = ("--nodes", "4", "--per-host", "2", "--rounds", "1", "--output", str(tmp_path))
        ended = hosts.run(commands(cluster.endpoint, run_id, 2, *numbers, "--rdzv-conf", conf))
    result = check_first(ended, tmp_path, worlds=1, nodes=4)
    assert result["rows"][0]["per_node"]["requests"] > 0  # the metrics are read by TLS too
    assert password not in json.dumps(result) + ended[0].out


def test_the_slurm_script_starts_one_host_per_task(etcd3, run_id, tmp_path):
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    # A minimal srun: it runs each task in the job's environment, and fails if one of them does.
    srun = tmp_path / "srun"
    srun.write_text(
        """#!/bin/bash
[ "$1 $2" = "--ntasks-per-node=1 --kill-on-bad-exit=0" ] && [ "$3" = rendezvous ] || exit 64
shift 3; code=0
for task in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_STEP_ID=0 "$PYTHON" -m rendezvous "$@" --local-addr "node-$task" & tasks="$tasks $!"
done
for task in $tasks; do wait "$task" || code=$?; done
exit $code
"""
    )
    srun.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{hosts.ENVIRONMENT['PATH']}",
        "PYTHON": hosts.COMMAND[0],
        "SLURM_JOB_ID": run_id,
        "SLURM_JOB_NUM_NODES": "2",
        "ETCD": etcd3.get_endpoint(),
        "PER_HOST": "2",
        "OUTPUT": str(tmp_path / "results"),
    }
    check_first(hosts.run([["bash", str(SCRIPT)]], **environment), tmp_path / "results", 3, 4, count=2)
