"""TLS of the front door, whose certificates can be renewed while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl

import grpc

from bilateral_export.errors import UserError
from bilateral_serving.certificates import TlsFiles

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0

State = tuple[tuple[int, int], ...]


def _state(files: TlsFiles) -> State | None:
    """Return what changes when a file is replaced; None while one is not there."""
    try:
        found = [path.stat() for path in (files.certificate, files.key, files.client_ca) if path]
    except OSError:
        return None
    return tuple((status.st_mtime_ns, status.st_ino) for status in found)


class _Fetcher:
    """Called by gRPC for each new connection; returns new files once they belong together."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._seen = files, _state(files)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        state = _state(self._files)
        if state is None or state == self._seen:
            return None
        try:
            self._files.check()
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


def http_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of an HTTPS server; new connections follow `follow`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, files)
    return context


async def follow(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Load the files again whenever they change; runs until it is cancelled."""
    seen = _state(files)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        state = _state(files)
        if state is None or state == seen:
            continue
        try:
            files.check()
            _load(context, files)
            seen = state
        except (UserError, ssl.SSLError, OSError) as error:
            logger.warning("%s; the certificate of before stays", error)


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.load_cert_chain(files.certificate, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
