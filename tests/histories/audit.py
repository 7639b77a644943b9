"""Checks of a history that need no model: nothing acknowledged is lost, and nothing is applied twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.histories.workload import LOG, SUM


def problems(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the keys that only additions and only appends change, by a history's last reads."""
    calls = {line["id"]: line for line in lines if "call" in line}
    returns = {line["id"]: line for line in lines if "return" in line}
    found = []
    for key, judge in ((SUM, _sum_problems), (LOG, _log_problems)):
        changes = [call for call in calls.values() if call["keys"] == [key] and call["op"] in ("add", "append")]
        reads = [call for call in calls.values() if call["keys"] == [key] and call["op"] == "get"]
        if not reads:
            continue
        last = returns[max(reads, key=lambda call: call["call"])["id"]]
        if "unknown" in last:
            found.append(f"the last read of {key!r} did not get an answer: {last['unknown']}")
            continue
        acknowledged = [call for call in changes if "result" in returns.get(call["id"], {})]
        found += judge(last.get("result"), changes, acknowledged)
    return found


def _sum_problems(result: str | None, changes: Sequence[Any], acknowledged: Sequence[Any]) -> list[str]:
    total = int(result or 0)
    least, most = (sum(call["amount"] for call in calls) for calls in (acknowledged, changes))
    if least <= total <= most:
        return []
    return [f"{SUM!r} is {total}, but {least} were added for certain, and {most} at most"]


def _log_problems(result: str | None, changes: Sequence[Any], acknowledged: Sequence[Any]) -> list[str]:
    counts = Counter(f"{name};" for name in (result or "").split(";")[:-1])
    attempted, certain = ({call["values"][0] for call in calls} for calls in (changes, acknowledged))
    twice = [f"{LOG!r} contains {value!r} {count} times" for value, count in counts.items() if count > 1]
    foreign = [f"{LOG!r} contains {value!r}, which nobody appended" for value in sorted(counts.keys() - attempted)]
    lost = [f"{LOG!r} lacks {value!r}, which was acknowledged" for value in sorted(certain - counts.keys())]
    return twice + foreign + lost
