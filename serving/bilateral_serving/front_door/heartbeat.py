"""The heartbeat of a front door on its standard output, by which its parent sees that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os

BEAT_EVERY_S = 1.0


async def beat(descriptor: int) -> None:
    """Write a byte every `BEAT_EVERY_S` until cancelled; what a full pipe does not take is lost."""
    os.set_blocking(descriptor, False)
    while True:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\n")
        await asyncio.sleep(BEAT_EVERY_S)
