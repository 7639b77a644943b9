"""What follows from the measurements: which run counts, whether a target is met, the tables; and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import catalog, contenders, formation, plots, recovery, releases, report, rosters, run, targets
from benchmarks import state as state_benchmark
from benchmarks import store as store_benchmark
from benchmarks.processes import LATE
from benchmarks.tables import remarks, seconds
from rendezvous.bench import checks, metadata, metrics
from rendezvous.bench.checks import Failed
from rendezvous.bench.tables import Table
from rendezvous.etcd.server import BINARY_VARIABLE
from tests import etcds

MANY = "etcd-v3, coroutines"


# Which world counts.


def worlds(monkeypatch, *outcomes):
    """Let the next worlds end with ``outcomes``; return a list of those that were not used."""
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
    checks.check_places([(1, 2), (0, 2)], 2)
    with pytest.raises(Failed, match=reason):
        checks.check_places(places, 2)


def test_a_contender_that_failed_is_not_tried_with_more_nodes(monkeypatch):
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


def test_a_client_that_does_not_wait_is_detected():
    ended = [store_benchmark.Ended(5.0, 6.0, 4.5), store_benchmark.Ended(4.6, 7.0, None)]
    assert store_benchmark.seconds_from(1.0, ended) == 6.0
    with pytest.raises(Failed, match="returned before"):
        store_benchmark.seconds_from(1.0, [*ended, store_benchmark.Ended(4.4, 5.0, None)])


def test_counters_that_cannot_be_read_fail_the_run():
    with pytest.raises(Failed, match="localhost:1/metrics"):
        metrics.load("localhost:1", timeout=1.0)


# The targets.


def world(contender, nodes, **row):
    return {"contender": contender, "nodes": nodes, **row}


def lines(*rows, recovered=()):
    """Return the value reached and the verdict of each target, by its text."""
    table = targets.table({"formation": list(rows), "recovery": list(recovered)})
    return {text: (reached, verdict) for text, reached, verdict in table.rows}


def line(said, *words):
    (found,) = [value for text, value in said.items() if all(word in text for word in words)]
    return found


def test_values_are_compared_before_they_are_rounded():
    def verdict(requests):
        row = world(MANY, 10_000, seconds=9.0, per_node={"requests": requests, "watches": 1.0, "bytes": 10.0})
        return line(lines(row), "4 requests")

    assert verdict(3.0) == ("4.0000", "met")
    assert verdict(3.0036) == ("4.0036", "**missed**")


def test_a_target_that_was_not_measured_is_neither_met_nor_missed():
    assert set(lines().values()) == {("not measured", "-")}
    said = lines(world("torch etcd-v2", 128, obstacle="torch is not installed"), world("etcd-v3", 128, seconds=0.2))
    assert line(said, "20 times") == ("not measured: torch is not installed", "-")


def test_a_target_is_missed_if_the_measurement_failed():
    said = lines(world(MANY, 10_000, failed="the ranks are not 0..n-1"), world("etcd-v2", 256, failed_at=128))
    assert line(said, "10,000 nodes within") == (f"{MANY} failed: the ranks are not 0..n-1", "**missed**")
    assert line(said, "`etcd-v2` forms 256") == ("etcd-v2 failed at 128 nodes", "**missed**")
    killed = {"contender": "etcd-v3", "victim": "node", "ttl": 3}
    assert line(lines(recovered=[{**killed, "seconds": 4.5}]), "killed node") == ("the TTL and 1.5 s", "met")
    said = lines(recovered=[{**killed, "failed": "no world"}])
    assert line(said, "killed node") == ("failed: no world", "**missed**")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.25, {"seconds": 5.0}, ("20 times", "met")),
        (0.5, {"seconds": 5.0}, ("10 times", "**missed**")),
        (0.24, {"failed": LATE}, ("more than 500 times", "met")),
        (24.0, {"failed": LATE}, ("more than 5 times", "-")),
        (0.24, {"failed": "it crashed"}, ("torch etcd-v2 failed: it crashed", "-")),
    ],
)
def test_the_ratio_to_a_contender_that_timed_out_is_a_lower_bound(ours, theirs, expected):
    said = lines(world("torch etcd-v2", 128, **theirs), world("etcd-v3", 128, seconds=ours))
    assert line(said, "20 times") == expected


# The tables.


def test_cells_and_remarks_distinguish_failed_from_not_tried():
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
        f"Failed: b at 8 nodes: x; c at 8 nodes: {LATE}, in each of 2 tries. A contender that failed was not tried "
        "with more nodes.",
        "Not done in time, and not counted: 1 of 3 of a at 8 nodes.",
        "Not tried: e: no torch.",
    )
    assert remarks(rows[-1:]) == ()


def test_a_table_is_printed_completely(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    heads = [f"the {number}th of the columns" for number in range(10)]
    table = Table("[/caption]", heads, [["[bold]" * 2, *("requests" for _ in range(9))]], ("etcd at [fd00::1]:2379",))
    table.show()
    out = capsys.readouterr().out
    for text in ("[/caption]", "[bold]", "etcd at [fd00::1]:2379", "requests", "columns"):
        assert text in out
    assert "…" not in out
    assert table.markdown().endswith("\n\netcd at [fd00::1]:2379")


def test_results_of_the_short_set_are_marked():
    row = {"contender": "etcd-v3", "victim": "node", "ttl": 3, "seconds": 3.9, "runs": [3.9]}
    result = {"full": False, "metadata": metadata.metadata(), "rows": [row]}
    text = report.section({"recovery": result}, ["recovery", "store"], ".")
    assert "| etcd-v3 | node | 3 s | 3.9 s |" in text
    assert text.endswith("The short set.")
    assert not report.section({"recovery": {**result, "full": True}}, ["recovery"], ".").endswith("The short set.")
    assert "slowest" not in text
    (table,) = recovery.tables([{**row, "runs": [3.9, 3.5, 3.6]}, {**row, "ttl": 15}])
    assert "the slowest of 3 runs" in table.caption


def test_the_metadata_is_complete_without_git(monkeypatch):
    def fail(*arguments, **options):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", fail)
    made = metadata.metadata("3.6.1")
    assert made["commit"] is None
    assert made["versions"]["etcd"] == "3.6.1"
    assert "etcd 3.6.1" in metadata.summary(made)


def released(etcd, nodes, others=0.01, **row):
    return {"contender": "etcd-v3", "nodes": nodes, "etcd": etcd, "others": others, **row}


def test_each_etcd_release_has_its_row():
    load = {"requests": 2, "watches": 1.04, "cpu": 0.0012}
    rows = [
        released("3.4.23", 64, seconds=0.3),
        {**released("3.4.23", 1000, others=0.5, seconds=2.0, per_node=load), "contender": MANY},
        released("3.7.3", 64, others=None, failed=LATE, runs=[LATE, LATE]),
    ]
    (table,) = releases.tables(rows)
    assert table.heads[:3] == ["etcd", "64 handlers", "1,000 coroutines"]
    assert table.rows == [
        ["3.4.23", "0.30 s", "2.00 s", "3.0", "1.2 ms", "50%"],
        ["3.7.3", "failed", "-", "-", "-", "-"],
    ]
    assert table.remarks == (f"Failed: etcd-v3 at 64 nodes on etcd 3.7.3: {LATE}, in each of 2 tries.",)


def test_the_releases_are_measured_one_after_another(monkeypatch, tmp_path):
    used = []
    binaries = [etcds.Binary((3, 4, 23), "/old"), etcds.Binary((3, 7, 3), "/new")]
    monkeypatch.setattr(etcds, "found", lambda: binaries)
    monkeypatch.setattr(releases, "others", lambda: 0.25)
    monkeypatch.setattr(releases, "best", lambda *arguments: used.append(os.environ[BINARY_VARIABLE]) or {"seconds": 1})
    monkeypatch.setattr(releases, "SHORT", (64, 10_000))
    run.measure("releases", False, tmp_path)
    written = json.loads((tmp_path / "releases.json").read_text())
    assert [(row["etcd"], row["contender"], row["nodes"], row["others"]) for row in written["rows"]] == [
        (version, name, nodes, 0.25)
        for version in ("3.4.23", "3.7.3")
        for name, nodes in (("etcd-v3", 64), (MANY, 64), (MANY, 10_000))
    ]
    assert used == ["/old"] * 3 + ["/new"] * 3
    assert written["metadata"]["versions"]["etcd"] == "3.4.23 / 3.7.3"


def test_a_busy_machine_is_noticed():
    if not releases._STAT.exists():
        assert releases.others(0.0) is None
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert 0 < releases.others(0.5) <= 1
        finally:
            busy.kill()


def test_every_figure_says_on_which_etcd_it_was_measured(tmp_path):
    made = {"date": "2026-01-01T00:00:00", "commit": None, "machine": "a machine", "python": "3.12"}
    old, new = ({**made, "versions": {"etcd": version}} for version in ("3.5.1", "3.4.23 / 3.7.3"))
    worlds = [world("etcd-v3", 64, seconds=0.1), world("etcd-v3", 128, seconds=0.1)]
    results = {
        "formation": {"rows": worlds, "metadata": old},
        "releases": {
            "rows": [released("3.4.23", 64, seconds=0.3), released("3.7.3", 64, seconds=0.2)],
            "metadata": new,
        },
    }
    shown = report.front(results, "results")
    assert shown.index("Three figures on etcd 3.5.1: ") < shown.index("| nodes | etcd 3.4.23 | etcd 3.7.3 |")
    assert "| 64 | 0.30 s | 0.20 s |" in shown
    assert shown.count("Python 3.12, etcd 3.5.1.") == shown.count("Python 3.12, etcd 3.4.23 / 3.7.3.") == 1
    assert re.search(r"^\d+ of the \d+ targets were met on etcd 3\.5\.1\. ", shown, re.MULTILINE)
    pytest.importorskip("matplotlib")
    plots.draw("formation", results["formation"], tmp_path)
    assert "one etcd 3.5.1 on two cores" in (tmp_path / "formation.svg").read_text()


# The command.


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Let the command write into a folder of the test; return that folder."""
    for name, path in (("OUT", "out"), ("RESULTS", "results"), ("README", "README.md")):
        monkeypatch.setattr(run, name, tmp_path / path)
    (tmp_path / "README.md").write_text(f"before {report.MARKS[0]} old {report.MARKS[1]} after")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nonsense"], "unknown benchmark: nonsense; known: state, formation,"),
        (["state", "nonsense"], "unknown benchmark: nonsense;"),
        (["--readme", "state"], "--readme measures nothing"),
        (["--readme", "--full"], "--readme measures nothing"),
        (["--readme", "--publish"], "--readme measures nothing"),
        (["--endpoint", "h"], "unrecognized arguments: --endpoint"),
    ],
)
def test_a_wrong_call_is_refused_with_the_reason(folders, capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        run.main(arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_named_benchmarks_run_and_write_to_a_folder_that_git_ignores(monkeypatch):
    ran = []
    monkeypatch.setattr(run, "measure", lambda *arguments: ran.append(arguments))
    assert run.main(["state", "formation", "--full"]) == 0
    assert ran == [("state", True, run.OUT), ("formation", True, run.OUT)]
    ignored = subprocess.run(["git", "check-ignore", "-q", run.OUT / "state.json"], cwd=run.README.parent, check=False)
    assert ignored.returncode in (0, 128)  # 128: not in a clone


class Benchmark:
    @staticmethod
    def measure(full):
        return [{"contender": "another", "full": full}]

    @staticmethod
    def tables(rows):
        return [Table("a table", ["rows"], [[str(len(rows))]])]


def test_if_one_benchmark_fails_the_others_still_run(monkeypatch, folders, capsys):
    def module(name):
        if name == "state":
            raise Failed("the twins' bytes differ")
        return Benchmark

    monkeypatch.setattr(catalog, "module", module)
    assert run.main(["state", "store"]) == 1
    assert "state failed: the twins' bytes differ" in capsys.readouterr().err
    assert json.loads((folders / "out/store.json").read_text())["rows"] == [{"contender": "another", "full": False}]
    assert sorted(path.name for path in folders.rglob("*")) == ["README.md", "out", "store.json"]


def test_published_results_are_in_the_readme(monkeypatch, folders):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(catalog, "module", lambda name: Benchmark)
    assert run.main(["recovery", "store", "--publish"]) == 0
    assert sorted(path.name for path in (folders / "results").iterdir()) == ["README.md", "recovery.json", "store.json"]
    readme = (folders / "README.md").read_text()
    assert readme.startswith(f"before {report.MARKS[0]}\n\nThree figures")
    assert readme.endswith(f"{report.MARKS[1]} after")
    assert "old" not in readme
    assert "a table" not in readme  # the README itself has figures only
    results = (folders / "results/README.md").read_text()
    assert results.startswith("# Results\n\nThe targets")
    assert results.count("a table") == 2
    assert run.main(["--readme"]) == 0
    assert (folders / "README.md").read_text() == readme


def test_the_readme_has_one_plot_and_three_figures():
    worlds = [
        {"contender": "etcd-v3", "nodes": 64, "seconds": 0.1, "per_node": {"requests": 2, "watches": 1.04}},
        {"contender": "etcd-v3", "nodes": 128, "seconds": 9.9},
        {"contender": "torch etcd-v2", "nodes": 64, "seconds": 5.0, "per_node": {"requests": 28.1, "watches": 0}},
        {"contender": "torch c10d", "nodes": 64, "seconds": 3.0},
    ]
    kills = [
        {"contender": "etcd-v3", "victim": "node", "ttl": 3, "seconds": 4.3},
        {"contender": "etcd-v3", "victim": "coordinator", "ttl": 3, "seconds": 8.8},
        {"contender": "etcd-v3", "victim": "node", "ttl": 15, "seconds": 14.0},
        {"contender": "torch etcd-v2", "victim": "node", "ttl": 3, "failed": "no world of 7 nodes within 60 s"},
    ]
    versions = {"etcd": "3.5.1"}
    made = {
        "date": "2026-01-01T00:00:00",
        "commit": None,
        "machine": "a machine",
        "python": "3.12",
        "versions": versions,
    }
    results = {
        "formation": {"rows": worlds, "metadata": made},
        "recovery": {"rows": kills, "metadata": made},
    }
    shown = report.front(results, "results")
    assert re.findall(r"!\[.*\]\((.*)\)", shown) == ["results/formation.png"]
    assert re.findall("^\\| [a-z].*$", shown, re.MULTILINE) == [
        "| time to form the world | 0.10 s | 5.00 s | 3.00 s |",
        "| requests to etcd per node | 3.0 | 28.1 | - |",
        "| from the kill of a node to the next world | 4.30 s | failed | - |",
    ]
    assert "Failed: torch etcd-v2: no world of 7 nodes within 60 s." in shown
    assert "Measured 2026-01-01 on a machine; Python 3.12, etcd 3.5.1." in shown
    assert re.search(r"^\d+ of the \d+ targets were met on etcd 3\.5\.1\. ", shown, re.MULTILINE)


def test_figures_that_were_not_measured_are_dashes():
    shown = report.front({}, "results")
    assert "| time to form the world | - | - | - |" in shown
    assert "![" not in shown
    assert "0 of the" in shown


def test_the_readme_is_what_the_results_say(monkeypatch, folders):
    pytest.importorskip("matplotlib")
    monkeypatch.undo()
    readme, results = run.README.read_text(), run.RESULTS / "README.md"
    copy = folders / "benchmarks/results"
    shutil.copytree(run.RESULTS, copy)
    (folders / "README.md").write_text(readme)
    report.write(folders / "README.md", copy)
    assert (folders / "README.md").read_text() == readme
    assert (copy / "README.md").read_text() == results.read_text()


def test_without_matplotlib_nothing_is_measured_for_the_readme(monkeypatch, folders, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    monkeypatch.setattr(run, "measure", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(SystemExit) as end:
        run.main(["state", "--publish"])
    assert end.value.code == 2
    assert "pip install -e '.[dev]'" in capsys.readouterr().err


def test_the_state_is_measured_without_the_compiled_core(monkeypatch):
    monkeypatch.setattr(state_benchmark, "SIZES", (8,))
    monkeypatch.setattr(rosters, "SIZES", (8, 300))
    monkeypatch.setattr(contenders.Contender, "obstacle", property(lambda self: None if self.pure else "not here"))
    rows = state_benchmark.measure()
    assert [row.get("obstacle") for row in rows[:3]] == ["not here", None, "not here"]
    cycle, parts, roster = state_benchmark.tables(rows)
    assert cycle.rows[0][1] == cycle.rows[0][4] == "-"
    assert cycle.rows[0][2].endswith(" µs")
    assert parts.rows[0][2].endswith(" µs")
    assert "compiled: not here" in cycle.remarks[0]
    assert [row[:2] for row in roster.rows] == [["8", "-"], ["300", "-"]]
    assert all(cell.endswith(" ms") for row in roster.rows for cell in row[2:9:2])
    assert roster.remarks == ("Not tried: roster, compiled: not here.",)


def test_both_rosters_give_the_same_bytes():
    pytest.importorskip("rendezvous._core._roster_c")
    compiled, pure = (rosters.run(contender, 300) for contender in rosters.CONTENDERS)
    assert (compiled["digest"], compiled["bytes"]) == (pure["digest"], pure["bytes"])


def test_results_without_rosters_still_have_their_tables():
    rows = [{"contender": "compiled", "nodes": 8, "obstacle": "not here"}]
    assert rosters.tables(rows) == []


def test_a_failed_operation_keeps_the_times_of_the_earlier_ones(monkeypatch):
    monkeypatch.setattr(store_benchmark, "OPERATIONS", ("barrier", "multi_get", "nonsense"))
    row = store_benchmark.run("etcd-v3", 4)
    assert row["failed"] == "nonsense: KeyError: 'nonsense'"
    assert set(row["seconds_of"]) == {"barrier", "multi_get"}
