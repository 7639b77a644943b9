"""The committed transcripts are those that the scenarios give now."""

from __future__ import annotations

import difflib

import pytest

from tests.simulation.scenarios import COMMAND, FOLDER, SCENARIOS, Scenario, transcript

pytestmark = pytest.mark.both_twins

ADVICE = f"If the change is intended, run `{COMMAND}` (or `make transcripts`) and explain the difference in the commit."


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_transcript_is_current(scenario: Scenario):
    path = FOLDER / f"{scenario.name}.txt"
    committed = path.read_text(encoding="utf-8").splitlines()
    now = transcript(scenario).splitlines()
    diff = difflib.unified_diff(committed, now, f"{path.name}, committed", f"{path.name}, now", lineterm="")
    if committed != now:
        pytest.fail("\n".join([*diff, "", ADVICE]), pytrace=False)


def test_each_transcript_has_a_scenario():
    names = sorted(path.stem for path in FOLDER.glob("*.txt"))
    assert names == sorted(scenario.name for scenario in SCENARIOS), ADVICE
