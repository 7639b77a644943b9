"""The programs in examples/ that do not need torch, run by the commands in their docstrings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.nodes import BOUND, eventually

EXAMPLES = Path(__file__).parents[1] / "examples"


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start an example; its output goes to a file ``name`` in ``folder``."""
    with open(folder / name, "wb") as output:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=EXAMPLES)


def test_nodes_meet(etcd3, run_id, tmp_path):
    process = start(tmp_path, "meet", "meet.py", "--endpoint", etcd3.get_endpoint(), "--run-id", run_id, "--nodes", "3")
    assert process.wait(timeout=BOUND) == 0, (tmp_path / "meet").read_text()
    assert (tmp_path / "meet").read_text().startswith("3 nodes met: process ")


def test_a_launcher_starts_the_command_again_when_a_node_joins_and_ends_when_it_succeeds(etcd3, run_id, tmp_path):
    done = tmp_path / "done"
    ready = f"os.environ['WORLD_SIZE'] == '2' and os.path.exists({str(done)!r})"
    work = f"import os, time\nwhile not ({ready}):\n time.sleep(0.1)"

    def launch(number: int) -> subprocess.Popen[bytes]:
        return start(
            tmp_path,
            f"launcher-{number}",
            *("launcher.py", "--endpoint", etcd3.get_endpoint(), "--run-id", run_id, "--nodes", "1:2"),
            *("--addr", f"host-{number}", "--", sys.executable, "-c", work),
        )

    def lines(number: int) -> list[str]:
        return (tmp_path / f"launcher-{number}").read_text().splitlines()

    first = launch(0)
    eventually(lambda: "rank 0 of 1" in lines(0), "a world of one")
    second = launch(1)
    eventually(lambda: "rank 0 of 2" in lines(0) and "rank 1 of 2" in lines(1), "a world of two")
    done.touch()
    assert [first.wait(timeout=BOUND), second.wait(timeout=BOUND)] == [0, 0], lines(0) + lines(1)
    assert os.path.exists(done)
