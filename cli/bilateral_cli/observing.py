"""What of `bilateral serve` is for whoever watches it: its options, and its log as JSON."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_export.files import to_json

if TYPE_CHECKING:
    from bilateral_serving.server import Progress, RunningServer
    from bilateral_serving.server.processes.log import LogLine


class LogFormat(str, Enum):
    """How `bilateral serve` writes what it has to say."""

    TEXT = "text"
    JSON = "json"


ReadyFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File that exists while the server is ready, for a readiness probe; it is gone while"
        " a process is started again and as soon as the server is told to end."
    ),
]
AccessLogOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|-",
        help="File that gets one line of JSON for each call; - is standard output. A file that is"
        " renamed is made anew.",
    ),
]
LogFormatOption = Annotated[
    LogFormat, typer.Option(help="json: one object a line on standard error, and no progress bar.")
]
OtlpOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where OpenTelemetry spans are sent, such as http://localhost:4318/v1/traces; needs"
        " the extra [otel].",
    ),
]


class JsonDisplay:
    """What a server has to say, one JSON object a line on standard error.

    Args:
        verbose: Whether the whole log of tritonserver is shown.
    """

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose

    def log(self, line: LogLine) -> None:
        """Write a line of tritonserver's log."""
        if self._verbose or line.level in ("error", "warning"):
            self._write("triton", level=line.level, text=line.text)

    def event(self, text: str) -> None:
        """Write what was wrong and what was done."""
        self._write("supervisor", level="warning", text=text)

    def progress(self, done: Progress) -> None:
        """Write nothing: there is no bar."""

    def ready(self, server: RunningServer) -> None:
        """Write where it serves what."""
        self._write(
            "ready",
            level="info",
            grpc=server.url,
            http=server.http_url,
            metrics=server.metrics_url,
            models=list(server.models),
            failed=server.failed,
            start_s=round(server.start_s, 3),
        )

    def stopped(self) -> None:
        """Write that it has ended as told."""
        self._write("stopped", level="info")

    def _write(self, event: str, **fields: object) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = to_json({"time": at, "event": event, **fields}, indent=None)
        print(line, file=sys.stderr, flush=True)
