"""How a client identifies itself to etcd, and which certificates it trusts: the names of files, read when needed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from rendezvous import config

__all__ = ["Certificates", "Credentials"]


class Certificates(NamedTuple):
    """What the files contain; None for a file that is not named."""

    ca_cert: bytes | None
    cert: bytes | None
    key: bytes | None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return them as gRPC takes them."""
        return grpc.ssl_channel_credentials(self.ca_cert, self.key, self.cert)


@dataclass(frozen=True)
class Credentials:
    """A user and certificates. The files are read again for each new channel, the password for each authentication.

    Attributes:
        tls: whether to use TLS.
        ca_cert: the file with the certificates of the authority, in PEM; by default those of the system.
        cert: the file with the client's certificate chain, in PEM.
        key: the file with its private key, in PEM.
        username: etcd's user.
        password: its password.
    """

    tls: bool = False
    ca_cert: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str | None = None
    password: config.Password | None = None

    def read(self) -> Certificates:
        """Return what the files contain. Raises OSError."""
        return Certificates(*(None if path is None else _read(path) for path in (self.ca_cert, self.cert, self.key)))

    def context(self) -> ssl.SSLContext:
        """Return them as :mod:`ssl` takes them.

        Raises:
            ValueError: a file cannot be read or does not contain what it should; the message names it and its option.
        """
        context = ssl.create_default_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # gRPC is not strict either
        if self.ca_cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _load_certificates(context, config.CA_CERT, self.ca_cert)
        if self.cert is not None:
            _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), config.SSL_CERT, self.cert)
            try:
                # OpenSSL would ask the terminal for a passphrase.
                context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
            except ssl.SSLError as exc:
                if exc.reason == "KEY_VALUES_MISMATCH":
                    problem = f"is not the key of the certificate '{self.cert}', which 'ssl_cert' names"
                else:
                    problem = "does not contain a private key in PEM format"
                raise config.SSL_CERT_KEY.error(f"names '{self.key}', which {problem}") from None
            except _PassphraseError:
                problem = f"names '{self.key}', which is encrypted: store the key without a passphrase"
                raise config.SSL_CERT_KEY.error(problem) from None
            except OSError as exc:
                raise config.SSL_CERT_KEY.error(f"names '{self.key}', which cannot be read: {exc.strerror}") from None
        return context


class _PassphraseError(Exception):
    pass


def _no_passphrase() -> str:
    raise _PassphraseError


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _load_certificates(context: ssl.SSLContext, setting: config.File, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise setting.error(f"names '{path}', which does not contain a certificate in PEM format") from None
    except OSError as exc:
        raise setting.error(f"names '{path}', which cannot be read: {exc.strerror}") from None
