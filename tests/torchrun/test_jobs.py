"""Real torchrun, real etcd, real training."""

from __future__ import annotations

import pytest

from tests.torchrun.conftest import TRAIN

LEARNT = 3.0


@pytest.mark.both_twins
def test_three_agents_with_two_workers_each_train_to_the_end(agents):
    for _ in range(3):
        agents.start("3")
    assert agents.finish() == [0, 0, 0], agents.outputs()
    done = agents.lines("done")
    assert sorted(int(rank) for _, rank, _, _ in done) == list(range(6))
    assert {size for _, _, size, _ in done} == {"6"}
    assert all(float(loss) < LEARNT for *_, loss in done)
    assert "Traceback" not in agents.outputs()


def test_the_others_go_on_when_an_agent_is_killed(agents, tmp_path):
    script = (str(TRAIN), f"--journal={agents.log}", f"--until={tmp_path / 'finish'}")
    for _ in range(3):
        agents.start("2:3", *script)
    agents.wait_for("start", 6, 6)
    agents.kill(0)
    agents.wait_for("start", 4, 4)
    (tmp_path / "finish").touch()
    assert agents.finish(1, 2) == [0, 0], agents.outputs()
    assert sorted(int(rank) for _, rank, _, _ in agents.lines("done")) == [0, 1, 2, 3]
    first, second = ({line[3] for line in agents.lines("start") if line[2] == size} for size in ("6", "4"))
    assert len(first) == len(second) == 1
    assert first != second  # the workers meet at a new place each round


def test_a_late_agent_is_taken_into_a_running_job(agents, tmp_path):
    script = (str(TRAIN), f"--journal={agents.log}", f"--until={tmp_path / 'finish'}")
    for _ in range(3):
        agents.start("2:4", *script, workers=1)
    agents.wait_for("start", 3, 3)
    agents.start("2:4", *script, workers=1)
    agents.wait_for("start", 4, 4)
    (tmp_path / "finish").touch()
    assert agents.finish() == [0, 0, 0, 0], agents.outputs()
    assert sorted(int(rank) for _, rank, size, _ in agents.lines("done") if size == "4") == [0, 1, 2, 3]


def test_a_wrong_configuration_ends_the_agent_with_the_reason(agents):
    scheme = "http://" if agents.backend == "etcd-v2-watch" else ""
    agents.start("1", conf="keep_alive_interval=often")
    agents.start("1", conf="protocol=ftp")
    agents.endpoint = "localhost:1"
    agents.start("1")
    agents.endpoint = "http://localhost:1"
    agents.start("1")
    assert agents.finish() == [1, 1, 1, 1]
    for number, reason in enumerate(
        (
            "'keep_alive_interval' must be an integer, not 'often'",
            "'protocol' must be one of http, https, not 'ftp'",
            f"RendezvousConnectionError: no etcd answers at {scheme}localhost:1",
            "starts with a scheme",
        )
    ):
        assert reason in agents.output(number)


def test_a_time_out_under_torchrun_says_who_is_missing(agents):
    agents.start("2", conf="join_timeout=3")
    assert agents.finish() == [1]
    assert "RendezvousTimeoutError" in agents.output(0)
    assert "1 of at least 2 nodes joined round 0" in agents.output(0)
