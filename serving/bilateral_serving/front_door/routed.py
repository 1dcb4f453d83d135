"""Calls that name no version, sent to the version that their model's route says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from bilateral_serving.front_door import requests, routing
from bilateral_serving.front_door.routing import Choice, Router
from bilateral_serving.front_door.shadow import Shadow

Send = Callable[[bytes], Awaitable[bytes]]


class RoutedCalls:
    """Sends gRPC messages to Triton by the routes, and has answers compared.

    Args:
        directory: Of the routes and the comparisons; None: everything goes where Triton chooses.
        shadow: Compares.
        patience: Returns until when a request that comes now may wait.
    """

    def __init__(
        self, directory: Path | None, shadow: Shadow, patience: Callable[[], float]
    ) -> None:
        self.router = Router(directory)
        self._shadow, self._patience = shadow, patience

    async def send(self, method: str, around: bytes, request: bytes, send: Send) -> bytes:
        """Send a message once, or again where the version was unloaded before it came there.

        Args:
            method: The method.
            around: The message; of an inference request its `envelope`.
            request: The message.
            send: Sends it to Triton; it is not repeated after an error that may mean that
                something has run.

        Raises:
            grpc.aio.AioRpcError: Triton's error.
            ValueError: It is not a message of this method.
        """
        if method not in routing.ROUTED or not self.router.has_routes():
            return await send(request)
        model, is_fixed = routing.named(method, around)
        if is_fixed:
            return await send(request)
        end = self._patience()
        while True:
            if method not in requests.HEALTH:
                await self.router.wait_until_there(model, end)
            whole = method != requests.INFER or requests.is_of_sequence(around)
            choice = self.router.choose(model, whole)
            try:
                answer = await send(routing.with_version(request, choice.version))
            except grpc.aio.AioRpcError as error:
                if not routing.is_unloaded(error.details() or "") or not self._has_changed(
                    model, choice, end
                ):
                    raise
                continue
            if choice.other is not None and b"shared_memory" not in around:
                self._shadow.compare(
                    model, choice, answer, lambda v: send(routing.with_version(request, v))
                )
            return answer

    def stream_request(self, around: bytes, request: bytes) -> bytes:
        """Return a stream's request with the version that its route says.

        Raises:
            ValueError: It is not a ModelInferRequest.
        """
        if not self.router.has_routes():
            return request
        model, is_fixed = routing.named(requests.INFER, around)
        return request if is_fixed else routing.with_version(request, self.router.active(model))

    def _has_changed(self, model: str, choice: Choice, end: float) -> bool:
        return self.router.route(model) != choice.route and time.monotonic() < end
