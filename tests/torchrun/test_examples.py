"""The example that needs torchrun, run by the command in its docstring."""

from __future__ import annotations

import pytest

from tests.test_examples import EXAMPLES

pytestmark = pytest.mark.parametrize("agents", ["etcd-v3"], indirect=True)


def test_the_training_script_runs_on_two_agents(agents):
    for _ in range(2):
        agents.start("2", str(EXAMPLES / "train.py"))
    assert agents.finish() == [0, 0]
    assert agents.outputs().count(" of 4: loss ") == 4, agents.outputs()
