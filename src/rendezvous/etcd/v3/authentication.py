"""The token of etcd's user."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import grpc.aio

from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.errors import AuthDisabledError, EtcdError, RefusedError, StaleTokenError, translate
from rendezvous.etcd.v3.messages import rpc_pb2

__all__ = ["Authenticator", "Metadata"]

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]

_LONGEST_PAUSE = 60.0


class Authenticator:
    """Gets a token for the user, and a new one if etcd does not accept it any more. Makes one attempt at a time.

    One attempt costs etcd about 0.1 s of CPU time. So while etcd refuses the user, the attempts become rare: the pause
    between two grows to a minute. If the password has changed, the next attempt is made at once.

    Args:
        credentials: the user. Its password is read for each attempt.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._token: str | None = None
        self._disabled = False
        """Whether etcd answered that authentication is not enabled."""
        self._warned = False
        self._used = False
        """Whether etcd has accepted the token in a request."""
        self._known = False
        """Whether etcd has ever accepted the user: then a refusal may pass."""
        self._lock = asyncio.Lock()
        self._refusals = 0
        self._refusal: EtcdError | None = None
        self._refused_password: int | None = None
        self._next_attempt = 0.0

    @property
    def has_user(self) -> bool:
        """Whether requests are made in the name of a user."""
        return self._credentials.username is not None

    async def metadata(self, authenticate: Any, endpoint: str, timeout: float) -> Metadata:
        """Return the metadata of a request: the token of the user, if there is one.

        Args:
            authenticate: the method of the endpoint.
            endpoint: its name, for messages.
            timeout: seconds within which etcd must answer.

        Raises:
            grpc.aio.AioRpcError: the endpoint is unavailable.
            EtcdError: etcd refused the user now, or not long ago.
        """
        if self.has_user:
            async with self._lock:
                if self._token is None and not self._disabled:
                    await self._authenticate(authenticate, endpoint, timeout)
        return self._metadata()

    def _metadata(self) -> Metadata:
        return () if self._token is None else (("token", self._token),)

    def accepted(self) -> None:
        """Note that etcd has answered a request."""
        if not self._used:
            self._used = self._known = True
            self._refusals = 0

    def forget(self, metadata: Metadata) -> None:
        """Authenticate again before the next request, unless that has been done since ``metadata`` was returned."""
        if self.has_user and metadata == self._metadata():
            if self._token is not None and not self._used:
                self._refused(StaleTokenError("etcd does not accept the token that it issued last"))
            self._token, self._disabled = None, False

    async def _authenticate(self, authenticate: Any, endpoint: str, timeout: float) -> None:
        try:
            request, secret = self._request()
        except ValueError as exc:
            raise self._refused(RefusedError(f"user '{self._credentials.username}': {exc}", endpoint)) from None
        if self._refusal is not None:
            unchanged = self._refused_password in (None, secret)
            if unchanged and asyncio.get_running_loop().time() < self._next_attempt:
                raise self._again(self._refusal)
        self._used, self._refused_password = False, secret
        try:
            answer = await authenticate(request, timeout=timeout)
        except grpc.aio.AioRpcError as exc:
            error = translate(exc.code(), exc.details() or "", endpoint)
            if isinstance(error, AuthDisabledError):
                self._note_disabled(endpoint)
                return
            if not isinstance(error, RefusedError):
                raise
        else:
            self._token, self._refusal = answer.token, None
            return
        finally:
            request = None  # it contains the password, which tracebacks should not
        raise self._refused(RefusedError(f"user '{self._credentials.username}': {error.reason}", endpoint))

    def _request(self) -> tuple[Any, int]:
        """Return the request, and a number by which another password is told from this one."""
        password = "" if self._credentials.password is None else self._credentials.password.read()
        return rpc_pb2.AuthenticateRequest(name=self._credentials.username, password=password), hash(password)

    def _refused(self, error: EtcdError) -> EtcdError:
        """Note a refusal, and return the error for it."""
        if isinstance(error, StaleTokenError):
            self._refused_password = None
        self._refusal = error
        self._refusals += 1
        pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, 2.0 ** min(self._refusals, 10))
        self._next_attempt = asyncio.get_running_loop().time() + pause
        error = self._again(error)
        if error.retryable:
            logger.warning("%s; trying again in %.0f s, or if the password has changed", error, pause)
        return error

    def _again(self, error: EtcdError) -> EtcdError:
        retryable = self._known or error.retryable
        return type(error)(error.reason, error.endpoint, retryable=retryable)

    def _note_disabled(self, endpoint: str) -> None:
        self._disabled, self._refusal = True, None
        if not self._warned:
            self._warned = True
            logger.warning(
                "etcd at %s does not check users: authentication is not enabled there, so 'username' has no effect; "
                "the user is authenticated when that changes",
                endpoint,
            )
