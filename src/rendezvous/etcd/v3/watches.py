"""The stream that carries all watches of a client."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.client import Watch, WatchSpec
from rendezvous.etcd.v3.endpoints import Endpoint, Endpoints
from rendezvous.etcd.v3.errors import EtcdError, RefusedError, translate_watch_cancel
from rendezvous.etcd.v3.history import History
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.streams import Stream

__all__ = ["Watches"]

logger = logging.getLogger(__name__)


class _StreamWatch(Watch):
    def __init__(self, watches: Watches, spec: WatchSpec) -> None:
        self._watches = watches
        self.spec = spec
        self.revision = spec.revision
        """The next revision to receive."""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused = False
        """Whether etcd refused it when it was last asked."""
        self.id: int | None = None
        """Its number on the stream that is open now."""

    def request(self) -> rpc_pb2.WatchRequest:
        # Without changes, etcd reports its revision every ten minutes: so a watch that resumes need not begin with a
        # revision that was compacted long ago.
        return rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(
                key=self.spec.key, range_end=self.spec.end, start_revision=self.revision, progress_notify=True
            )
        )

    def cancel(self) -> None:
        self._watches.cancel(self)


class Watches(Stream[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]):
    """All watches of a client. If the stream breaks, they resume from the next revision on another one.

    Args:
        endpoints: the endpoints of the cluster.
        history: notices that etcd was restored from a snapshot.
    """

    METHOD = ("Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)
    PURPOSE = "watches"
    # A member that loses its leader breaks the stream, rather than sending nothing.
    METADATA = (("hasleader", "true"),)

    def __init__(self, endpoints: Endpoints, history: History) -> None:
        super().__init__(endpoints, history)
        endpoints.on_failure.append(self._leave)
        self._watches: dict[_StreamWatch, None] = {}
        # On the open stream: the watches that etcd has not created yet, which it answers in order, and the others.
        self._requested: deque[_StreamWatch] = deque()
        self._created: dict[int, _StreamWatch] = {}
        self._reason = "no answer"
        """Why the stream last broke."""

    def _leave(self, endpoint: Endpoint) -> None:
        """Leave an endpoint that does not answer requests: a stream on it may be silent for long before it breaks."""
        if self._endpoint is endpoint and self._task is not asyncio.current_task():
            self._move()

    async def start(self, spec: WatchSpec, deadline: float) -> Watch:
        """See :meth:`EtcdClient.watch`."""
        loop = asyncio.get_running_loop()
        watch = _StreamWatch(self, spec)
        self._watches[watch] = None
        self._open()
        self._requested.append(watch)
        self._outbox.put_nowait(watch.request())
        timer = loop.call_at(deadline, self._expire, watch, deadline - loop.time())
        try:
            await watch.started
        except BaseException:
            self.cancel(watch)
            raise
        finally:
            timer.cancel()
        return watch

    def _expire(self, watch: _StreamWatch, seconds: float) -> None:
        if not watch.started.done():
            target = self._endpoints.current.target
            watch.started.set_exception(
                RendezvousConnectionError(
                    f"etcd at {target} did not start to watch '{watch.spec.name}' within {max(0.0, seconds):.3g} s: "
                    f"{self._reason}"
                )
            )

    def cancel(self, watch: _StreamWatch) -> None:
        """See :meth:`Watch.cancel`."""
        self._watches.pop(watch, None)
        if watch.id is not None and self._created.pop(watch.id, None) is watch:
            self._cancel(watch.id)

    def _cancel(self, watch_id: int) -> None:
        request = rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))
        self._outbox.put_nowait(request)

    def _needed(self) -> bool:
        return bool(self._watches)

    def _first_messages(self) -> list[rpc_pb2.WatchRequest]:
        self._requested = deque(self._watches)
        self._created = {}
        return [watch.request() for watch in self._requested]

    def _received(self, answer: rpc_pb2.WatchResponse) -> None:
        watch = self._requested.popleft() if answer.created else self._created.get(answer.watch_id)
        if answer.canceled:
            self._canceled(answer, watch)
        elif answer.created:
            self._started(answer, watch)
        elif watch is None:
            return
        elif not answer.events:
            watch.revision = max(watch.revision, answer.header.revision + 1)
        else:
            watch.revision = answer.events[-1].kv.mod_revision + 1
            _call(partial(watch.spec.receive, answer.events), watch, "a change under '%s' could not be processed")

    def _started(self, answer: rpc_pb2.WatchResponse, watch: _StreamWatch | None) -> None:
        if watch not in self._watches or watch is None:
            self._cancel(answer.watch_id)
            return
        watch.refused = False
        watch.id = answer.watch_id
        self._created[watch.id] = watch
        watch.revision = watch.revision or answer.header.revision + 1
        if not watch.started.done():
            watch.started.set_result(None)
        elif not watch.started.cancelled():
            _call(watch.spec.resumed, watch, "the resumption of the watch of '%s' could not be processed")

    def _canceled(self, answer: rpc_pb2.WatchResponse, watch: _StreamWatch | None) -> None:
        if watch is None or watch not in self._watches:
            return
        if answer.compact_revision:
            self._created.pop(answer.watch_id, None)
            self._lose(watch)
            return
        has_user = self._endpoints.user.has_user
        error = translate_watch_cancel(answer.cancel_reason, self._endpoints.current.target, has_user)
        if isinstance(error, RefusedError):
            if watch.refused or not has_user:
                self._refuse(watch, error)
            else:
                # The token may be too old: etcd gives the same reason for that.
                watch.refused = True
                self._endpoints.user.forget(self._user)
        # After it has refused a watch, etcd 3.5.1 does not serve the first watch of the same stream any more.
        raise EtcdError(error.reason, error.endpoint, retryable=True)

    def _refuse(self, watch: _StreamWatch, error: RefusedError) -> None:
        """End one watch. The others go on."""
        if watch.started.done():
            self._lose(watch)  # whoever watches gets the reason when it starts the next watch
            return
        self._watches.pop(watch, None)
        refusal = RendezvousConnectionError(
            f"etcd at {error.endpoint} refused to watch '{watch.spec.name}': {error.reason}", retryable=False
        )
        watch.started.set_exception(refusal)

    def _lose(self, watch: _StreamWatch) -> None:
        self._watches.pop(watch, None)
        _call(watch.spec.lost, watch, "the end of the watch of '%s' could not be processed")

    def _restored(self, reason: str) -> None:
        """End all watches, because etcd was restored: they wait for revisions that it may reach at any time or never.

        A watch that has not started yet goes on if it reports the changes from now on.
        """
        for watch in list(self._watches):
            if watch.started.done() or watch.revision:
                if not watch.started.done():
                    watch.started.set_result(None)
                self._lose(watch)
        super()._restored(reason)

    def _broken(self, error: EtcdError) -> None:
        self._reason = error.reason
        if error.retryable:
            return
        for watch in self._watches:
            if not watch.started.done():
                watch.started.set_exception(
                    RendezvousConnectionError(
                        f"etcd at {error.endpoint or self._endpoints.current.target} did not start to watch "
                        f"'{watch.spec.name}': {error.reason}",
                        retryable=False,
                    )
                )


def _call(callback: Callable[[], None], watch: _StreamWatch, complaint: str) -> None:
    """Call it. An error in one callback must not end the other watches."""
    try:
        callback()
    except Exception:
        logger.exception(complaint, watch.spec.name)
