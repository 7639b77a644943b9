"""What a node knows of its run, and how it sees in a read that etcd was restored from a snapshot."""

from __future__ import annotations

import pytest

from rendezvous.coordinated.records import Closed, Keys, Phase, RoundRecord
from rendezvous.coordinated.view import View
from rendezvous.etcd.v3.operations import PUT, Event, KeyValue

KEYS = Keys("/p", "run")


def record(number: int, revision: int) -> KeyValue:
    value = RoundRecord(number, Phase.FORMING).encode()
    return KeyValue(key=KEYS.round, value=value, mod_revision=revision, lease=1)


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def view(reasons: list[str]) -> View:
    def restored(reason: str) -> None:
        reasons.append(reason)
        view.forget()

    view = View(KEYS, lambda: None, restored)
    view.read([record(5, 100)], 100, view.known())
    return view


def test_a_key_that_is_older_than_it_was_shows_a_restoration(view, reasons):
    view.read([record(3, 50)], 200, view.known())
    assert reasons == ["the key '/p/run/ctl/round' was written at revision 50, and it has been at 100"]
    assert (view.record.round, view.record_revision, view.synced) == (3, 50, True)
    view.read([record(3, 50)], 201, view.known())
    assert len(reasons) == 1


def test_an_answer_that_an_event_has_overtaken_shows_nothing(view, reasons):
    known = view.known()
    view.receive([Event(type=PUT, kv=record(6, 120))])
    view.read([record(5, 100)], 110, known)
    assert reasons == []
    assert view.record.round == 6


def test_a_key_that_is_gone_shows_nothing(view, reasons):
    view.read([], 200, view.known())
    assert reasons == []
    assert view.record is None
    assert view.record_lost == 200


def test_a_read_that_was_sent_before_the_view_forgot_shows_nothing(view, reasons):
    known = view.known()
    view.forget()
    view.read([record(3, 50)], 60, known)
    assert reasons == []
    assert view.record.round == 3


def test_a_view_that_forgets_keeps_that_the_run_is_closed(view):
    closed = Closed("enough", "node-0_1_0")
    view.read([record(5, 100), KeyValue(key=KEYS.closed, value=closed.encode(), mod_revision=90)], 100, view.known())
    view.forget()
    assert (view.record, view.run_lease, view.bootstrap_revision, view.synced) == (None, 0, 0, False)
    view.read([], 50, view.known())
    assert view.closed == closed
