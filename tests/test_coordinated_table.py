"""The coordinator's table of nodes: counts and missing members, and what they cost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from rendezvous.coordinated.candidates import Candidate
from rendezvous.coordinated.records import NodeRecord
from rendezvous.coordinated.rules import Counts
from rendezvous.coordinated.table import Table


def table(number: int, *records: NodeRecord) -> Table:
    """Return the table of round ``number``, which forms, with these nodes."""
    result = Table()
    result.open(number, {})
    for node_id, record in enumerate(records, 1):
        result.put(Candidate(node_id, node_id, record))
    return result


def test_nodes_are_counted_by_kind():
    result = Table()
    for node_id in range(1, 6):
        result.put(Candidate(node_id, node_id, NodeRecord(f"node-{node_id}", 1, 0)))
    assert result.counts(False) == Counts(False, 0, 0, 0, 5)
    result.complete(0, {node_id: f"node-{node_id}_1_0" for node_id in (3, 1, 2)})
    assert result.counts(True) == Counts(True, 3, 0, 0, 2, closed=True)
    result.put(Candidate(3, 3, NodeRecord("node-3", 1, 0, last_round=0, last_rank=0)))  # it joined again
    assert result.rank_0_gone()
    result.remove(1)
    result.remove(1)
    assert result.counts(False) == Counts(True, 1, 1, 1, 2)
    assert result.lost() == ["node-1_1_0"]
    assert result.joined == 5
    result.open(1, result.members)  # the members of the last round are counted while the next one forms
    assert result.counts(False) == Counts(False, 0, 2, 1, 2)
    result.put(Candidate(6, 9, NodeRecord("node-1", 1, 0)))
    result.remove(2)
    assert result.counts(False) == Counts(False, 0, 1, 2, 3)
    assert result.joined == 6
    result.open(2, {})
    assert result.counts(False) == Counts(False, 0, 0, 0, 4)


def test_a_lost_member_is_missing_until_it_or_a_newcomer_on_its_host_joins():
    lost = ["a_1_0", "b_1_0", "b_2_0", "c_1_0"]
    assert table(4).still_missing(lost) == lost
    assert table(4).still_missing([]) == []
    assert table(4, NodeRecord("b", 2, 0, 3)).still_missing(lost) == ["a_1_0", "b_1_0", "c_1_0"]  # itself
    assert table(4, NodeRecord("b", 9, 0)).still_missing(lost) == ["a_1_0", "b_2_0", "c_1_0"]  # one newcomer for one
    assert table(4, *(NodeRecord("b", 9, n) for n in range(3))).still_missing(lost) == ["a_1_0", "c_1_0"]
    assert table(4, NodeRecord("c", 9, 0, 3)).still_missing(lost) == lost  # a member of the last round, no newcomer
    assert table(4, NodeRecord("d", 9, 0)).still_missing(lost) == lost


def test_a_host_name_with_an_underscore_is_not_another_host():
    assert table(4, NodeRecord("a", 9, 0)).still_missing(["a_b_1_0"]) == ["a_b_1_0"]
    assert table(4, NodeRecord("a_b", 9, 0)).still_missing(["a_b_1_0"]) == []


def plain_still_missing(result: Table, names: list[str]) -> list[str]:
    """Return the same as the method, in the slow and obvious way."""
    left = [name for name in names if name not in [candidate.record.name for candidate in result.nodes.values()]]
    for candidate in result.nodes.values():
        if candidate.record.last_round < result.number - 1:
            same_host = [name for name in left if name.rsplit("_", 2)[0] == candidate.record.addr]
            if same_host:
                left.remove(same_host[0])
    return left


@pytest.mark.parametrize("seed", range(50))
def test_the_index_gives_the_same_as_a_search(seed: int):
    rng = random.Random(seed)
    hosts = ["a", "a_b", "b", "node-1", "node-10"]
    names = list(dict.fromkeys(f"{rng.choice(hosts)}_{rng.randint(1, 4)}_{rng.randint(0, 1)}" for _ in range(12)))
    records = [
        NodeRecord(rng.choice(hosts), rng.randint(1, 4), rng.randint(0, 1), rng.choice([-1, 2, 3])) for _ in range(9)
    ]
    result = table(4, *records)
    assert result.still_missing(names) == plain_still_missing(result, names)


USES: Counter[str] = Counter()


class CountedName(str):
    """A name that counts each comparison and each search in it."""

    def __eq__(self, other: object) -> bool:
        USES["=="] += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        USES["hash"] += 1
        return str.__hash__(self)

    def startswith(self, *arguments: Any) -> bool:
        USES["startswith"] += 1
        return str.startswith(self, *arguments)

    def rsplit(self, *arguments: Any) -> list[str]:  # type: ignore[override]
        USES["rsplit"] += 1
        return str.rsplit(self, *arguments)


@pytest.mark.parametrize("same_hosts", [True, False], ids=["same hosts", "new hosts"])
def test_a_job_that_returns_under_new_names_costs_a_few_operations_for_each_node(same_hosts: bool):
    count = 500
    names = [CountedName(f"node-{index}_1_0") for index in range(count)]
    prefix = "node" if same_hosts else "other"
    result = table(1, *(NodeRecord(f"{prefix}-{index}", 2, 0) for index in range(count)))
    USES.clear()
    missing = result.still_missing(names)
    assert missing == ([] if same_hosts else [str(name) for name in names])
    uses = Counter(USES)
    uses["=="] -= count * (not same_hosts)  # of the assertion
    assert 0 < uses.total() <= 5 * count
