"""The record of one call of a caller, and those who are told of it when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ACCEPTED = "bilateral-accepted"
"""The metadata, or header, that tells the model when the front door took the request.

`time.monotonic_ns`, which all processes of a machine share. Triton hands it to the Python
backend as a parameter of the request (`--grpc-header-forward-pattern`).
"""


FINE = ("OK", "200")
"""What a call that was answered has as its status."""


@dataclass(slots=True)
class CallRecord:
    """What is known of a call; filled in while it is made.

    Attributes:
        protocol: "grpc" or "http".
        method: The gRPC method, or the HTTP method and path.
        peer: The caller's address.
        caller: The name of its token; None: it has shown none.
        id: The request's, if the caller gave one.
        model: The model's name.
        version: The version that answered; of a refused request the one that it asked for.
        status: gRPC's name of it, or HTTP's number. CANCELLED: the caller left.
        request_bytes: Length of the message.
        answer_bytes: Length of the answer.
        accepted_ns: When it came, by `time.monotonic_ns`.
        sent_ns: When it was sent to Triton for the first time; None: it was not.
        ended_ns: When it was answered.
        passed_on: Metadata that Triton gets besides the caller's.
        trace_id: Of its span; empty without tracing.
    """

    protocol: str
    method: str
    peer: str
    caller: str | None = None
    id: str = ""
    model: str = ""
    version: str = ""
    status: str = ""
    request_bytes: int = 0
    answer_bytes: int = 0
    accepted_ns: int = field(default_factory=time.monotonic_ns)
    sent_ns: int | None = None
    ended_ns: int = 0
    passed_on: dict[str, str] = field(default_factory=dict)
    trace_id: str = ""


class Observer(Protocol):
    """Who is told of calls; must neither raise nor wait."""

    def begin(self, record: CallRecord, metadata: Mapping[str, str]) -> Callable[[], None]:
        """Take note of a call that begins; what is returned is called when it has ended."""


class Observers:
    """Everyone who is told of calls.

    Args:
        observers: Access log, metrics, tracing: those that were asked for.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    @property
    def any(self) -> bool:
        """Whether somebody looks at the records, so that it is worth filling them in."""
        return bool(self._observers)

    @contextlib.contextmanager
    def call(self, record: CallRecord, metadata: Mapping[str, str]) -> Iterator[CallRecord]:
        """Tell of a call when it begins, and when the block has ended, however it did."""
        record.passed_on[ACCEPTED] = str(record.accepted_ns)
        ends = [observer.begin(record, metadata) for observer in self._observers]
        try:
            yield record
        except asyncio.CancelledError:
            record.status = "CANCELLED"
            raise
        finally:
            record.ended_ns = time.monotonic_ns()
            for end in ends:
                end()
