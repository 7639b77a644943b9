"""A client that records its requests and loses answers, and calls in threads."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta

from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import UnavailableError
from tests.nodes import BOUND, in_thread

SOON = timedelta(seconds=0.3)


def applied_a_change(answer):
    """Whether a transaction changed something beside its idempotency key, or had been carried out before."""
    return answer.succeeded or _writes(answer) > 1


def _writes(answer):
    return sum(
        _writes(response.response_txn)
        if response.HasField("response_txn")
        else response.HasField("response_put") or response.HasField("response_delete_range")
        for response in answer.responses
    )


class Spy(GrpcEtcdClient):
    """Records requests and watches, and loses the answers of transactions that changed something."""

    def __init__(self, endpoints, credentials=None):
        super().__init__(endpoints, credentials)
        self.requests = []
        self.watched = []
        self.lose = 0
        """How many answers to lose."""
        self.after_loss = None
        self.lost = []
        """The requests whose answers were lost."""
        self.delay = 0
        """How many transactions to keep back: etcd gets them when :meth:`deliver` is called."""
        self.delayed = []

    async def _attempt(self, call, request, timeout, deadline):
        self.requests.append((call, request))
        if self.delay and call is Call.TXN:
            self.delay -= 1
            self.delayed.append((call, request))
            raise UnavailableError("the request is delayed")
        answer = await super()._attempt(call, request, timeout, deadline)
        if self.lose and call is Call.TXN and applied_a_change(answer):
            self.lose -= 1
            self.lost.append((call, request))
            if self.after_loss is not None:
                await self.after_loss()
            raise UnavailableError("the answer was lost")
        return answer

    async def watch(self, key, end, receive, lost, deadline, revision=0, **options):
        self.watched.append((key, end, revision))
        return await super().watch(key, end, receive, lost, deadline, revision, **options)

    def deliver(self, requests):
        """Have etcd get requests late."""

        async def send():
            for call, request in requests:
                await self.request(call, request, asyncio.get_running_loop().time() + BOUND)

        background.run(send())

    def forget(self):
        self.requests.clear()
        self.watched.clear()

    @property
    def calls(self):
        return [call for call, _ in self.requests]


def connect(port):
    async def make():
        return Spy([("127.0.0.1", port)])

    return background.run(make())


def ask(client, method, *arguments, **options):
    """Call a method of the client on its event loop."""

    async def call():
        deadline = asyncio.get_running_loop().time() + BOUND
        return await getattr(client, method)(*arguments, deadline=deadline, **options)

    return background.run(call())


def revision(client):
    return ask(client, "range", b"nothing", b"")[1]


def begin(call, *arguments):
    """Call in a thread; return the future."""
    return in_thread(functools.partial(call, *arguments))
