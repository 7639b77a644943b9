"""The targets of the project, and what the results say about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import LATE
from benchmarks.tables import by
from rendezvous.bench.checks import Failed
from rendezvous.bench.contenders import Job
from rendezvous.bench.tables import MISSING, Table

Results = dict[str, list[dict[str, Any]]]
"""The rows of each benchmark by its name."""

MEASURED = ("formation", "steady", "recovery", "state")
"""The benchmarks that the targets are about."""

_MET = "met"


class NotMeasured(Exception):
    """There is no result for a target; the message says why."""


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        text: the target in words.
        format: the format of the value that was reached.
        reached: returns that value; raises NotMeasured, or Failed if the measurement failed.
        most: the largest value that meets the target, if there is one.
        least: the smallest value that meets the target, if there is one.
        times: returns the seconds of a contender to compare with. The value is then the ratio of these seconds to those
            that ``reached`` returns.
    """

    text: str
    format: str
    reached: Callable[[Results], float]
    most: float | None = None
    least: float | None = None
    times: Callable[[Results], float] | None = None

    def row(self, results: Results) -> list[str]:
        """Return the row of the table: the target, the value that was reached, and whether it meets the target."""
        try:
            value, is_bound = self._value(results)
        except NotMeasured as exc:
            return [self.text, str(exc), MISSING]
        except Failed as exc:
            return [self.text, str(exc), "**missed**"]
        met = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        verdict = _MET if met else MISSING if is_bound else "**missed**"
        return [self.text, ("more than " if is_bound else "") + self.format.format(value), verdict]

    def _value(self, results: Results) -> tuple[float, bool]:
        """Return the value, and whether it is only a lower bound because the other contender was not done in time."""
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
        load: dict[str, float] = _row(results, "formation", contender=_MANY, nodes=nodes)["per_node"]
        return sum(load[name] for name in names)

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
    return max(float(row["seconds"]) - float(row["ttl"]) for row in cases)


def _state(contender: str, name: str) -> Callable[[Results], float]:
    return lambda results: float(_row(results, "state", contender=contender, nodes=1000)[name])


_MANY = "etcd-v3, coroutines"

TARGETS = (
    Target("`etcd-v3` forms 1,000 nodes within 1 s", "{:.2f} s", _formation(_MANY, 1000), most=1.0),
    Target("`etcd-v3` forms 10,000 nodes within 10 s", "{:.1f} s", _formation(_MANY, 10_000), most=10.0),
    Target(
        "`etcd-v3` grows linearly: 10,000 nodes take at most 14 times as long as 1,000 nodes",
        "{:.1f} times",
        _ratio(_formation(_MANY, 10_000), _formation(_MANY, 1000)),
        most=14.0,
    ),
    *(
        Target(
            f"`etcd-v3` takes at most 1.4 times as long as the floor, {nodes:,} nodes",
            "{:.2f} times",
            _ratio(_formation(_MANY, nodes), _formation("floor", nodes)),
            most=1.4,
        )
        for nodes in (1000, 10_000)
    ),
    Target(
        "`etcd-v3` is at least 20 times as fast as torch's `etcd-v2`, 128 nodes",
        "{:.0f} times",
        _formation("etcd-v3", 128),
        least=20.0,
        times=_formation("torch etcd-v2", 128),
    ),
    Target(
        "`etcd-v3` sends at most 4 requests per node and round, with watches, 10,000 nodes",
        "{:.4f}",
        _per_node(("requests", "watches"), 10_000),
        most=4.0,
    ),
    Target(
        "each node of `etcd-v3` receives at most 4 KiB in a round, 10,000 nodes",
        "{:.0f} bytes",
        _per_node(("bytes",), 10_000),
        most=4096.0,
    ),
    Target("a running job of 10,000 nodes causes no raft write", "{:.2f} per second", _steady("raft"), most=0.0),
    Target(
        "a running job of 10,000 nodes sends no request, although agents poll",
        "{:.2f} per second",
        _steady("requests"),
        most=0.0,
    ),
    Target(
        "after a killed node, the others form the next world within its lease's TTL and 2 s (and a last call of 1 s)",
        "the TTL and {:.1f} s",
        _recovery,
        most=3.0,
    ),
    Target(
        "`etcd-v2` is at least 3 times as fast as torch's, 128 nodes",
        "{:.1f} times",
        _formation("etcd-v2", 128),
        least=3.0,
        times=_formation("torch etcd-v2", 128),
    ),
    Target("`etcd-v2` forms 256 nodes within 15 s", "{:.1f} s", _formation("etcd-v2", 256), most=15.0),
    Target(
        "a swap cycle of the `etcd-v2` state is at least 30 times as fast as with torch's pickle, 1,000 nodes",
        "{:.0f} times",
        _ratio(_state("torch", "cycle_us"), _state("compiled", "cycle_us")),
        least=30.0,
    ),
    Target(
        "a swap cycle of the `etcd-v2` state is at least 100 times as fast as with the pure twin, 1,000 nodes",
        "{:.0f} times",
        _ratio(_state("pure", "cycle_us"), _state("compiled", "cycle_us")),
        least=100.0,
    ),
    Target(
        "the `etcd-v2` state takes at most 20 bytes per node in etcd, 1,000 nodes",
        "{:.1f} bytes",
        _state("compiled", "stored_bytes_per_node"),
        most=20.0,
    ),
)


def met(results: Results) -> int:
    """Return how many targets the results meet."""
    return sum(each.row(results)[-1] == _MET for each in TARGETS)


def table(results: Results, where: str = "") -> Table:
    """Return the table of all targets; ``where`` follows the caption and says on which etcd they were measured."""
    remark = (
        f'For 1,000 nodes and more, `etcd-v3` stands for `{_MANY}`. "More than" means: the other implementation was '
        f"not done after {Job.timeout:g} s, and the ratio is computed with that time."
    )
    heads = ["target", "reached", ""]
    return Table(
        f"The targets, and what was reached{where}.", heads, [each.row(results) for each in TARGETS], (remark,)
    )
