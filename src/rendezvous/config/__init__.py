"""The configuration keys of all backends, in one table, and the checks of how their values fit together.

:data:`SETTINGS` declares each key once. Reading, validation, warnings about unknown keys, ``rendezvous config`` and the
table in docs/configuration.md are derived from it. ``JOIN_TIMEOUT.read(params)`` returns one value.
"""

from __future__ import annotations

import difflib
import functools
import logging
from dataclasses import dataclass
from typing import Any

from rendezvous.api import RendezvousParameters
from rendezvous.config.password import PASSWORD_VARIABLE, Password, environment_password
from rendezvous.config.setting import Backend, Boolean, Choice, File, Integer, Secret, Setting, Text, unprintable

__all__ = [
    "CONNECTION_SETTINGS",
    "PASSWORD_VARIABLE",
    "SETTINGS",
    "Backend",
    "Choice",
    "Connection",
    "File",
    "Integer",
    "Password",
    "Setting",
    "check",
    "connection",
    "last_call_timeout",
    "settings_of",
]

logger = logging.getLogger(__name__)

_COORDINATED = (Backend.COORDINATED,)
_DYNAMIC = (Backend.DYNAMIC_V2, Backend.DYNAMIC_V3)
_CURRENT = (*_COORDINATED, *_DYNAMIC)
_LEGACY = (Backend.LEGACY,)
_V3_API = (Backend.COORDINATED, Backend.DYNAMIC_V3)
_ALL = tuple(Backend)

JOIN_TIMEOUT = Integer(
    "join_timeout", 600, "Within this time a round must be complete, or joining it fails.", _CURRENT, unit="seconds"
)
LAST_CALL_TIMEOUT = Integer(
    "last_call_timeout",
    30,
    "A round with enough nodes waits this long for more. Must be less than `join_timeout`.",
    _CURRENT,
    unit="seconds",
    default_help="30, but at most half of `join_timeout`",
)
REJOIN_SETTLE_TIMEOUT = Integer(
    "rejoin_settle_timeout",
    1,
    "The last call of a round that forms again after a loss ends if no other node has joined for this long, if more "
    "members of the last round returned than were lost. `last_call_timeout` is its maximum; the same value as that "
    "gives the behaviour of torch's backends.",
    _COORDINATED,
    unit="seconds",
    least=0,
)
CLOSE_TIMEOUT = Integer(
    "close_timeout", 30, "Within this time closing the rendezvous must succeed.", _CURRENT, unit="seconds"
)
HEARTBEAT_TIMEOUT = Integer(
    "heartbeat_timeout",
    5,
    "Within this time a heartbeat must succeed. Without effect on `etcd-v3`, which uses leases.",
    _CURRENT,
    unit="seconds",
)
KEEP_ALIVE_INTERVAL = Integer(
    "keep_alive_interval", 5, "The time between the keep-alives of a node.", _CURRENT, unit="seconds"
)
KEEP_ALIVE_MAX_ATTEMPT = Integer(
    "keep_alive_max_attempt",
    3,
    "After this many missed keep-alives a node counts as dead: this times `keep_alive_interval` is the time to live of "
    "its lease.",
    _CURRENT,
)
RANK_POLICY = Choice(
    "rank_policy",
    "host",
    "How members are ordered into ranks: by host name (`node-2` before `node-10`); members of the last round first, in "
    "their order (`stable`); or by arrival.",
    _COORDINATED,
    choices=("host", "stable", "arrival"),
)
TOPOLOGY = Text(
    "topology",
    "",
    "The place of the node in the network, such as `pod1/rack3/switch2`. Ranks are ordered by it before the host name.",
    _COORDINATED,
)
RANK_HINT = Integer[int | None](
    "rank_hint",
    None,
    "An integer, for example from `SLURM_PROCID`. Ranks are ordered by it before everything else.",
    _COORDINATED,
    least=-(2**63),
    most=2**63 - 1,
)
NODE_UNIT = Integer("node_unit", 1, "The world size is a multiple of it.", _COORDINATED, unit="nodes")
ON_NODE_LOSS = Choice(
    "on_node_loss",
    "reform",
    "If a member is lost, the others form the next round (`reform`), or continue until a worker fails (`ignore`, as "
    "torch does).",
    _COORDINATED,
    choices=("reform", "ignore"),
)
UPSCALE = Boolean(
    "upscale",
    True,
    "Whether a new node makes the others form a larger world. If false, it waits as a spare.",
    _COORDINATED,
)
PREFIX = Text(
    "prefix",
    "/rendezvous",
    "The prefix of all keys in etcd. The role of `username` must permit reading and writing below it.",
    _V3_API,
)

LEGACY_TIMEOUT = Integer(
    "timeout", 600, "Within this time a round must be complete, or joining it fails.", _LEGACY, unit="seconds"
)
LEGACY_LAST_CALL_TIMEOUT = Integer(
    "last_call_timeout",
    30,
    "A round with enough nodes waits this long for more. Must be less than `timeout`.",
    _LEGACY,
    unit="seconds",
    default_help="30, but at most half of `timeout`",
    least=0,
)
LEGACY_PREFIX = Text("etcd_prefix", "/torchelastic/p2p", "The directory of all runs in etcd.", _LEGACY)

PROTOCOL = Choice(
    "protocol", "http", "`https` encrypts the connection to etcd with TLS.", _ALL, choices=("http", "https")
)
CA_CERT = File(
    "ca_cert",
    "",
    "The certificate of the authority that signed etcd's, in PEM format. Needs `protocol=https`.",
    _CURRENT,
    default_help="the system's authorities",
)
SSL_CERT = File(
    "ssl_cert",
    "",
    "The certificate of this client, in PEM format. Needs `protocol=https`.",
    _CURRENT,
)
SSL_CERT_KEY = File("ssl_cert_key", "", "The private key of `ssl_cert`, in PEM format.", _CURRENT)
LEGACY_CA_CERT = File("cacert", "", CA_CERT.help, _LEGACY, default_help=CA_CERT.default_help)
LEGACY_CERT = File("cert", "", SSL_CERT.help, _LEGACY)
LEGACY_KEY = File("key", "", "The private key of `cert`, in PEM format.", _LEGACY)
USERNAME = Text("username", "", "The user of etcd. Needs a password.", _ALL)
PASSWORD_FILE = File(
    "password_file",
    "",
    f"A file with the password of `username`. The environment variable `{PASSWORD_VARIABLE}` may contain it "
    "instead. On `etcd-v3` the file is read again if etcd refuses the user.",
    _ALL,
)
PASSWORD = Secret(
    "password",
    "",
    "The password of `username`. Every user of the host can read it in the list of processes: use `password_file`.",
    _ALL,
)
READ_TIMEOUT = Integer(
    "read_timeout",
    60,
    "Within this time etcd must answer a request. On `etcd-v3` only the first contact, which takes at most 10 s.",
    (Backend.COORDINATED, Backend.DYNAMIC_V2, Backend.LEGACY),
    unit="seconds",
)
DYNAMIC_V3_READ_TIMEOUT = Integer(
    "read_timeout",
    5,
    "A request that etcd does not answer is repeated for this time.",
    (Backend.DYNAMIC_V3,),
    unit="seconds",
)

SETTINGS: tuple[Setting[Any], ...] = (
    *(JOIN_TIMEOUT, LAST_CALL_TIMEOUT, REJOIN_SETTLE_TIMEOUT, CLOSE_TIMEOUT, HEARTBEAT_TIMEOUT),
    *(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_MAX_ATTEMPT),
    *(RANK_POLICY, TOPOLOGY, RANK_HINT, NODE_UNIT, ON_NODE_LOSS, UPSCALE, PREFIX),
    *(LEGACY_TIMEOUT, LEGACY_LAST_CALL_TIMEOUT, LEGACY_PREFIX),
    *(PROTOCOL, CA_CERT, SSL_CERT, SSL_CERT_KEY, LEGACY_CA_CERT, LEGACY_CERT, LEGACY_KEY),
    *(USERNAME, PASSWORD_FILE, PASSWORD, READ_TIMEOUT, DYNAMIC_V3_READ_TIMEOUT),
)
"""All configuration keys. A name that several backends use differently is declared once for each meaning."""

CONNECTION_SETTINGS: tuple[Setting[Any], ...] = (
    *(PROTOCOL, CA_CERT, SSL_CERT, SSL_CERT_KEY, USERNAME, PASSWORD_FILE, PASSWORD, READ_TIMEOUT, PREFIX),
)
"""The settings of a connection to etcd's v3 API and of the keys there, which do not depend on a protocol."""

# torchrun adds these to every configuration, whatever the backend.
_LAUNCHER_KEYS = ("timeout", "rank", "is_host")


def settings_of(*backends: Backend) -> list[Setting[Any]]:
    """Return the settings that any of ``backends`` has."""
    return [setting for setting in SETTINGS if not set(backends).isdisjoint(setting.backends)]


def check(params: RendezvousParameters, backend: Backend) -> None:
    """Check the run id, the address of the node and every configuration value, and warn about what has no effect.

    Raises:
        ValueError: a value is malformed or out of range, or two values contradict each other.
    """
    if not params.run_id:
        raise ValueError("The run id must not be empty.")
    for what, text in (("run id", params.run_id), ("local address", params.local_addr or "")):
        if (problem := unprintable(text)) is not None:
            raise ValueError(f"The {what} must not contain {problem}; it is {text!r}.")
    for setting in settings_of(backend):
        setting.read(params)
    if backend is not Backend.LEGACY:
        last_call_timeout(params, backend)
    _check_tls(params, backend)
    _check_user(params)
    _warn_of_unknown_keys(params, backend)


def last_call_timeout(params: RendezvousParameters, backend: Backend) -> float:
    """Return the seconds of the last call; by default 30, but at most half of the join timeout.

    Raises:
        ValueError: it is not less than the join timeout. The legacy backend only warns, since torch accepts it and a
            round that reaches the maximum number of nodes completes nevertheless.
    """
    legacy = backend is Backend.LEGACY
    setting, limit = (LEGACY_LAST_CALL_TIMEOUT, LEGACY_TIMEOUT) if legacy else (LAST_CALL_TIMEOUT, JOIN_TIMEOUT)
    last_call, join = setting.read(params), limit.read(params)
    if params.get(setting.name) is None:
        return min(last_call, join / 2)
    if last_call >= join:
        error = setting.error(
            f"must be less than '{limit.name}', or a round below the maximum number of nodes cannot complete in time: "
            f"they are {last_call} and {join} seconds. Set a shorter '{setting.name}' or a longer '{limit.name}'"
        )
        if not legacy:
            raise error
        logger.warning("%s", error)
    return last_call


@dataclass(frozen=True)
class Connection:
    """How a client connects to etcd.

    Attributes:
        protocol: ``http`` or ``https``.
        ca_cert: the file with the authority's certificate; None means the system's authorities.
        cert: the file with the client's certificate, or None.
        key: the file with its private key; None if there is no certificate, or if ``cert`` contains the key too.
        username: the user, or None.
        password_source: the user's password, or None.
    """

    protocol: str
    ca_cert: str | None
    cert: str | None
    key: str | None
    username: str | None
    password_source: Password | None

    @property
    def password(self) -> str | None:
        """The password, read from its file now. Raises ValueError."""
        return None if self.password_source is None else self.password_source.read()


def connection(params: RendezvousParameters, backend: Backend) -> Connection:
    """Return how a client of ``backend`` connects to etcd.

    Raises:
        ValueError: a value is malformed, or contradicts another.
    """
    _check_tls(params, backend)
    _check_user(params)
    username = USERNAME.read(params) or None
    ca_cert, cert, key = (setting.read(params) or None for setting in _tls_settings(backend))
    protocol, secret = PROTOCOL.read(params), None
    if username:
        secret = _password(params)
        if protocol == "http":
            _warn_of_plain_http(username)
    return Connection(protocol, ca_cert, cert, key, username, secret)


@functools.cache
def _warn_of_plain_http(username: str) -> None:
    """Log a warning, once in a process."""
    logger.warning(
        "the password of etcd's user '%s' is sent without encryption, because 'protocol' is 'http': everyone on the "
        "network can read it; serve etcd by TLS and set 'protocol=https'",
        username,
    )


def _tls_settings(backend: Backend) -> tuple[File, File, File]:
    """Return the settings of the authority's certificate, the client's certificate, and its key."""
    if backend is Backend.LEGACY:
        return LEGACY_CA_CERT, LEGACY_CERT, LEGACY_KEY
    return CA_CERT, SSL_CERT, SSL_CERT_KEY


def _check_tls(params: RendezvousParameters, backend: Backend) -> None:
    ca_cert, cert, key = _tls_settings(backend)
    if PROTOCOL.read(params) != "https":
        for setting in (ca_cert, cert, key):
            if setting.read(params):
                raise setting.error(
                    f"has no effect with 'protocol=http', which does not encrypt the connection to etcd. Set "
                    f"'protocol=https', or remove '{setting.name}'"
                )
    # As with torch, on the v2 API one file may contain the certificate and its key.
    if key.read(params) and not cert.read(params):
        raise key.error(f"is the key of '{cert.name}', which is missing: set both or none")
    if backend in _V3_API and cert.read(params) and not key.read(params):
        raise cert.error(f"needs its private key: name the file that contains it with '{key.name}'")


def _check_user(params: RendezvousParameters) -> None:
    given = [setting for setting in (PASSWORD_FILE, PASSWORD) if setting.read(params)]
    if not USERNAME.read(params):
        for setting in given:
            raise setting.error("has no effect without 'username': set the user that the password belongs to")
    elif not given and not environment_password():
        raise USERNAME.error(
            "needs a password: name a file that contains it with 'password_file', or set the environment variable "
            f"{PASSWORD_VARIABLE}"
        )


def _password(params: RendezvousParameters) -> Password:
    """Return the password: from its file, the environment, or the configuration, in this order."""
    if PASSWORD.read(params):
        logger.warning(
            "the password in the rendezvous configuration option 'password' can be read by every user of this host, "
            "in the list of processes: put it into a file and name that with 'password_file', or set the environment "
            "variable %s",
            PASSWORD_VARIABLE,
        )
    path = PASSWORD_FILE.read(params)
    password = Password(path) if path else Password(text=environment_password() or PASSWORD.read(params))
    if (problem := unprintable(password.read())) is not None:
        raise USERNAME.error(f"has a password with {problem}; check where the password comes from")
    return password


def _warn_of_unknown_keys(params: RendezvousParameters, backend: Backend) -> None:
    known = [setting.name for setting in settings_of(backend)]
    for key in params.config:
        if key in known or key in _LAUNCHER_KEYS:
            continue
        owners = [name for setting in SETTINGS if setting.name == key for name in setting.backend_names]
        near = difflib.get_close_matches(key, known, n=1)
        logger.warning(
            "the configuration option '%s' is ignored: the rendezvous backend '%s' does not have it%s%s",
            key,
            params.backend,
            f" (it is an option of {', '.join(owners)})" if owners else "",
            f"; did you mean '{near[0]}'?" if near else "",
        )
