"""The addresses of one client: a connection to each, and which of them a call goes to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bilateral_export.errors import UserError
from bilateral_serving.client import errors
from bilateral_serving.client.balance import Balancer
from bilateral_serving.client.call_metadata import Metadata
from bilateral_serving.client.connection import Call, Connection, OnEnd
from bilateral_serving.client.grpc_connection import GrpcConnection
from bilateral_serving.credentials import Credentials


@dataclass(frozen=True)
class Access:
    """How a client reaches its servers; see `BaseClient`."""

    shared_memory: bool | None
    token: str | None
    given_credentials: Credentials | None
    metadata: Metadata | None
    options: Sequence[tuple[str, Any]]

    @cached_property
    def credentials(self) -> Credentials:
        """Return the credentials, the environment's if none were given.

        Raises:
            UserError: The token file that the environment names cannot be read.
        """
        given = self.given_credentials
        return Credentials.from_environment() if given is None else given

    def connect(self, url: str) -> Connection:
        """Open a connection.

        Raises:
            UserError: This process cannot use gRPC, or the credentials cannot be used.
        """
        if "://" in url:
            from bilateral_serving.client.http_connection import HttpConnection

            return HttpConnection(url, self.credentials, self.metadata)
        return GrpcConnection(
            url, self.token, self.shared_memory, self.credentials, self.metadata, self.options
        )


class Endpoints:
    """One process's connections to all addresses.

    Args:
        urls: The addresses.
        access: How they are reached.
    """

    def __init__(self, urls: Sequence[str], access: Access) -> None:
        self.urls = urls
        self.balancer = Balancer(len(urls))
        self._access = access
        self._connections: dict[int, Connection] = {}

    def connection(self, index: int) -> Connection:
        """Return the connection to an address, opened when it is first asked for."""
        connection = self._connections.get(index)
        if connection is None:
            # Two threads may get here at once: the first one's stays, the other's was never used.
            connection = self._connections.setdefault(index, self._access.connect(self.urls[index]))
        return connection

    def start(self, index: int, method: str, request: Any, on_end: OnEnd | None) -> Call:
        """Make a call at an address; see `Connection.start`."""
        call = self.connection(index).start(method, request, on_end)
        if len(self.urls) > 1:
            self.balancer.began(index)
            call.add_done_callback(lambda _: self.balancer.ended(index))
        return call

    def probe(self, method: str, request: Any) -> None:
        """Probe an ejected address, if one is due; its answer is not waited for."""
        index = self.balancer.probe_due()
        if index is None:
            return

        def end(error: Exception | None) -> None:
            self.balancer.probed(index, errors.is_well(error))

        try:
            connection = self.connection(index)
        except UserError as error:
            end(error)
        else:
            with contextlib.suppress(UserError, RuntimeError):  # refused here; `end` was told
                connection.start(method, request, end)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._connections.values()):
            connection.close()


@dataclass(frozen=True)
class StreamPlace:
    """The address of a stream of words, which counts as a call there while it runs."""

    url: str
    access: Access
    balancer: Balancer
    index: int

    def began(self) -> None:
        """Count the stream."""
        self.balancer.began(self.index)

    def ended(self, error: Exception | None) -> None:
        """Count its end."""
        self.balancer.ended(self.index)
        self.balancer.learn(self.index, errors.outcome(error))
