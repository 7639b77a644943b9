"""The contract of all backends of the dynamic rendezvous; each test module provides the fixture ``backend``."""

from __future__ import annotations

import pytest


class _Token:
    def __repr__(self) -> str:
        return "object"


TOKENS = [_Token(), "invalid", 10**12, 10**30, -5, "0", "123456789", float("inf"), b"x"]


class BackendContract:
    """Inherited by a class ``Test...`` in a module with a fixture ``backend``."""

    def test_no_state_exists_at_first(self, backend):
        assert backend.get_state() is None

    def test_without_a_token_the_first_state_is_written(self, backend):
        state, token, written = backend.set_state(b"one")
        assert (state, written) == (b"one", True)
        assert isinstance(token, int)
        assert backend.get_state() == (b"one", token)

    def test_without_a_token_a_state_is_not_overwritten(self, backend):
        _, token, _ = backend.set_state(b"one")
        assert backend.set_state(b"two") == (b"one", token, False)
        assert backend.get_state() == (b"one", token)

    def test_the_current_token_writes(self, backend):
        _, first, _ = backend.set_state(b"one")
        state, second, written = backend.set_state(b"two", first)
        assert (state, written) == (b"two", True)
        assert second != first
        assert backend.get_state() == (b"two", second)

    def test_an_old_token_does_not_write(self, backend):
        _, first, _ = backend.set_state(b"one")
        _, second, _ = backend.set_state(b"two", first)
        assert backend.set_state(b"three", first) == (b"two", second, False)

    @pytest.mark.parametrize("token", TOKENS, ids=repr)
    def test_an_invalid_token_does_not_write(self, backend, token):
        _, current, _ = backend.set_state(b"one")
        assert backend.set_state(b"two", token) == (b"one", current, False)

    @pytest.mark.parametrize("token", [*TOKENS, 5], ids=repr)
    def test_a_token_for_no_state_does_not_write(self, backend, token):
        assert backend.set_state(b"one", token) is None
        assert backend.get_state() is None

    @pytest.mark.parametrize("state", [b"", b"\x00\xff", b"x" * 100_000], ids=len)
    def test_any_bytes_are_a_state(self, backend, state):
        assert backend.set_state(state)[0] == state
        assert backend.get_state()[0] == state

    def test_watch_returns_the_next_state(self, backend):
        _, first, _ = backend.set_state(b"one")
        _, second, _ = backend.set_state(b"two", first)
        _, third, _ = backend.set_state(b"three", second)
        assert backend.watch(first, 5) == (b"two", second)
        assert backend.watch(second, 5) == (b"three", third)
        assert backend.watch(third, 0.2) is None
        assert backend.watch(third, 0) is None

    def test_watch_returns_none_for_an_invalid_token(self, backend):
        backend.set_state(b"one")
        assert backend.watch("invalid", 5) is None
