"""Reading a backend's configuration: each value checked, each error naming key, value and range."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Sequence

from rendezvous.api import RendezvousParameters

__all__ = [
    "CLIENT_KEYS",
    "HANDLER_KEYS",
    "existing_file",
    "natural_int",
    "one_of",
    "password",
    "positive_int",
    "text",
    "user",
    "warn_of_unknown_keys",
]

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE = "RENDEZVOUS_ETCD_PASSWORD"

HANDLER_KEYS = (
    "join_timeout",
    "last_call_timeout",
    "close_timeout",
    "heartbeat_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
)
CLIENT_KEYS = (
    "protocol",
    "ssl_cert",
    "ssl_cert_key",
    "ca_cert",
    "username",
    "password",
    "password_file",
    "read_timeout",
)
"""What says how a client reaches etcd, over either API."""

# torchrun adds these to every configuration, whatever the backend.
_LAUNCHER_KEYS = ("timeout", "rank", "is_host")

_LARGEST_INT = 10**9


def text(params: RendezvousParameters, key: str, default: str | None = None) -> str | None:
    """Return a text without the blanks around it; ``default`` where it is absent or blank."""
    value = params.get(key)
    return (str(value).strip() or default) if value is not None else default


def positive_int(params: RendezvousParameters, key: str, default: int) -> int:
    """Return an integer from 1.

    Raises:
        ValueError: it is not an integer, or out of range.
    """
    return _integer(params, key, default, 1)


def natural_int(params: RendezvousParameters, key: str, default: int) -> int:
    """Return an integer from 0.

    Raises:
        ValueError: it is not an integer, or out of range.
    """
    return _integer(params, key, default, 0)


def _integer(params: RendezvousParameters, key: str, default: int, least: int) -> int:
    value = params.get_as_int(key, default)
    if value is None:
        return default
    if not least <= value <= _LARGEST_INT:
        raise ValueError(
            f"The rendezvous configuration option '{key}' must be an integer from {least} to {_LARGEST_INT}, "
            f"not {value}."
        )
    return value


def one_of(params: RendezvousParameters, key: str, choices: Sequence[str]) -> str:
    """Return one of ``choices``, in any letter case; the first where it is absent.

    Raises:
        ValueError: it is none of them.
    """
    value = (text(params, key) or choices[0]).lower()
    if value not in choices:
        raise ValueError(
            f"The rendezvous configuration option '{key}' must be one of {', '.join(choices)}, not '{value}'."
        )
    return value


def existing_file(params: RendezvousParameters, key: str) -> str | None:
    """Return the path of a file that is there, or None where the key is absent.

    Raises:
        ValueError: there is no such file.
    """
    path = text(params, key)
    if path is not None and not os.path.isfile(path):
        raise ValueError(f"The rendezvous configuration option '{key}' names '{path}', which is not a file.")
    return path


def password(params: RendezvousParameters) -> str | None:
    """Return the password: from the file that ``password_file`` names, the environment, or ``password``; or None.

    Raises:
        ValueError: there is no such file, or it is empty.
    """
    given = text(params, "password")
    if given is not None:
        logger.warning(
            "the rendezvous configuration option 'password' is readable by all who can list this host's processes; "
            "put the password into a file and name that with 'password_file', or set the environment variable %s",
            PASSWORD_VARIABLE,
        )
    path = existing_file(params, "password_file")
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE) or given
    with open(path, encoding="utf-8") as file:
        secret = file.read().rstrip("\r\n")
    if not secret:
        raise ValueError(f"The rendezvous configuration option 'password_file' names '{path}', which is empty.")
    return secret


def user(params: RendezvousParameters) -> tuple[str, str] | None:
    """Return etcd's user and its password, or None where no ``username`` is given.

    Raises:
        ValueError: there is a user and no password.
    """
    username = text(params, "username")
    if not username:
        return None
    secret = password(params)
    if not secret:
        raise ValueError(
            "The rendezvous configuration option 'username' needs a password: name a file that holds it with "
            f"'password_file', or set the environment variable {PASSWORD_VARIABLE}."
        )
    return username, secret


def warn_of_unknown_keys(params: RendezvousParameters, known: Collection[str]) -> None:
    """Log a warning for each key that is not in ``known``, with the nearest that is."""
    for key in params.config:
        if key not in known and key not in _LAUNCHER_KEYS:
            near = difflib.get_close_matches(key, known, n=1)
            logger.warning(
                "the rendezvous backend '%s' does not know the configuration option '%s'%s",
                params.backend,
                key,
                f"; did you mean '{near[0]}'?" if near else "",
            )
