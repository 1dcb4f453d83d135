"""A connection to a server over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc._utils import get_error_grpc

from bilateral_serving import access
from bilateral_serving.access import is_loopback
from bilateral_serving.client.call_metadata import Metadata, Pairs
from bilateral_serving.client.connection import Connection, use_grpc
from bilateral_serving.credentials import Credentials, open_channel


def channel(
    url: str, credentials: Credentials, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """Open a channel of this process's own; one to a loopback address never uses a proxy.

    Args:
        url: "host:port".
        credentials: TLS.
        options: Channel options of the caller, which come before those set here.

    Raises:
        UserError: This process cannot use gRPC, or the credentials cannot be read.
    """
    use_grpc()
    ours = {
        "grpc.max_send_message_length": -1,
        "grpc.max_receive_message_length": -1,
        # Otherwise a forked child's channel would use its parent's connection.
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_http_proxy": 0 if is_loopback(url) else 1,
        # A server that comes back is found again within a second, not within two minutes.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 1000,
    }
    return open_channel(url, list({**ours, **dict(options)}.items()), credentials)


class GrpcConnection(Connection):
    """A gRPC channel.

    Args:
        url: "host:port".
        token: The token of the server's start, if it was given; None: looked up when it is needed.
        shared_memory: Whether it is wanted, as `Regions` takes it.
        credentials: TLS and the bearer token.
        metadata: What the caller adds to every call.
        options: Channel options of the caller.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        shared_memory: bool | None,
        credentials: Credentials,
        metadata: Metadata | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        super().__init__(url, shared_memory, credentials.metadata, metadata)
        self._given = token
        self._token = token
        self._channel = channel(url, credentials, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def find_token(self) -> bool:
        """Look the server's token up again; whether it is another one than before."""
        before = self._token
        if self._given is None and is_loopback(self.url):
            self._token = access.find_token(self.url)
        return self._token not in (None, before)

    def _make(self, method: str, request: Any, metadata: Pairs) -> Any:
        try:
            return getattr(self._stub, method)(request, metadata=self._with_token(metadata))
        except grpc.RpcError as broken:
            raise get_error_grpc(broken) from None

    def _make_later(
        self, method: str, request: Any, metadata: Pairs, finish: Callable[[Any], None]
    ) -> bool:
        def result() -> Any:
            try:
                return future.result()
            except grpc.RpcError as broken:
                raise get_error_grpc(broken) from None

        future = getattr(self._stub, method).future(request, metadata=self._with_token(metadata))
        future.add_done_callback(lambda _: finish(result))
        return True

    def _disconnect(self) -> None:
        self._channel.close()

    def _with_token(self, metadata: Pairs) -> Pairs:
        # A front door asks for it too when a request reads shared memory.
        return (*metadata, (access.METADATA_KEY, self._token)) if self._token else metadata
