"""The password of etcd's user: where it comes from, and what keeps it out of sight."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rendezvous.config.setting import unprintable

__all__ = ["PASSWORD_VARIABLE", "Password", "environment_password"]

PASSWORD_VARIABLE = "RENDEZVOUS_ETCD_PASSWORD"
"""The environment variable that may contain the password of ``username``."""

_remembered: str | None = None


def environment_password() -> str | None:
    """Return the password in the environment variable, if there is one.

    The first call removes it from the environment, so that the workers do not inherit it. Later calls return the same.
    """
    global _remembered
    _remembered = os.environ.pop(PASSWORD_VARIABLE, None) or _remembered
    return _remembered


@dataclass(frozen=True)
class Password:
    """A password, or the file that contains it. Pickles and representations contain the name of the file alone.

    Attributes:
        file: the file, which is read each time that the password is needed; None if ``text`` is the password.
        text: the password.
    """

    file: str | None = None
    text: str | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[type[Password], tuple[str | None]]:
        return Password, (self.file,)

    def read(self) -> str:
        """Return the password.

        Raises:
            ValueError: the file cannot be read, or the password is empty or malformed.
        """
        if self.file is None:
            if self.text is None:
                raise ValueError("The password of etcd's user is not pickled: name a file with 'password_file'.")
            return self.text
        problem = None
        try:
            with open(self.file, encoding="utf-8", errors="surrogateescape", newline="") as file:
                secret = file.read().rstrip("\r\n")
        except OSError as exc:
            problem = f"cannot be read: {exc.strerror}"
        else:
            if not secret:
                problem = "is empty"
            elif (characters := unprintable(secret)) is not None:
                problem = f"contains a password with {characters}"
        if problem is not None:
            secret = ""
            raise ValueError(
                f"The rendezvous configuration option 'password_file' names '{self.file}', which {problem}."
            )
        return secret
