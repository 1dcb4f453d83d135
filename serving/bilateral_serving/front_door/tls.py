"""TLS of the front door, whose certificates can be renewed while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

import grpc

from bilateral_export.errors import UserError
from bilateral_export.files import stamp
from bilateral_serving.certificates import TlsFiles

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0

State = tuple[tuple[int, int, int] | None, ...]


def _state(files: TlsFiles) -> State | None:
    """Return what changes when a file is replaced; None while one is not there."""
    found = [stamp(path) for path in (files.certificate, files.key, files.client_ca) if path]
    return None if None in found else tuple(found)


class _Fetcher:
    """Called by gRPC for each new connection; returns new files once they belong together."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._seen = files, _state(files)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        state = _state(self._files)
        if state is None or state == self._seen:
            return None
        try:
            self._files.context()
        except UserError as error:
            logger.warning("%s; the certificate of before stays", error)
            return None
        self._seen = state
        return configuration(self._files)


def configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Return the files as gRPC takes them."""
    key, certificate, authorities = files.read()
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


def grpc_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return the credentials of a gRPC server."""
    return grpc.dynamic_ssl_server_credentials(
        configuration(files), _Fetcher(files), files.client_ca is not None
    )


async def follow(files: TlsFiles, renew: Callable[[ssl.SSLContext], Awaitable[None]]) -> None:
    """Give `renew` a new context whenever the files change; runs until it is cancelled.

    The old context would do for a new certificate, but would go on to trust an authority that
    was withdrawn, and the sessions of its callers.
    """
    seen = _state(files)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        state = _state(files)
        if state is None or state == seen:
            continue
        try:
            await renew(files.context())
            seen = state
        except (UserError, OSError) as error:
            logger.warning("%s; the certificate of before stays", error)
