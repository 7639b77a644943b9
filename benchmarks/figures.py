"""The figures that the project set out to reach, and what the results say of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import Job
from benchmarks.crew import LATE, Failed
from benchmarks.tables import MISSING, Table, by

Results = dict[str, list[dict[str, Any]]]
"""The rows of each benchmark by its name."""


class NotMeasured(Exception):
    """There is no result that the figure could be taken from; the message says why."""


@dataclass(frozen=True)
class Figure:
    """What was asked.

    Attributes:
        asked: in words.
        unit: a format for what was reached.
        reached: returns it. Raises NotMeasured; or Failed, where it was tried in vain.
        most: what the figure may be at most, or None where it must be at least ``least``.
        least: what it must be at least.
        times: returns the seconds of what it is compared with: then the figure is how many times as long that takes.
    """

    asked: str
    unit: str
    reached: Callable[[Results], float]
    most: float | None = None
    least: float | None = None
    times: Callable[[Results], float] | None = None

    def row(self, results: Results) -> list[str]:
        """Return the line of the table: what was asked, what was reached, and whether that is a hit."""
        try:
            value, is_bound = self._value(results)
        except NotMeasured as exc:
            return [self.asked, str(exc), MISSING]
        except Failed as exc:
            return [self.asked, str(exc), "**miss**"]
        hit = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        verdict = "hit" if hit else MISSING if is_bound else "**miss**"
        return [self.asked, ("more than " if is_bound else "") + self.unit.format(value), verdict]

    def _value(self, results: Results) -> tuple[float, bool]:
        """Return the figure, and whether it is only a lower bound: what it is compared with was not done in time."""
        value = self.reached(results)
        if self.times is None:
            return value, False
        try:
            return self.times(results) / value, False
        except Failed as exc:
            if LATE in str(exc):
                return Job.timeout / value, True
            raise NotMeasured(str(exc)) from exc


def _row(results: Results, benchmark: str, **keys: Any) -> dict[str, Any]:
    found = by(results.get(benchmark, []), *keys).get(tuple(keys.values()))
    if found is None:
        raise NotMeasured("not measured")
    if "obstacle" in found:
        raise NotMeasured(f"not measured: {found['obstacle']}")
    if "failed" in found:
        raise Failed(f"{found['contender']} failed: {found['failed']}")
    if "failed_at" in found:
        raise Failed(f"{found['contender']} failed at {found['failed_at']:,} nodes")
    return found


def _formation(contender: str, nodes: int) -> Callable[[Results], float]:
    return lambda results: float(_row(results, "formation", contender=contender, nodes=nodes)["seconds"])


def _ratio(above: Callable[[Results], float], below: Callable[[Results], float]) -> Callable[[Results], float]:
    return lambda results: above(results) / below(results)


def _per_node(names: tuple[str, ...], nodes: int) -> Callable[[Results], float]:
    def reached(results: Results) -> float:
        load = _row(results, "formation", contender=_MANY, nodes=nodes)["per_node"]
        return sum(float(load[name]) for name in names)

    return reached


def _steady(name: str) -> Callable[[Results], float]:
    return lambda results: float(_row(results, "steady", contender=_MANY, nodes=10_000)["per_second"][name])


def _recovery(results: Results) -> float:
    cases = [row for row in results.get("recovery", []) if row["contender"] == "etcd-v3" and row["victim"] == "node"]
    if not cases:
        raise NotMeasured("not measured")
    for row in cases:
        if "failed" in row:
            raise Failed(f"failed: {row['failed']}")
    return max(float(row["seconds"]) - row["ttl"] for row in cases)


def _state(contender: str, name: str) -> Callable[[Results], float]:
    return lambda results: float(_row(results, "state", contender=contender, nodes=1000)[name])


_MANY = "etcd-v3, coroutines"

FIGURES = (
    Figure("`etcd-v3` forms 1,000 nodes within 1 s", "{:.2f} s", _formation(_MANY, 1000), most=1.0),
    Figure("`etcd-v3` forms 10,000 nodes within 10 s", "{:.1f} s", _formation(_MANY, 10_000), most=10.0),
    Figure(
        "its time grows linearly: 10,000 nodes take at most 14 times as long as 1,000",
        "{:.1f} times",
        _ratio(_formation(_MANY, 10_000), _formation(_MANY, 1000)),
        most=14.0,
    ),
    *(
        Figure(
            f"at most 1.4 times the floor, {nodes:,} nodes",
            "{:.2f} times",
            _ratio(_formation(_MANY, nodes), _formation("floor", nodes)),
            most=1.4,
        )
        for nodes in (1000, 10_000)
    ),
    Figure(
        "at least 20 times as fast as torch's `etcd-v2`, 128 nodes",
        "{:.0f} times",
        _formation("etcd-v3", 128),
        least=20.0,
        times=_formation("torch etcd-v2", 128),
    ),
    Figure(
        "at most 4 requests a node and round, watches included, 10,000 nodes",
        "{:.4f}",
        _per_node(("requests", "watches"), 10_000),
        most=4.0,
    ),
    Figure("at most 4 KiB received a node, 10,000 nodes", "{:.0f} bytes", _per_node(("bytes",), 10_000), most=4096.0),
    Figure("a running job of 10,000 nodes makes no raft write", "{:.2f} a second", _steady("raft"), most=0.0),
    Figure("nor a request, however often agents ask", "{:.2f} a second", _steady("requests"), most=0.0),
    Figure(
        "a killed node makes the others form again within its lease's time and 2 s (and a last call of 1 s)",
        "its time and {:.1f} s",
        _recovery,
        most=3.0,
    ),
    Figure(
        "`etcd-v2` is at least 3 times as fast as torch's, 128 nodes",
        "{:.1f} times",
        _formation("etcd-v2", 128),
        least=3.0,
        times=_formation("torch etcd-v2", 128),
    ),
    Figure("`etcd-v2` forms 256 nodes within 15 s", "{:.1f} s", _formation("etcd-v2", 256), most=15.0),
    Figure(
        "a swap cycle of its state at least 30 times as fast as torch's pickle, 1,000 nodes",
        "{:.0f} times",
        _ratio(_state("torch", "cycle_us"), _state("compiled", "cycle_us")),
        least=30.0,
    ),
    Figure(
        "and at least 100 times as fast as the pure twin",
        "{:.0f} times",
        _ratio(_state("pure", "cycle_us"), _state("compiled", "cycle_us")),
        least=100.0,
    ),
    Figure(
        "its state takes at most 20 bytes a node in etcd, 1,000 nodes",
        "{:.1f} bytes",
        _state("compiled", "stored_bytes_per_node"),
        most=20.0,
    ),
)


def table(results: Results) -> Table:
    """Return what was asked and what was reached."""
    remark = (
        f"With 1,000 nodes and more `etcd-v3` is `{_MANY}`. What the other could not do within {Job.timeout:g} s took "
        'that long for "more than".'
    )
    heads = ["", "reached", ""]
    return Table("What was asked, and what was reached.", heads, [each.row(results) for each in FIGURES], (remark,))
