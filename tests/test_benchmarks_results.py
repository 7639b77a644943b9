"""What is made of what the benchmarks measure: which run counts, what is a hit, what a table says."""

from __future__ import annotations

import importlib.util
import json
import subprocess

import pytest

from benchmarks import circumstances, contenders, figures, formation, metrics, recovery, report, run
from benchmarks import state as state_benchmark
from benchmarks import store as store_benchmark
from benchmarks.crew import LATE, Failed
from benchmarks.tables import Table, remarks, seconds
from rendezvous import cli

MANY = "etcd-v3, coroutines"


# Which world counts.


def worlds(monkeypatch, *outcomes):
    """Have the next worlds be ``outcomes``; return those that were not asked for."""
    left = [{"seconds": each} if isinstance(each, float) else {"failed": each} for each in outcomes]
    monkeypatch.setattr(formation, "form", lambda name, nodes: left.pop(0))
    return left


@pytest.mark.parametrize(
    ("outcomes", "row", "unused"),
    [
        ([2.0, 1.0, 3.0], {"seconds": 1.0, "runs": [2.0, 1.0, 3.0]}, 0),
        ([40.0, 1.0, 1.0], {"seconds": 40.0, "runs": [40.0]}, 2),
        ([LATE, 2.0, 1.0], {"seconds": 1.0, "runs": [LATE, 2.0, 1.0]}, 0),
        ([LATE, LATE, 1.0], {"failed": LATE, "runs": [LATE, LATE]}, 1),
        ([2.0, "the ranks are not 0..n-1", 1.0], {"failed": "the ranks are not 0..n-1"}, 1),
    ],
)
def test_the_fastest_world_counts_unless_one_is_wrong(monkeypatch, outcomes, row, unused):
    left = worlds(monkeypatch, *outcomes)
    assert formation.best("etcd-v3", 8, runs=3).items() >= row.items()
    assert len(left) == unused


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([(0, 2), (0, 2)], "ranks"),
        ([(0, 2), (1, 3)], "size"),
        ([(0, 2)], "ranks"),
    ],
)
def test_places_that_are_not_one_world_fail(places, reason):
    formation.check([(1, 2), (0, 2)], 2)
    with pytest.raises(Failed, match=reason):
        formation.check(places, 2)


def test_a_contender_that_failed_is_not_asked_for_more_nodes(monkeypatch):
    monkeypatch.setattr(formation, "SHORT", (16, 64))
    monkeypatch.setattr(formation, "best", lambda name, nodes, runs: {"failed": LATE})
    monkeypatch.setattr(contenders.Contender, "obstacle", property(lambda self: "no torch" if self.torchs else None))
    rows = {(row["contender"], row["nodes"]): row for row in formation.measure()}
    assert rows["etcd-v2", 16]["failed"] == LATE
    assert rows["etcd-v2", 64] == {"contender": "etcd-v2", "nodes": 64, "failed_at": 16}
    assert rows["torch etcd-v2", 64]["obstacle"] == "no torch"
    table, _ = formation.tables(list(rows.values()))
    assert table.rows[0][1:4] == ["failed", "failed", "failed"]
    assert table.rows[1][1:4] == ["-", "-", "-"]
    assert "etcd-v2 at 16 nodes: not done in time" in table.remarks[0]
    assert "torch etcd-v2: no torch" in table.remarks[1]


def test_a_client_that_does_not_wait_is_found_out():
    ended = [store_benchmark.Ended(5.0, 6.0, 4.5), store_benchmark.Ended(4.6, 7.0, None)]
    assert store_benchmark.seconds_from(1.0, ended) == 6.0
    with pytest.raises(Failed, match="returned before"):
        store_benchmark.seconds_from(1.0, [*ended, store_benchmark.Ended(4.4, 5.0, None)])


def test_counters_that_cannot_be_read_fail_the_run_and_no_more():
    with pytest.raises(Failed, match="localhost:1/metrics"):
        metrics.load("localhost:1", patience=1.0)


# What is a hit.


def world(contender, nodes, **row):
    return {"contender": contender, "nodes": nodes, **row}


def lines(*rows, recovered=()):
    """Return what the table of figures says, by a word of what was asked."""
    table = figures.table({"formation": list(rows), "recovery": list(recovered)})
    return {asked: (reached, verdict) for asked, reached, verdict in table.rows}


def line(said, *words):
    (found,) = [value for asked, value in said.items() if all(word in asked for word in words)]
    return found


def test_figures_are_compared_before_they_are_rounded():
    def verdict(requests):
        row = world(MANY, 10_000, seconds=9.0, per_node={"requests": requests, "watches": 1.0, "bytes": 10.0})
        return line(lines(row), "4 requests")

    assert verdict(3.0) == ("4.0000", "hit")
    assert verdict(3.0036) == ("4.0036", "**miss**")


def test_what_was_not_measured_is_neither_hit_nor_miss():
    assert set(lines().values()) == {("not measured", "-")}
    said = lines(world("torch etcd-v2", 128, obstacle="torch is not installed"), world("etcd-v3", 128, seconds=0.2))
    assert line(said, "20 times") == ("not measured: torch is not installed", "-")


def test_to_fail_is_to_miss():
    said = lines(world(MANY, 10_000, failed="the ranks are not 0..n-1"), world("etcd-v2", 256, failed_at=128))
    assert line(said, "10,000 nodes within") == (f"{MANY} failed: the ranks are not 0..n-1", "**miss**")
    assert line(said, "`etcd-v2` forms 256") == ("etcd-v2 failed at 128 nodes", "**miss**")
    killed = {"contender": "etcd-v3", "victim": "node", "ttl": 3}
    assert line(lines(recovered=[{**killed, "seconds": 4.5}]), "killed node") == ("its time and 1.5 s", "hit")
    assert line(lines(recovered=[{**killed, "failed": "no world"}]), "killed node") == ("failed: no world", "**miss**")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.25, {"seconds": 5.0}, ("20 times", "hit")),
        (0.5, {"seconds": 5.0}, ("10 times", "**miss**")),
        (0.24, {"failed": LATE}, ("more than 500 times", "hit")),
        (24.0, {"failed": LATE}, ("more than 5 times", "-")),
        (0.24, {"failed": "it crashed"}, ("torch etcd-v2 failed: it crashed", "-")),
    ],
)
def test_what_another_did_not_do_in_time_bounds_the_ratio(ours, theirs, expected):
    said = lines(world("torch etcd-v2", 128, **theirs), world("etcd-v3", 128, seconds=ours))
    assert line(said, "20 times") == expected


# What is printed.


def test_cells_and_remarks_tell_failure_from_absence():
    rows = [
        world("a", 8, seconds=1.0, runs=[1.0, LATE, 2.0]),
        world("b", 8, failed="x; y", runs=["x; y"]),
        world("c", 8, failed=LATE, runs=[LATE, LATE]),
        world("d", 8, failed_at=4),
        world("e", 8, obstacle="no torch"),
        world("f", 8, seconds=123.4, runs=[123.4]),
    ]
    assert [seconds(row) for row in [*rows, None]] == ["1.00 s", "failed", "failed", "-", "-", "123 s", "-"]
    assert remarks(rows) == (
        f"Failed: b at 8 nodes: x; c at 8 nodes: {LATE}, in each of 2 tries. What failed was not asked for more nodes.",
        "Not done in time, and not counted: 1 of 3 of a at 8 nodes.",
        "Not tried: e: no torch.",
    )
    assert remarks(rows[-1:]) == ()


def test_a_table_prints_all_of_what_it_says(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    heads = [f"the {number}th of the columns" for number in range(10)]
    table = Table("[/caption]", heads, [["[bold]" * 2, *("requests" for _ in range(9))]], ("etcd at [fd00::1]:2379",))
    table.show()
    out = capsys.readouterr().out
    for text in ("[/caption]", "[bold]", "etcd at [fd00::1]:2379", "requests", "columns"):
        assert text in out
    assert "…" not in out
    assert table.markdown().endswith("\n\netcd at [fd00::1]:2379")


def test_a_short_set_is_called_one():
    row = {"contender": "etcd-v3", "victim": "node", "ttl": 3, "seconds": 3.9, "runs": [3.9]}
    result = {"full": False, "circumstances": circumstances.circumstances(), "rows": [row]}
    text = report.section({"recovery": result}, ["recovery", "store"], ".")
    assert "| etcd-v3 | node | 3 s | 3.9 s |" in text
    assert text.endswith("The short set.")
    assert not report.section({"recovery": {**result, "full": True}}, ["recovery"], ".").endswith("The short set.")
    assert "slowest" not in text
    (table,) = recovery.tables([{**row, "runs": [3.9, 3.5, 3.6]}, {**row, "ttl": 15}])
    assert "the slowest of 3 runs" in table.caption


def test_git_that_does_not_tell_loses_nothing(monkeypatch):
    def fail(*arguments, **options):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", fail)
    made = circumstances.circumstances("3.6.1")
    assert made["commit"] is None
    assert made["versions"]["etcd"] == "3.6.1"
    assert "etcd 3.6.1" in circumstances.summary(made)


# The command.


def test_one_that_fails_does_not_keep_the_others(monkeypatch, tmp_path, capsys):
    class Benchmark:
        @staticmethod
        def measure(full):
            return [{"full": full}]

        @staticmethod
        def tables(rows):
            return [Table("done", ["rows"], [[str(len(rows))]])]

    def module(name):
        if name == "state":
            raise Failed("the twins' bytes differ")
        return Benchmark

    monkeypatch.setattr(run, "module", module)
    assert cli.main(["bench", "state", "store", "--output", str(tmp_path)]) == 1
    assert "rendezvous bench state: the twins' bytes differ" in capsys.readouterr().err
    assert json.loads((tmp_path / "store.json").read_text())["rows"] == [{"full": False}]


def test_without_matplotlib_nothing_is_measured_for_the_readme(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    monkeypatch.setattr(run, "measured", lambda *arguments: pytest.fail("measured"))
    assert cli.main(["bench", "state", "--output", str(run.RESULTS)]) == 2
    assert "etcd-rendezvous[bench]" in capsys.readouterr().err


def test_the_state_is_measured_without_the_compiled_core(monkeypatch):
    monkeypatch.setattr(state_benchmark, "SIZES", (8,))
    monkeypatch.setattr(contenders.Contender, "obstacle", property(lambda self: None if self.pure else "not here"))
    rows = state_benchmark.measure()
    assert [row.get("obstacle") for row in rows[:3]] == ["not here", None, "not here"]
    cycle, parts = state_benchmark.tables(rows)
    assert cycle.rows[0][1] == cycle.rows[0][4] == "-"
    assert cycle.rows[0][2].endswith(" µs")
    assert parts.rows[0][2].endswith(" µs")
    assert "compiled: not here" in cycle.remarks[0]


def test_an_operation_that_fails_keeps_the_times_of_those_before(monkeypatch):
    monkeypatch.setattr(store_benchmark, "OPERATIONS", ("barrier", "multi_get", "nonsense"))
    row = store_benchmark.run("etcd-v3", 4)
    assert row["failed"] == "nonsense: KeyError: 'nonsense'"
    assert set(row["seconds_of"]) == {"barrier", "multi_get"}
