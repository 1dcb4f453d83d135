"""What a call does, step by step, without saying how it waits.

The clients share their logic as flows: generators that yield a step and are sent its result. The
synchronous client takes the steps one after the other, the asyncio client awaits them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from bilateral_serving.deadline import Deadline

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ask:
    """One gRPC call; its result is the server's answer, or a UserError is raised in the flow.

    Attributes:
        what: What is asked for, as an error names it.
        deadline: When it must be over, retries included.
        call: Given tritonclient's client and the seconds left, makes the call.
    """

    what: str
    deadline: Deadline
    call: Callable[[Any, float], Any]


@dataclass(frozen=True)
class Compute:
    """Work for the processor, which must not hold up an event loop; its result is what it gives."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class Together:
    """Several flows in any order or at once; the result is the list of theirs."""

    flows: Sequence[Flow[Any]]


Step: TypeAlias = Ask | Compute | Together
Flow: TypeAlias = Generator[Step, Any, Result]
