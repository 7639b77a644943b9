"""The checks that need no model."""

from __future__ import annotations

import pytest

from tests.histories.audit import problems
from tests.histories.workload import LOG, SUM


def lines(changes, final, key):
    """Return a history of changes, each with its value and its outcome, and a last read."""
    found = []
    for number, (value, outcome) in enumerate(changes):
        what = {"op": "add", "amount": value} if key == SUM else {"op": "append", "values": [value]}
        found.append({"call": 2 * number, "id": str(number), "keys": [key], **what})
        if outcome is not None:
            found.append({"return": 2 * number + 1, "id": str(number), **outcome})
    found.append({"call": 1000, "id": "final", "op": "get", "keys": [key]})
    return [*found, {"return": 1001, "id": "final", **final}]


DONE, LOST = {"result": None}, {"unknown": "no answer"}


@pytest.mark.parametrize(
    ("total", "wrong"),
    [("3", None), ("4", None), ("9", None), ("2", "is 2, but 3 were added"), ("10", "and 9 at most")],
)
def test_a_sum_lies_between_what_was_acknowledged_and_what_was_attempted(total, wrong):
    found = problems(lines([(3, DONE), (1, LOST), (5, None)], {"result": total}, SUM))
    assert (wrong in found[0]) if wrong else (found == [])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a;b;", None),
        ("a;c;", "lacks 'b;', which was acknowledged"),
        ("b;a;c;", None),
        ("a;b;a;", "contains 'a;' 2 times"),
        ("a;b;c;c;", "contains 'c;' 2 times"),
        ("a;b;d;", "contains 'd;', which nobody appended"),
        (None, "lacks 'a;'"),
    ],
)
def test_each_append_is_there_once_if_it_was_acknowledged_and_at_most_once_otherwise(text, wrong):
    final = {"failed": "missing"} if text is None else {"result": text}
    found = problems(lines([("a;", DONE), ("b;", DONE), ("c;", LOST)], final, LOG))
    assert any(wrong in each for each in found) if wrong else found == []


def test_a_last_read_without_an_answer_is_a_problem():
    assert "did not get an answer" in problems(lines([(1, DONE)], LOST, SUM))[0]
