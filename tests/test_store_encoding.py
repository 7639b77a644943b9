"""How the store of the coordinated rendezvous stores values and counters, and what stores check in the same way."""

from __future__ import annotations

import pytest

from rendezvous.api import RendezvousStateError
from rendezvous.coordinated.store.encoding import (
    AFTER_COUNTERS,
    BEFORE_COUNTERS,
    NEW_COUNTER,
    decode,
    encode,
    encode_number,
)
from rendezvous.coordinated.store.idempotency import IdempotencyKey, IdempotencyKeys, change_was_made
from rendezvous.store import add_up, missing_keys_message, to_amount, to_bytes, to_number, to_text
from rendezvous.utils import quoted

MOST, LEAST = 2**63 - 1, -(2**63)


@pytest.mark.parametrize("value", [b"", b"=", b"+1", b"\x00\xff", b"x" * 1000])
def test_a_value_is_decoded_as_it_was(value):
    assert decode(b"k", encode(value), 7) == value


@pytest.mark.parametrize("version", [1, 2, 1000])
@pytest.mark.parametrize("number", [0, 1, -1, 2**62 - 1, 2**62, MOST, LEAST])
def test_a_number_is_decoded_as_its_decimal(number, version):
    stored = encode_number(number, version)
    assert decode(b"k", stored, version) == b"%d" % number


def test_each_write_adds_one_to_a_counter():
    assert [decode(b"k", NEW_COUNTER, version) for version in (1, 2, 3)] == [b"1", b"2", b"3"]
    assert [decode(b"k", encode_number(-1, 5), version) for version in (5, 6, 7)] == [b"-1", b"0", b"1"]


@pytest.mark.parametrize("number", [0, -1, 2**62 - 1, 1 - 2**62])
def test_counters_lie_between_their_limits(number):
    assert BEFORE_COUNTERS < encode_number(number, 3) < AFTER_COUNTERS
    assert BEFORE_COUNTERS < NEW_COUNTER < AFTER_COUNTERS


@pytest.mark.parametrize("number", [2**62, -(2**62), MOST, LEAST])
def test_a_number_that_could_overflow_is_not_a_counter(number):
    stored = encode_number(number, 3)
    assert not BEFORE_COUNTERS < stored < AFTER_COUNTERS
    assert decode(b"k", stored, 99) == b"%d" % number


@pytest.mark.parametrize("stored", [b"", b"x", b"+", b"+x", b"+1.5", b"+" + b"9" * 100, b"-1", b"\x80\x04"])
def test_foreign_bytes_are_refused(stored):
    with pytest.raises(RendezvousStateError, match=r"^the etcd key '/p/k' contains b'.*, which is not a value of"):
        decode(b"/p/k", stored, 1)


def test_an_idempotency_key_is_used_by_one_change_at_a_time():
    keys = IdempotencyKeys(b"once/")
    with keys.use() as first, keys.use() as second:
        assert (first.key, first.number) == (b"once/0", 1)
        assert (second.key, second.number) == (b"once/1", 1)
        first.number += 1
    with keys.use() as again:
        assert (again.key, again.number) == (b"once/0", 2)
        assert again.put(9).request_put.lease == 9
    with pytest.raises(RuntimeError), keys.use() as failed:
        raise RuntimeError
    with keys.use() as after:
        assert after is failed


@pytest.mark.parametrize("made", [True, False])
def test_a_transaction_was_carried_out_if_its_number_or_a_higher_one_is_stored(made):
    before, now, after = (IdempotencyKey(b"once/0", number) for number in (15, 16, 17))
    stored = now.put(0, made).request_put.value
    assert change_was_made(stored) is made
    assert before.carried_out.value < stored
    assert now.carried_out.value < stored
    assert after.carried_out.value > stored


class Index:
    def __index__(self):
        return 3


@pytest.mark.parametrize(("num", "amount"), [(5, 5), (True, 1), (Index(), 3), (MOST, MOST), (LEAST, LEAST)])
def test_amounts_are_integers(num, amount):
    assert to_amount("n", num) == amount
    assert type(to_amount("n", num)) is int


@pytest.mark.parametrize(("value", "number"), [(b"", 0), (b"7", 7), (b"-7", -7), (b" 7\n", 7), (b"%d" % LEAST, LEAST)])
def test_numbers_are_decimal(value, number):
    assert to_number("n", value) == number


@pytest.mark.parametrize("value", [b"x", b"1.5", b"\xd9\xa1", b"0" * 65, b"9" * 5000])
def test_other_values_are_not_numbers(value):
    with pytest.raises(ValueError, match=r"^the value of 'n' in the etcd store is not a number: b'"):
        to_number("n", value)


@pytest.mark.parametrize(("number", "amount"), [(MOST, 1), (1, MOST), (LEAST, -1)])
def test_a_sum_of_more_than_64_bits_is_refused(number, amount):
    with pytest.raises(ValueError, match="the sum does not fit into 64 bits"):
        add_up("n", number, amount)
    assert add_up("n", number, -amount) == number - amount


@pytest.mark.parametrize("key", ["", "a/b", "ключ", "\udcff", b"\x00\xff"])
def test_keys_are_text_and_bytes(key):
    assert to_bytes(to_text(to_bytes(key))) == to_bytes(key)


def test_a_message_names_a_few_keys():
    assert missing_keys_message([b"a"], 0.5) == "the key 'a' did not appear in the etcd store within 0.5 s"
    keys = [f"k{i}" for i in range(7)]
    assert missing_keys_message(keys[:5], 1) == (
        "the keys 'k0', 'k1', 'k2', 'k3', 'k4' did not appear in the etcd store within 1 s"
    )
    assert missing_keys_message(keys, 1) == (
        "the keys 'k0', 'k1', 'k2', 'k3', 'k4' and 2 more did not appear in the etcd store within 1 s"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x1b[2J", r"b'\x1b[2J'"),
        ("\x1b\u202e\udcff", r"'\x1b\u202e\udcff'"),
        (b"x" * 60, f"b'{'x' * 60}'"),
        (b"x" * 61, f"b'{'x' * 60}'... (61 bytes)"),
        ("ж" * 61, f"'{'ж' * 60}'... (61 characters)"),
    ],
)
def test_quoted_values_are_printable_and_short(value, shown):
    assert quoted(value) == shown
    assert quoted(value).isprintable()
