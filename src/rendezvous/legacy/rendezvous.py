"""The legacy rendezvous on etcd's v2 API: torch's ``EtcdRendezvous``, key for key.

Nodes with torch's module of this name and nodes with this one meet in one round; ``rendezvous.legacy.rules`` has the
protocol.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from rendezvous import config
from rendezvous._core import Backoff
from rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
    check_nodes,
)
from rendezvous.etcd.v2.client import create_client, key_path
from rendezvous.legacy import rules
from rendezvous.legacy.directory import EtcdRun, View
from rendezvous.legacy.handler import EtcdRendezvousHandler
from rendezvous.legacy.rules import Action, Decision, State

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "create_rdzv_handler",
]

logger = logging.getLogger(__name__)

# Seconds within which closing must succeed.
_CLOSE_TIMEOUT = 30.0


class EtcdRendezvousRetryableFailure(Exception):
    """The round went on without this node, which begins again after a pause."""


class EtcdRendezvousRetryImmediately(Exception):
    """The round went on without this node, which begins again at once."""


class EtcdRendezvous(EtcdRun):
    """Takes one node through the rounds of a job.

    Args:
        client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        prefix: the directory of all jobs in etcd.
        run_id: the name of the job.
        num_min_workers: the least number of nodes of a round.
        num_max_workers: the greatest number of nodes of a round.
        timeout: seconds within which a round must be complete.
        last_call_timeout: seconds that a round with enough nodes waits for more.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: etcd cannot be reached.
        ValueError: the run id is empty or names another directory, or the numbers of nodes are out of range.
    """

    def __init__(
        self,
        client: Any,
        prefix: str,
        run_id: str,
        num_min_workers: int,
        num_max_workers: int,
        timeout: float,
        last_call_timeout: float,
    ) -> None:
        check_nodes(num_min_workers, num_max_workers)
        self._limits = rules.Limits(num_min_workers, num_max_workers)
        self._last_call_timeout = last_call_timeout
        self._lease_this_rank_stop: threading.Event | None = None
        self._rendezvous_deadline = time.monotonic() + timeout
        super().__init__(client, prefix, run_id, timeout)

    def rendezvous_barrier(self) -> tuple[str, int, int]:
        """Leave the round this node is in, if any, and wait until it is part of a complete one.

        Returns:
            The version of the round, the rank of this node, and the number of nodes.

        Raises:
            RendezvousClosedError: the rendezvous is closed.
            RendezvousConnectionError: etcd could not be reached until the time was up, or refused the user.
            RendezvousStateError: the state in etcd is not of this protocol.
            RendezvousTimeoutError: no round was complete in time.
        """
        self._rendezvous_deadline = time.monotonic() + self._timeout
        try:
            return self._join_some_round()
        except BaseException as exc:
            self.stop_keep_alive()
            if isinstance(exc, RendezvousTimeoutError):
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self._run_id}' timed out after {self._timeout:g} s: "
                    f"{rules.progress(self._view.state, self._limits)}."
                ) from exc
            raise

    def _join_some_round(self) -> tuple[str, int, int]:
        backoff = Backoff(base=0.1, cap=1.0)
        while True:
            self.stop_keep_alive()
            try:
                return self.init_phase()
            except EtcdRendezvousRetryImmediately as exc:
                logger.debug("rendezvous '%s': %s", self._run_id, exc)
            except (EtcdRendezvousRetryableFailure, RendezvousConnectionError) as exc:
                left = self._rendezvous_deadline - time.monotonic()
                if isinstance(exc, RendezvousConnectionError) and (left <= 0 or not exc.retryable):
                    raise
                logger.info("rendezvous '%s': %s; trying again", self._run_id, exc)
                time.sleep(max(0.0, min(backoff.next(), left)))
            self._check_deadline()

    def stop_keep_alive(self) -> None:
        """Let go of the round this node is in: its keep-alive runs out within ten seconds."""
        if self._lease_this_rank_stop is not None:
            self._lease_this_rank_stop.set()
            self._lease_this_rank_stop = None

    # The phases of a round.

    def init_phase(self) -> tuple[str, int, int]:
        """Make a round, or join the one that is there, or stand by until it ends; see :meth:`rendezvous_barrier`.

        Raises:
            EtcdRendezvousRetryImmediately, EtcdRendezvousRetryableFailure: no round was complete; begin again.
        """
        view = self._look(self._rendezvous_deadline)
        decision = rules.enter(view.state)
        self._settle(decision)
        if decision.action is Action.CREATE:
            self._create_round()
        elif view.state is not None and decision.action is Action.JOIN:
            return self.join_phase(view.state["version"])
        elif view.state is not None and decision.action is Action.STAND_BY:
            self.handle_existing_rendezvous(view.state["version"])
        else:
            self._wait_for_change(view)
        raise EtcdRendezvousRetryImmediately(decision.reason)

    def join_phase(self, expected_version: str) -> tuple[str, int, int]:
        """Join a round that is joinable, and see it through; see :meth:`init_phase`."""
        answer, rank = self.join_rendezvous(expected_version)
        state = self._parse(answer.value)
        logger.info("joined round %s of the rendezvous '%s' as rank %d", expected_version, self._run_id, rank)
        if rank == self._limits.min_nodes - 1 and state is not None and state["status"] == "joinable":
            self.handle_join_last_call(expected_version, time.monotonic() + self._last_call_timeout)
        self.wait_for_peers(expected_version)
        return self.confirm_phase(expected_version, rank)

    def confirm_phase(self, expected_version: str, this_rank: int) -> tuple[str, int, int]:
        """Confirm this node's part in a round that is frozen, and wait for the others; see :meth:`init_phase`."""
        self.confirm_membership(expected_version, this_rank)
        answer = self.wait_for_final(expected_version)
        state = self._parse(answer.value)
        assert state is not None  # it is final
        world_size = len(state["participants"])
        logger.info(
            "round %s of the rendezvous '%s' is complete: rank %d of %d",
            expected_version,
            self._run_id,
            this_rank,
            world_size,
        )
        return expected_version, this_rank, world_size

    def handle_existing_rendezvous(self, expected_version: str) -> None:
        """Stand by until a round that is complete ends."""
        self.announce_self_waiting(expected_version)
        logger.info("waiting for round %s of the rendezvous '%s' to end", expected_version, self._run_id)
        self.wait_for_rendezvous_to_free(expected_version)

    # The steps.

    def _create_round(self) -> None:
        counter, _ = self._read(self.get_path("/rdzv/version_counter"), self._rendezvous_deadline)
        if counter is None:
            self._prepare()
        try:
            self.try_create_rendezvous()
        except self._etcd.EtcdAlreadyExist:
            logger.debug("rendezvous '%s': another node was faster to make a round", self._run_id)

    def try_create_rendezvous(self) -> Any:
        """Make a round and return etcd's answer.

        Raises:
            etcd.EtcdAlreadyExist: there is a state already.
            EtcdRendezvousRetryImmediately: another node came between.
        """
        path = self._state_path
        address = key_path(path)
        setup = self._request(
            f"create '{path}'",
            lambda: self.client.write(address, rules.dump(rules.SETUP), rules.SETUP_TTL, prevExist=False),
        )
        version = self._next_version()
        self.create_path_if_not_exists(self.get_path(f"/rdzv/v_{version}"))
        try:
            return self._request(
                f"write '{path}'",
                lambda: self.client.write(address, rules.dump(rules.joinable(version)), prevIndex=setup.modifiedIndex),
            )
        except (self._etcd.EtcdCompareFailed, self._etcd.EtcdKeyNotFound):
            raise EtcdRendezvousRetryImmediately(f"round {version} was closed or ran out as it was made") from None

    def _next_version(self) -> str:
        def change(text: str | None, doubt: bool) -> tuple[str, None]:
            # Where etcd has deleted the counter meanwhile, a later round must not have an earlier one's number.
            return str(max(int(text or 0), self._known_version) + 1), None

        answer, _ = self._change(self.get_path("/rdzv/version_counter"), change, self._rendezvous_deadline)
        return str(answer.value)

    def join_rendezvous(self, expected_version: str) -> tuple[Any, int]:
        """Join a round; return etcd's answer and the rank of this node."""
        # Participants are ranks and have no names: after a lost answer nobody can tell whose the new rank is. If it
        # was this node's, nobody confirms it, and the round runs out. Two nodes with one rank would be worse.
        doubt = Decision(Action.RETRY, f"whether this node joined round {expected_version} cannot be known")
        decision, view = self._swap(
            lambda state: rules.join(state, expected_version, self._limits), self._rendezvous_deadline, doubt
        )
        self._settle(decision)
        assert decision.state is not None  # it was written
        return view.answer, len(decision.state["participants"]) - 1

    def handle_join_last_call(self, expected_version: str, deadline: float) -> None:
        """Wait until ``deadline``, on the monotonic clock, or until the round is full; then freeze it."""
        refreshed = time.monotonic()
        while True:
            now = time.monotonic()
            refresh = now - refreshed >= rules.EPHEMERAL_TTL / 2
            decision, view = self._swap(
                functools.partial(rules.last_call, version=expected_version, late=now - deadline, refresh=refresh),
                self._rendezvous_deadline,
            )
            self._settle(decision)
            if view.state is not None and view.state["status"] == "frozen":
                return
            if decision.action is Action.WRITE:
                refreshed = now
            self._wait_for_change(view, min(deadline, refreshed + rules.EPHEMERAL_TTL / 2) - time.monotonic())

    def wait_for_peers(self, expected_version: str) -> Any:
        """Wait until the round is frozen; return etcd's answer."""
        return self._wait_until(lambda state: rules.meet(state, expected_version))

    def confirm_membership(self, expected_version: str, this_rank: int) -> Any:
        """Confirm this node's part in the round, and keep its keep-alive from running out; return etcd's answer."""
        key = self.get_path(f"/rdzv/v_{expected_version}/rank_{this_rank}")
        self._persist(
            f"write '{key}'",
            lambda: self.client.write(key_path(key), "", rules.KEEP_ALIVE_TTL),
            self._rendezvous_deadline,
        )
        self._lease_this_rank_stop = self.setup_lease_renewal(key, rules.KEEP_ALIVE_TTL)
        decision, view = self._swap(
            lambda state: rules.confirm(state, expected_version, key), self._rendezvous_deadline
        )
        self._settle(decision)
        return view.answer

    def wait_for_final(self, expected_version: str) -> Any:
        """Wait until the round is complete; return etcd's answer."""
        return self._wait_until(lambda state: rules.finish(state, expected_version))

    def announce_self_waiting(self, expected_version: str) -> Any:
        """Count this node among those that wait for the next round; return etcd's answer."""
        # Counted twice is as good as once: the others only look whether anybody waits.
        decision, view = self._swap(lambda state: rules.announce(state, expected_version), self._rendezvous_deadline)
        self._settle(decision)
        return view.answer

    def wait_for_rendezvous_to_free(self, expected_version: str) -> None:
        """Wait until a round that is complete ends; end it where a participant does not keep alive any more."""
        while True:
            view = self._look(self._rendezvous_deadline)
            decision = rules.end(view.state, expected_version, self._keep_alives(expected_version))
            if decision.action is Action.DONE:
                return
            if decision.action is Action.DESTROY:
                logger.info("rendezvous '%s': %s; ending it", self._run_id, decision.reason)
                self._delete(view.answer)
            else:
                self._wait_for_round(view)

    def is_whole(self, version: str) -> bool:
        """Return whether the round is the present one, complete, and all its nodes keep alive."""
        view = self._look(self._rendezvous_deadline)
        return rules.end(view.state, version, self._keep_alives(version)).action is Action.WAIT

    def set_closed(self) -> None:
        """Close the rendezvous for all nodes, for good.

        Raises:
            RendezvousConnectionError: etcd could not be reached within 30 s, or refused the user.
        """
        self._swap(rules.close, time.monotonic() + _CLOSE_TIMEOUT)

    # Waiting.

    def try_wait_for_state_change(self, etcd_index: int, timeout: float | None = None) -> tuple[Any, State]:
        """Wait for a change of the state from ``etcd_index`` on; return what :meth:`get_rdzv_state` does.

        Args:
            etcd_index: etcd's index of the first change that counts.
            timeout: seconds to wait at most; until the end of :meth:`rendezvous_barrier`'s time unless given.

        Raises:
            RendezvousTimeoutError: that time is up.
        """
        self._wait_for_change(self._view._replace(etcd_index=etcd_index - 1), timeout)
        return self.get_rdzv_state()

    def _wait_until(self, rule: Callable[[State | None], Decision]) -> Any:
        while True:
            view = self._look(self._rendezvous_deadline)
            decision = rule(view.state)
            self._settle(decision)
            if decision.action is Action.DONE:
                return view.answer
            self._wait_for_change(view)

    def _wait_for_change(self, view: View, timeout: float | None = None) -> None:
        left = self._rendezvous_deadline - time.monotonic()
        self._watch(self._state_path, view.etcd_index, left if timeout is None else min(timeout, left))
        self._check_deadline()

    def _wait_for_round(self, view: View) -> None:
        """Wait for a change of the state, or until a keep-alive is gone."""
        index, path = view.etcd_index, self.get_path("/rdzv")
        until = min(self._rendezvous_deadline, time.monotonic() + rules.KEEP_ALIVE_TTL)
        while True:
            event = self._watch(path, index, until - time.monotonic(), recursive=True)
            self._check_deadline()
            # The nodes that run write to the round's store, of which a node that stands by hears too.
            if event is None or "/kv/" not in event.key.removeprefix(path):
                return
            index = event.modifiedIndex

    def _keep_alives(self, version: str) -> set[str]:
        answer, _ = self._read(self.get_path(f"/rdzv/v_{version}"), self._rendezvous_deadline)
        return set() if answer is None else {child.key for child in answer.children}

    def _check_deadline(self) -> None:
        if time.monotonic() > self._rendezvous_deadline:
            raise RendezvousTimeoutError("the time is up")

    def _settle(self, decision: Decision) -> None:
        """Raise what a decision to give up or to begin again means."""
        if decision.action is Action.ERROR_CLOSED:
            raise RendezvousClosedError(f"The rendezvous '{self._run_id}' is closed.")
        if decision.action is Action.RETRY:
            raise EtcdRendezvousRetryableFailure(decision.reason)
        if decision.action is Action.RETRY_AT_ONCE:
            raise EtcdRendezvousRetryImmediately(decision.reason)


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """Make a handler from a configuration.

    ``rendezvous config --backend etcd`` lists the configuration keys.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: no endpoint answers, or etcd does not serve the v2 API.
        ValueError: a value is malformed or out of range.
    """
    config.check(params, config.Backend.LEGACY)
    rendezvous = EtcdRendezvous(
        client=create_client(params, config.Backend.LEGACY),
        prefix=config.LEGACY_PREFIX.read(params),
        run_id=params.run_id,
        num_min_workers=params.min_nodes,
        num_max_workers=params.max_nodes,
        timeout=config.LEGACY_TIMEOUT.read(params),
        last_call_timeout=config.last_call_timeout(params, config.Backend.LEGACY),
    )
    return EtcdRendezvousHandler(rendezvous, params.local_addr)
