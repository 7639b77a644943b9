"""What the headers of etcd's answers show of its history."""

from __future__ import annotations

import pytest

from rendezvous.etcd.v3.errors import CompactedError, UnavailableError
from rendezvous.etcd.v3.history import History
from rendezvous.etcd.v3.messages import rpc_pb2


def header(revision: int, cluster_id: int = 1) -> rpc_pb2.ResponseHeader:
    return rpc_pb2.ResponseHeader(cluster_id=cluster_id, revision=revision)


@pytest.fixture
def history() -> History:
    history = History()
    history.observe(header(100), "etcd", history.known())
    return history


def test_a_lower_revision_than_was_known_before_the_request_shows_a_restoration(history, caplog):
    told: list[str] = []
    history.subscribe(told.append)
    history.observe(header(99), "host:1", history.known())
    assert history.restorations == 1
    assert told == ["the revision of etcd at host:1 is 99, and it has been 100 already"]
    assert "etcd was restored from a snapshot: the revision of etcd at host:1 is 99" in caplog.text
    assert "what was written since the snapshot is lost" in caplog.text
    history.observe(header(99), "host:1", history.known())
    history.observe(header(98), "host:1")
    assert history.restorations == 1
    history.unsubscribe(told.append)
    history.observe(header(1), "host:1", history.known())
    assert (history.restorations, len(told)) == (2, 1)


def test_an_answer_that_comes_after_a_later_one_may_have_a_lower_revision(history):
    first = history.known()
    second = history.known()
    history.observe(header(120), "etcd", second)
    history.observe(header(110), "etcd", first)
    assert history.restorations == 0
    assert history.known().revision == 120


def test_an_answer_that_is_not_linearizable_may_have_a_lower_revision(history):
    history.observe(header(50), "etcd")
    assert history.restorations == 0
    assert history.known().revision == 100
    history.observe(header(150), "etcd")
    history.observe(header(149), "etcd", history.known())
    assert history.restorations == 1


@pytest.mark.parametrize("linearizable", [False, True])
def test_another_cluster_id_shows_a_restoration_whatever_the_revision(history, linearizable):
    told: list[str] = []
    history.subscribe(told.append)
    history.observe(header(500, cluster_id=0xAB), "host:1", history.known() if linearizable else None)
    assert told == ["the cluster id of etcd at host:1 is ab, and it was 1"]
    assert history.known() == (1, 500)


def test_an_answer_without_a_cluster_id_shows_nothing(history):
    history.observe(header(100, cluster_id=0), "etcd", history.known())
    history.observe(header(100, cluster_id=1), "etcd", history.known())
    assert history.restorations == 0


def test_what_was_sent_before_a_restoration_is_refused(history):
    before = history.known()
    history.check(before)
    history.check_revision(before)
    history.restored("a key is older")
    with pytest.raises(UnavailableError, match="while the request was under way") as refused:
        history.check(before)
    assert refused.value.retryable
    with pytest.raises(CompactedError, match="the revision does not exist any more"):
        history.check_revision(before)
    history.check(history.known())


def test_an_error_of_one_listener_does_not_keep_the_others_from_being_told(history, caplog):
    told: list[str] = []

    def fail(reason: str) -> None:
        raise RuntimeError("broken on purpose")

    history.subscribe(fail)
    history.subscribe(told.append)
    history.restored("a key is older")
    assert told == ["a key is older"]
    assert "broken on purpose" in caplog.text
