"""The checker: which histories it accepts, and which it rejects."""

from __future__ import annotations

import json
import re

import pytest

from tests.histories import checker


class History:
    """Builds a history. Each operation begins after the one before has ended, unless the test says otherwise."""

    def __init__(self, path):
        self.path = path
        self._lines = []
        self._clock = 0

    def begin(self, op, keys=(), values=(), **fields):
        """Add the call of an operation; return its id."""
        self._clock += 1
        name = f"op-{self._clock}"
        self._lines.append(
            {"call": self._clock, "id": name, "op": op, "keys": list(keys), "values": list(values), **fields}
        )
        return name

    def end(self, name, result=None, **fields):
        """Add the return of an operation."""
        self._clock += 1
        self._lines.append({"return": self._clock, "id": name, **(fields or {"result": result})})

    def do(self, op, keys=(), values=(), result=None, failed="", **fields):
        """Add an operation."""
        name = self.begin(op, keys, values, **fields)
        self.end(name, result, **({"failed": failed} if failed else {}))

    def lose(self, op, keys=(), values=(), **fields):
        """Add an operation without a known outcome."""
        self.end(self.begin(op, keys, values, **fields), unknown="no answer")

    def verdict(self):
        self.path.write_text("".join(f"{json.dumps(line)}\n" for line in self._lines))
        (verdict,) = checker.check([self.path])
        return verdict

    @property
    def result(self):
        return self.verdict().result


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.ndjson")


# For each operation: what comes before, the operation, what it may return, and what it must not return.
RESULTS = [
    ("get", {}, [("set", "v")], ["v"], ["w", ""]),
    ("check", {}, [("set", "v")], [True], [False]),
    ("check", {}, [], [False], [True]),
    ("check", {}, [("set", "v"), ("delete_key", True)], [False], [True]),
    ("add", {"amount": 2}, [], [2], [0, 1, 4]),
    ("add", {"amount": -2}, [("set", "5")], [3], [5, 7, -2]),
    ("compare_set", {"expected": "", "values": ["n"]}, [], ["n"], ["", "v"]),
    ("compare_set", {"expected": "x", "values": ["n"]}, [], ["x"], ["n", ""]),
    ("compare_set", {"expected": "v", "values": ["n"]}, [("set", "v")], ["n"], ["v"]),
    ("compare_set", {"expected": "x", "values": ["n"]}, [("set", "v")], ["v"], ["n", "x"]),
    ("delete_key", {}, [("set", "v")], [True], [False]),
    ("delete_key", {}, [], [False], [True]),
]


@pytest.mark.parametrize(("op", "fields", "before", "right", "wrong"), RESULTS)
def test_each_operation_returns_what_the_store_promises(history, op, fields, before, right, wrong):
    for result in [*right, *wrong]:
        history._lines.clear()
        for earlier, value in before:
            if earlier == "set":
                history.do("set", ["k"], [value])
            else:
                history.do(earlier, ["k"], result=value)
        history.do(op, ["k"], result=result, **fields)
        assert history.result == ("Ok" if result in right else "Illegal"), result


@pytest.mark.parametrize(
    ("op", "fields", "value"),
    [
        ("set", {"values": ["new"]}, "new"),
        ("append", {"values": ["+"]}, "1+"),
        ("add", {"amount": 4, "result": 5}, "5"),
        ("compare_set", {"expected": "1", "values": ["new"], "result": "new"}, "new"),
        ("compare_set", {"expected": "2", "values": ["new"], "result": "1"}, "1"),
        ("check", {"result": True}, "1"),
        ("wait", {}, "1"),
    ],
)
def test_each_operation_changes_what_the_store_promises(history, op, fields, value):
    history.do("set", ["k"], ["1"])
    history.do(op, ["k"], **fields)
    history.do("get", ["k"], result=value)
    assert history.result == "Ok"
    history.do("get", ["k"], result="something else")
    assert history.result == "Illegal"


def test_failures_are_checked_too(history):
    history.do("get", ["k"], failed="missing")
    history.do("wait", ["k", "l"], failed="missing")
    history.do("set", ["k"], ["text"])
    history.do("add", ["k"], amount=1, failed="not a number")
    assert history.result == "Ok"
    history.do("get", ["k"], failed="missing")
    assert history.result == "Illegal"


def test_an_addition_to_a_number_does_not_fail(history):
    history.do("set", ["k"], ["5"])
    history.do("add", ["k"], amount=1, failed="not a number")
    assert history.result == "Illegal"


def test_a_wait_needs_a_key_that_has_existed(history):
    history.do("set", ["k"], ["v"])
    history.do("delete_key", ["k"], result=True)
    history.do("wait", ["k"])
    assert history.result == "Ok"
    history.do("wait", ["other"])
    assert history.result == "Illegal"


def test_operations_that_overlap_may_take_effect_in_any_order(history):
    first, second = history.begin("set", ["k"], ["1"]), history.begin("set", ["k"], ["2"])
    history.end(second)
    history.end(first)
    history.do("get", ["k"], result="2")
    assert history.result == "Ok"
    history.do("get", ["k"], result="1")
    assert history.result == "Illegal"


def test_an_older_value_must_not_come_back(history):
    history.do("set", ["k"], ["1"])
    history.do("set", ["k"], ["2"])
    history.do("get", ["k"], result="1")
    assert history.result == "Illegal"


def test_a_change_without_a_known_outcome_may_take_effect_late_or_never(history):
    history.lose("set", ["k"], ["lost"])
    history.begin("append", ["k"], ["!"])  # it has not even returned
    history.do("set", ["k"], ["v"])
    history.do("get", ["k"], result="v")
    assert history.result == "Ok"
    history.do("get", ["k"], result="lost")
    history.do("get", ["k"], result="lost!")
    verdict = history.verdict()
    assert (verdict.result, verdict.operations, verdict.open) == ("Ok", 6, 2)


def test_a_change_without_a_known_outcome_takes_effect_once(history):
    history.lose("add", ["k"], amount=1)
    history.do("add", ["k"], amount=1, result=2)
    assert history.result == "Ok"
    history.do("get", ["k"], result="3")
    assert history.result == "Illegal"


def test_keys_are_checked_one_by_one(history):
    history.do("multi_set", ["a", "b"], ["1", "2"])
    history.do("multi_get", ["a", "b"], result=["1", "2"])
    history.do("check", ["a", "b"], result=True)
    verdict = history.verdict()
    assert (verdict.result, verdict.partitions) == ("Ok", 2)
    history.do("multi_get", ["b", "a"], result=["2", "2"])
    verdict = history.verdict()
    assert (verdict.result, verdict.failing) == ("Illegal", "a")


def test_keys_of_which_one_is_missing_are_checked_together(history):
    history.do("set", ["a"], ["1"])
    history.do("check", ["a", "b"], result=False)
    verdict = history.verdict()
    assert (verdict.result, verdict.partitions) == ("Ok", 1)
    history.do("set", ["b"], ["1"])
    history.do("check", ["a", "b"], result=False)
    verdict = history.verdict()
    assert (verdict.result, verdict.failing) == ("Illegal", "a b")


@pytest.mark.parametrize(("op", "right", "wrong"), [("num_keys", 2, 3), ("list_keys", ["a", "b"], ["a", "b", "c"])])
def test_operations_on_the_whole_store(history, op, right, wrong):
    history.do("multi_set", ["b", "a", "c"], ["1", "2", "3"])
    history.do("delete_key", ["c"], result=True)
    history.do(op, result=right)
    assert history.result == "Ok"
    history.do(op, result=wrong)
    assert history.result == "Illegal"


def test_a_picture_shows_what_is_wrong(history, tmp_path):
    history.do("get", ["k"], result="v")
    history.verdict()
    (verdict,) = checker.check([history.path], tmp_path)
    assert "get(k)" in (tmp_path / "history.html").read_text()
    assert verdict.picture == str(tmp_path / "history.html")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ('{"return": 1, "id": "a"}', "line 1: neither the call of a new operation nor the return"),
        ('{"call": 1, "id": "a", "op": "set", "keys": ["k"]}\n' * 2, "line 2: neither the call"),
        ("no JSON", "line 1: invalid character"),
        (
            '{"call": 1, "id": "a", "op": "fly", "keys": ["k"]}\n{"return": 2, "id": "a"}',
            r"operation a \(fly\): unknown",
        ),
        (
            '{"call": 1, "id": "a", "op": "get", "keys": ["k"]}\n{"return": 2, "id": "a", "result": 5}',
            "cannot unmarshal",
        ),
        ('{"call": 1, "id": "a", "op": "set", "keys": []}', "it needs one key"),
        ('{"call": 1, "id": "a", "op": "multi_set", "keys": ["k"]}', "0 values for 1 keys"),
    ],
)
def test_a_malformed_history_is_an_error_that_names_the_place(tmp_path, lines, complaint):
    path = tmp_path / "bad.ndjson"
    path.write_text(lines)
    with pytest.raises(RuntimeError, match=f"(?s){re.escape(str(path))}.*{complaint}"):
        checker.check([path])


def test_a_missing_checker_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(checker, "BINARY", tmp_path / "porcupine")
    with pytest.raises(FileNotFoundError, match="run 'make porcupine', which needs Go"):
        checker.check([])
