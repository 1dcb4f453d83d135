"""The access log: one line of JSON for each call, written by a thread of its own."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from bilateral_serving.front_door.call_record import FINE, CallRecord
from bilateral_serving.front_door.model_hashes import ModelHashes

logger = logging.getLogger(__name__)

FLUSH_S = 0.2
# Lines that wait for a disk or a reader that is slow; further ones are dropped and counted.
_MOST = 100_000


class AccessLog:
    """Writes what it is told, five times a second.

    A call costs one append to a queue. The file is opened for each writing, so that one that was
    renamed (logrotate) or removed is made anew, without a signal. What cannot be written is
    dropped, counted, and said once: a full disk ends no call.

    Args:
        target: The file, or a descriptor that is open already.
        hashes: The SHA-256 of the model files.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, target: Path | int, hashes: ModelHashes) -> None:
        self._target, self._hashes = target, hashes
        self._waiting: deque[CallRecord] = deque()
        self._closing = threading.Event()
        self._failed = False
        self.dropped = 0
        self._write(b"")
        self._thread = threading.Thread(target=self._work, name="access log", daemon=True)
        self._thread.start()

    def begin(self, record: CallRecord, _metadata: Mapping[str, str]) -> Callable[[], None]:
        """Take note of a call; its line follows when it has ended."""
        return lambda: self._append(record)

    def close(self) -> None:
        """Write what is left."""
        self._closing.set()
        self._thread.join(timeout=5.0)

    def _append(self, record: CallRecord) -> None:
        if len(self._waiting) < _MOST:
            self._waiting.append(record)
        else:
            self.dropped += 1

    def _work(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        records = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not records:
            return
        offset_ns = time.time_ns() - time.monotonic_ns()
        lines = [
            json.dumps(self._line(record, offset_ns), separators=(",", ":")) for record in records
        ]
        text = ("\n".join(lines) + "\n").encode()
        try:
            self._write(text)
            self._failed = False
        except OSError as error:
            self.dropped += len(records)
            if not self._failed:
                logger.warning("the access log cannot be written: %s", error)
            self._failed = True

    def _write(self, text: bytes) -> None:
        if isinstance(self._target, int):
            while text:
                text = text[os.write(self._target, text) :]
            return
        with self._target.open("ab") as file:
            file.write(text)

    def _line(self, record: CallRecord, offset_ns: int) -> dict[str, object]:
        sent, fine = record.sent_ns, record.status in FINE and record.model
        at = datetime.fromtimestamp((record.accepted_ns + offset_ns) / 1e9, timezone.utc)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="microseconds"),
            "id": record.id or None,
            "caller": record.caller,
            "peer": record.peer,
            "protocol": record.protocol,
            "method": record.method,
            "model": record.model or None,
            "version": record.version or None,
            "sha256": self._hashes.get(record.model, record.version) if fine else None,
            "status": record.status,
            "waited_ms": None if sent is None else _ms(sent - record.accepted_ns),
            "triton_ms": None if sent is None else _ms(record.ended_ns - sent),
            "total_ms": _ms(record.ended_ns - record.accepted_ns),
            "request_bytes": record.request_bytes,
            "answer_bytes": record.answer_bytes,
        }
        return line | ({"trace_id": record.trace_id} if record.trace_id else {})


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
