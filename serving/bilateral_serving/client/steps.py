"""The steps of a call, independent of how a client waits.

The clients share their logic as flows: generators that yield a step and are sent its result. The
synchronous client takes the steps one after the other, the asyncio client awaits them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Wait:
    """Wait until a gRPC call is over, or the seconds are; no result."""

    call: Future[Any]
    seconds: float


@dataclass(frozen=True)
class Pause:
    """Wait for some seconds; no result."""

    seconds: float


@dataclass(frozen=True)
class Compute:
    """Work for the processor, which must not hold up an event loop; its result is what it gives."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class Gather:
    """Several flows in any order or at once; the result is the list of theirs."""

    flows: Sequence[Flow[Any]]


Step: TypeAlias = Wait | Pause | Compute | Gather
Flow: TypeAlias = Generator[Step, Any, Result]
