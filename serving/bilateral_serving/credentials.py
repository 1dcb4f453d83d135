"""Credentials of a caller: the TLS files it trusts and shows, and its bearer token.

They are read from the environment where none are given, so that every command and every process
that a command starts uses the same ones. Without a CA or a certificate a gRPC connection is
not encrypted; an address with https:// always is.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bilateral_export.errors import UserError

CA, CERTIFICATE, KEY, TOKEN_FILE = (
    "BILATERAL_TLS_CA",
    "BILATERAL_TLS_CERT",
    "BILATERAL_TLS_KEY",
    "BILATERAL_TOKEN_FILE",
)
"""The environment variables."""

BEARER = "authorization"
"""The request metadata, and the HTTP header, that carries the bearer token."""


@dataclass(frozen=True)
class Credentials:
    """What a caller shows and trusts.

    Attributes:
        ca: PEM file of the authorities that the server's certificate may come from.
        certificate: PEM file of the caller's own certificate, where the server asks for one.
        key: PEM file of that certificate's key.
        token: Bearer token, where the server asks for one.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None

    @classmethod
    def from_environment(cls) -> Credentials:
        """Return the credentials that the environment names.

        Raises:
            UserError: The token file cannot be read.
        """
        ca, certificate, key, token = map(_named_by, (CA, CERTIFICATE, KEY, TOKEN_FILE))
        text = None if token is None else _read(token).decode(errors="replace").strip()
        return cls(ca, certificate, key, text)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return ((BEARER, f"Bearer {self.token}"),) if self.token else ()

    def ssl_context(self) -> ssl.SSLContext:
        """Return what HTTPS connects with; without a CA the system's authorities are trusted.

        Raises:
            UserError: A file cannot be read, is not PEM, or belongs to no pair.
        """
        self._check_pair()
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(path) for path in (self.ca, self.certificate, self.key) if path)
            raise UserError(
                f"TLS files cannot be used ({files}): {error.strerror or error}",
                "Give PEM files that this user can read, and the key of the certificate.",
            ) from error
        return context

    def _tls(self) -> grpc.ChannelCredentials | None:
        if self.ca is None and self.certificate is None:
            return None
        self._check_pair()
        files = (self.ca, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(path and _read(path) for path in files))

    def _check_pair(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UserError(
                "of a certificate and its key only one was given", "Give both, or neither."
            )


def open_channel(
    url: str,
    options: Sequence[tuple[str, Any]] = (),
    credentials: Credentials | None = None,
    module: Any = grpc,
) -> Any:
    """Open a gRPC channel, over TLS if the credentials say so.

    Args:
        url: "host:port".
        options: gRPC's channel options.
        credentials: None: the environment's.
        module: `grpc`, or `grpc.aio` for a channel of asyncio.

    Raises:
        UserError: A file of the credentials cannot be read, or belongs to no pair.
    """
    credentials = Credentials.from_environment() if credentials is None else credentials
    tls = credentials._tls()
    if tls is None:
        return module.insecure_channel(url, options=list(options))
    return module.secure_channel(url, tls, options=list(options))


def _named_by(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}", "Give a file that this user can read."
        ) from error
