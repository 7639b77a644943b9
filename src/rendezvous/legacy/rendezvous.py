"""The legacy rendezvous of one node: torch's ``EtcdRendezvous``, with the same keys and values in etcd.

Nodes that run torch's module and nodes that run this one can form a round together; ``rendezvous.legacy.rules``
describes the protocol.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from rendezvous._core import Backoff
from rendezvous.api import RendezvousClosedError, RendezvousConnectionError, RendezvousTimeoutError, check_nodes
from rendezvous.etcd.v2.client import etcd_module
from rendezvous.etcd.v2.store import EtcdStore
from rendezvous.legacy import extra_data, rules
from rendezvous.legacy.directory import Directory, View
from rendezvous.legacy.rules import Action, Decision, State

__all__ = ["EtcdRendezvous", "EtcdRendezvousRetryImmediately", "EtcdRendezvousRetryableFailure"]

logger = logging.getLogger(__name__)

# Seconds within which closing must succeed.
_CLOSE_TIMEOUT = 30.0


class EtcdRendezvousRetryableFailure(Exception):
    """The round continued without this node, which starts again after a pause."""


class EtcdRendezvousRetryImmediately(Exception):
    """The round continued without this node, which starts again immediately."""


class EtcdRendezvous:
    """Takes one node through the rounds of a run.

    Args:
        client: an :class:`~rendezvous.etcd.v2.client.EtcdClient`, or an ``etcd.Client`` of python-etcd.
        prefix: the directory of all runs in etcd.
        run_id: the run id.
        num_min_workers: the smallest number of nodes in a round.
        num_max_workers: the greatest number of nodes in a round.
        timeout: seconds within which a round must be complete.
        last_call_timeout: seconds for which a round with enough nodes waits for more.

    Raises:
        ImportError: python-etcd is not installed.
        RendezvousConnectionError: etcd cannot be reached.
        ValueError: the run id is empty or refers to another directory, or the numbers of nodes are out of range.
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
        self._etcd = etcd_module()
        self._limits = rules.Limits(num_min_workers, num_max_workers)
        self._timeout = timeout
        self._last_call_timeout = last_call_timeout
        self._deadline = time.monotonic() + timeout
        self._stop_rank_renewal: threading.Event | None = None
        self.directory = Directory(client, prefix, run_id)

    @property
    def client(self) -> Any:
        """The client that sends the requests."""
        return self.directory.client

    @property
    def run_id(self) -> str:
        """The run id."""
        return self.directory.run_id

    @property
    def timeout(self) -> float:
        """Seconds within which a round must be complete."""
        return self._timeout

    def rendezvous_barrier(self) -> tuple[str, int, int]:
        """Leave the current round, if any, and wait until this node is part of a complete round.

        Returns:
            The version of the round, the rank of this node, and the number of nodes.

        Raises:
            RendezvousClosedError: the rendezvous is closed.
            RendezvousConnectionError: etcd could not be reached until the deadline, or refused the user.
            RendezvousStateError: the state in etcd does not belong to this protocol.
            RendezvousTimeoutError: no round was complete in time.
        """
        self._deadline = time.monotonic() + self._timeout
        try:
            return self._join_some_round()
        except BaseException as exc:
            self.stop_keep_alive()
            if isinstance(exc, RendezvousTimeoutError):
                raise RendezvousTimeoutError(
                    f"The rendezvous '{self.run_id}' timed out after {self._timeout:g} s: "
                    f"{rules.progress(self.directory.view.state, self._limits)}."
                ) from None
            raise

    def _join_some_round(self) -> tuple[str, int, int]:
        backoff = Backoff(base=0.1, cap=1.0)
        while True:
            self.stop_keep_alive()
            try:
                return self.init_phase()
            except EtcdRendezvousRetryImmediately as exc:
                logger.debug("rendezvous '%s': %s", self.run_id, exc)
            except (EtcdRendezvousRetryableFailure, RendezvousConnectionError) as exc:
                left = self._deadline - time.monotonic()
                if isinstance(exc, RendezvousConnectionError) and (left <= 0 or not exc.retryable):
                    raise
                logger.info("rendezvous '%s': %s; trying again", self.run_id, exc)
                time.sleep(max(0.0, min(backoff.next(), left)))
            self._check_deadline()

    def stop_keep_alive(self) -> None:
        """Leave the current round: stop to renew the keep-alive, which etcd then deletes within ten seconds."""
        if self._stop_rank_renewal is not None:
            self._stop_rank_renewal.set()
            self._stop_rank_renewal = None

    # The phases of a round.

    def init_phase(self) -> tuple[str, int, int]:
        """Create a round, join the current one, or wait until it ends; see :meth:`rendezvous_barrier`.

        Raises:
            EtcdRendezvousRetryImmediately, EtcdRendezvousRetryableFailure: no round was complete; start again.
        """
        view = self.directory.read_state(self._deadline)
        decision = rules.enter(view.state)
        self._raise_if_over(decision)
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
        """Join a round that is joinable, and wait until it is complete; see :meth:`init_phase`."""
        response, rank = self.join_rendezvous(expected_version)
        state = self.directory.parse(response.value)
        logger.info("joined round %s of the rendezvous '%s' as rank %d", expected_version, self.run_id, rank)
        if rank == self._limits.min_nodes - 1 and state is not None and state["status"] == "joinable":
            self.handle_join_last_call(expected_version, time.monotonic() + self._last_call_timeout)
        self.wait_for_peers(expected_version)
        return self.confirm_phase(expected_version, rank)

    def confirm_phase(self, expected_version: str, this_rank: int) -> tuple[str, int, int]:
        """Confirm that this node is in a frozen round, and wait for the others; see :meth:`init_phase`."""
        self.confirm_membership(expected_version, this_rank)
        response = self.wait_for_final(expected_version)
        state = self.directory.parse(response.value)
        assert state is not None  # it is final
        world_size = len(state["participants"])
        logger.info(
            "round %s of the rendezvous '%s' is complete: rank %d of %d",
            expected_version,
            self.run_id,
            this_rank,
            world_size,
        )
        return expected_version, this_rank, world_size

    def handle_existing_rendezvous(self, expected_version: str) -> None:
        """Wait until a complete round ends."""
        self.announce_self_waiting(expected_version)
        logger.info("waiting for round %s of the rendezvous '%s' to end", expected_version, self.run_id)
        self.wait_for_rendezvous_to_free(expected_version)

    # The steps.

    def _create_round(self) -> None:
        counter, _ = self.directory.read(self.directory.counter_path, self._deadline)
        if counter is None:
            self.directory.prepare()
        try:
            self.try_create_rendezvous()
        except self._etcd.EtcdAlreadyExist:
            logger.debug("rendezvous '%s': another node created a round first", self.run_id)

    def try_create_rendezvous(self) -> Any:
        """Create a round; return etcd's response.

        Raises:
            etcd.EtcdAlreadyExist: a state exists already.
            EtcdRendezvousRetryImmediately: the state was closed or deleted while the round was created.
        """
        setup = self.directory.write_state(rules.SETUP, rules.SETUP_TTL, replaced=None)
        version = self.directory.next_version(self._deadline)
        self.directory.create_directory(self.directory.path(f"/rdzv/v_{version}"))
        try:
            return self.directory.write_state(rules.joinable(version), None, replaced=setup)
        except (self._etcd.EtcdCompareFailed, self._etcd.EtcdKeyNotFound):
            raise EtcdRendezvousRetryImmediately(
                f"the state was closed or deleted while round {version} was created"
            ) from None

    def join_rendezvous(self, expected_version: str) -> tuple[Any, int]:
        """Join a round; return etcd's response and the rank of this node."""
        # Participants are ranks and have no names: after a lost response no node can tell whose the new rank is. If
        # it was this node's, no node confirms it, and the state expires. Two nodes with one rank would be worse.
        doubt = Decision(Action.RETRY, f"it is not known whether this node joined round {expected_version}")
        decision, view = self.directory.swap_state(
            lambda state: rules.join(state, expected_version, self._limits), self._deadline, doubt
        )
        self._raise_if_over(decision)
        assert decision.state is not None  # it was written
        return view.response, len(decision.state["participants"]) - 1

    def handle_join_last_call(self, expected_version: str, deadline: float) -> None:
        """Wait until ``deadline``, on the monotonic clock, or until the round is full; then freeze it."""
        refreshed = time.monotonic()
        while True:
            now = time.monotonic()
            refresh = now - refreshed >= rules.EPHEMERAL_TTL / 2
            decision, view = self.directory.swap_state(
                functools.partial(rules.last_call, version=expected_version, late=now - deadline, refresh=refresh),
                self._deadline,
            )
            self._raise_if_over(decision)
            if view.state is not None and view.state["status"] == "frozen":
                return
            if decision.action is Action.WRITE:
                refreshed = now
            self._wait_for_change(view, min(deadline, refreshed + rules.EPHEMERAL_TTL / 2) - time.monotonic())

    def wait_for_peers(self, expected_version: str) -> Any:
        """Wait until the round is frozen; return etcd's response."""
        return self._wait_until(lambda state: rules.meet(state, expected_version))

    def confirm_membership(self, expected_version: str, this_rank: int) -> Any:
        """Confirm that this node is in the round, and renew its keep-alive from now on; return etcd's response."""
        key = self.directory.path(f"/rdzv/v_{expected_version}/rank_{this_rank}")
        self.directory.write(key, "", rules.KEEP_ALIVE_TTL, self._deadline)
        self._stop_rank_renewal = self.directory.keep_alive(key, rules.KEEP_ALIVE_TTL)
        decision, view = self.directory.swap_state(
            lambda state: rules.confirm(state, expected_version, key), self._deadline
        )
        self._raise_if_over(decision)
        return view.response

    def wait_for_final(self, expected_version: str) -> Any:
        """Wait until the round is complete; return etcd's response."""
        return self._wait_until(lambda state: rules.finish(state, expected_version))

    def announce_self_waiting(self, expected_version: str) -> Any:
        """Count this node among those that wait for the next round; return etcd's response."""
        # A repeated request may count this node twice. That is harmless: the number is only compared with 0.
        decision, view = self.directory.swap_state(
            lambda state: rules.announce(state, expected_version), self._deadline
        )
        self._raise_if_over(decision)
        return view.response

    def wait_for_rendezvous_to_free(self, expected_version: str) -> None:
        """Wait until a complete round ends; end it if the keep-alive of a participant has expired."""
        while True:
            view = self.directory.read_state(self._deadline)
            decision = rules.end(view.state, expected_version, self._keep_alives(expected_version))
            if decision.action is Action.FINISH:
                return
            if decision.action is Action.DESTROY:
                logger.info("rendezvous '%s': %s; ending it", self.run_id, decision.reason)
                self.directory.delete_state(view)
            else:
                self._wait_for_end(view)

    def is_whole(self, version: str) -> bool:
        """Return whether the round is the current one, complete, and all its nodes are alive."""
        view = self.directory.read_state(self._deadline)
        return rules.end(view.state, version, self._keep_alives(version)).action is Action.WAIT

    def set_closed(self) -> None:
        """Close the rendezvous for all nodes. It cannot be opened again.

        Raises:
            RendezvousConnectionError: etcd could not be reached within 30 s, or refused the user.
        """
        self.directory.swap_state(rules.close, time.monotonic() + _CLOSE_TIMEOUT)

    # Waiting.

    def try_wait_for_state_change(self, etcd_index: int, timeout: float | None = None) -> tuple[Any, State]:
        """Wait for a change of the state; return the same as :meth:`get_rdzv_state`.

        Args:
            etcd_index: etcd's index of the first change that counts.
            timeout: seconds to wait at most; by default until the deadline of :meth:`rendezvous_barrier`.

        Raises:
            RendezvousTimeoutError: the deadline of :meth:`rendezvous_barrier` has passed.
        """
        self._wait_for_change(self.directory.view._replace(etcd_index=etcd_index - 1), timeout)
        return self.get_rdzv_state()

    def _wait_until(self, rule: Callable[[State | None], Decision]) -> Any:
        while True:
            view = self.directory.read_state(self._deadline)
            decision = rule(view.state)
            self._raise_if_over(decision)
            if decision.action is Action.FINISH:
                return view.response
            self._wait_for_change(view)

    def _wait_for_change(self, view: View, timeout: float | None = None) -> None:
        left = self._deadline - time.monotonic()
        limit = left if timeout is None else min(timeout, left)
        self.directory.watch(self.directory.state_path, view.etcd_index, limit)
        self._check_deadline()

    def _wait_for_end(self, view: View) -> None:
        """Wait for a change of the state, or until a keep-alive has expired."""
        index, path = view.etcd_index, self.directory.path("/rdzv")
        until = min(self._deadline, time.monotonic() + rules.KEEP_ALIVE_TTL)
        while True:
            event = self.directory.watch(path, index, until - time.monotonic(), recursive=True)
            self._check_deadline()
            # The watch also receives what the running nodes write to the store of the round.
            if event is None or "/kv/" not in event.key.removeprefix(path):
                return
            index = event.modifiedIndex

    def _keep_alives(self, version: str) -> set[str]:
        return self.directory.keep_alives(version, self._deadline)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise RendezvousTimeoutError("the deadline has passed")

    def _raise_if_over(self, decision: Decision) -> None:
        """Raise the exception for a decision to give up or to start again."""
        if decision.action is Action.ERROR_CLOSED:
            raise RendezvousClosedError(f"The rendezvous '{self.run_id}' is closed.")
        if decision.action is Action.RETRY:
            raise EtcdRendezvousRetryableFailure(decision.reason)
        if decision.action is Action.RETRY_IMMEDIATELY:
            raise EtcdRendezvousRetryImmediately(decision.reason)

    # Methods of torch's class that only need the directory.

    def get_rdzv_state(self) -> tuple[Any, State]:
        """Return etcd's response for the state, and the state.

        Raises:
            etcd.EtcdKeyNotFound: no state exists.
            RendezvousConnectionError: etcd cannot be reached.
            RendezvousStateError: the state in etcd does not belong to this protocol.
        """
        view = self.directory.read_state()
        if view.state is None:
            raise self._etcd.EtcdKeyNotFound(f"Key not found : {self.directory.state_path}")
        return view.response, view.state

    def get_path(self, path: str) -> str:
        """See :meth:`Directory.path`."""
        return self.directory.path(path)

    def create_path_if_not_exists(self, full_path: str, ttl: int | None = None) -> None:
        """See :meth:`Directory.create_directory`."""
        self.directory.create_directory(full_path, ttl)

    def setup_lease_renewal(self, full_path: str, ttl: int) -> threading.Event:
        """See :meth:`Directory.keep_alive`."""
        return self.directory.keep_alive(full_path, ttl)

    def setup_kv_store(self, rdzv_version: str) -> EtcdStore:
        """See :meth:`Directory.store`."""
        return self.directory.store(rdzv_version)

    def store_extra_data(self, rdzv_version: str, key: str, value: Any) -> None:
        """See :func:`rendezvous.legacy.extra_data.store`."""
        extra_data.store(self.directory, rdzv_version, key, value)

    def load_extra_data(self, rdzv_version: str, key: str, timeout: float | None = None) -> Any:
        """See :func:`rendezvous.legacy.extra_data.load`; the timeout is that of the rendezvous by default."""
        return extra_data.load(self.directory, rdzv_version, key, self._timeout if timeout is None else timeout)
