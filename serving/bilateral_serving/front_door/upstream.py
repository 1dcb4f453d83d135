"""The gRPC channel from the front door to Triton, and whether Triton answers on it."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
import grpc.aio

from bilateral_serving.front_door import requests
from bilateral_serving.transport import TRITON_CHANNEL

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_WORTH_SAYING_S = 0.5
_READY = grpc.ChannelConnectivity.READY


class AwayError(Exception):
    """Triton did not come back in time."""


class Upstream:
    """A channel to Triton that comes back as soon as Triton does.

    Args:
        address: gRPC's address of it.
        hold_s: Seconds to wait for it.
        message_bytes: Largest message.
    """

    def __init__(self, address: str, hold_s: float, message_bytes: int) -> None:
        self._hold_s = hold_s
        self._back: asyncio.Task[None] | None = None
        self.channel: grpc.aio.Channel = grpc.aio.insecure_channel(
            address,
            options=[
                *TRITON_CHANNEL,
                ("grpc.max_send_message_length", message_bytes),
                ("grpc.client_idle_timeout_ms", 2**31 - 1),
                # Retries are decided here: gRPC's own would not know what may be repeated.
                ("grpc.enable_retries", 0),
            ],
        )
        self._is_live = self.channel.unary_unary(requests.LIVE)

    def patience(self) -> float:
        """Return until when a request that comes now may wait, by the clock `time.monotonic`."""
        return time.monotonic() + self._hold_s

    async def wait_until_connected(self, end: float) -> None:
        """Return at once if Triton is there, as far as is known, else when it is.

        Raises:
            AwayError: It was not there at `end`, by the clock `time.monotonic`.
        """
        if self._back is None and self.channel.get_state() is _READY:
            return
        await self.wait_until_it_answers(end)

    async def wait_until_it_answers(self, end: float) -> None:
        """Return when Triton has answered a call: after one that broke, on a new connection.

        Raises:
            AwayError: It did not before `end`, by the clock `time.monotonic`.
        """
        if self._back is None:
            self._back = asyncio.create_task(self._come_back())
        done, _ = await asyncio.wait((self._back,), timeout=max(0.0, end - time.monotonic()))
        if not done:
            raise AwayError

    async def _come_back(self) -> None:
        """Return when Triton answers; one task for however many requests wait."""
        began = time.monotonic()
        while not await self._answers():
            await asyncio.sleep(_POLL_S)
        self._back = None
        waited_s = time.monotonic() - began
        if waited_s > _WORTH_SAYING_S:
            logger.warning("requests waited %.1f s for tritonserver", waited_s)

    async def _answers(self) -> bool:
        # The channel's state does not say it: it is READY for a while after its connection broke.
        try:
            await self._is_live(b"")
        except grpc.aio.AioRpcError:
            return False
        return True
