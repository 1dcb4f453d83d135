"""Triton's log, line by line, for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]

_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_LINE = re.compile(r'([IWEF])\d{4} [\d:.]+ +\d+ (\S+?):\d+\] "?(.*?)"?$')
# What a server says at every end, and without a GPU at every start, at whatever level it says it.
_ROUTINE = re.compile(
    "|".join(
        (
            "CudaDriverHelper has not been initialized",
            "Failed to initialize NVML",
            "DCGM unable to start",
            "failed to allocate pinned system memory",
            "Pinned memory pool disabled",
            "CUDA memory pool disabled",
            "Unable to allocate pinned system memory",
            r"Timeout \d+: Found ",
        )
    )
)


@dataclass(frozen=True)
class LogLine:
    """One line: its level and its text, without time, process number and source file."""

    level: Level
    text: str
    is_foreign: bool = False
    """Whether it came from no part of Triton: a table, or what a model's process wrote."""


def parse(line: str, previous: LogLine | None) -> LogLine:
    """Read one line; a line without a head (a table, a traceback) has the level before it."""
    text = line.rstrip("\n")
    match = _LINE.match(text)
    level: Level = previous.level if previous else "info"
    if match:
        # Triton writes a traceback of several lines as one.
        level, text = _LEVELS[match[1]], match[3].replace("\\n", "\n").rstrip()
    elif previous is None or text.startswith(("+-", "| ")):
        level = "debug"
    if not text.strip() or _ROUTINE.search(text):
        level = "debug"
    return LogLine(level, text, is_foreign=match is None)


def begun_model(line: LogLine) -> str | None:
    """Return the name of the model of which this line says that an instance is being made."""
    match = re.match(r"TRITONBACKEND_ModelInstanceInitialize: (.+)_\d+_\d+ \(", line.text)
    return match[1] if match else None


def loaded_model(line: LogLine) -> str | None:
    """Return the name of the model that this line says is loaded."""
    match = re.match(r"successfully loaded '(.+)'$", line.text)
    return match[1] if match else None


def is_drained(line: LogLine) -> bool:
    """Return whether this line says that a server which stops has no request under way."""
    return "Found 0 model versions that have in-flight inferences" in line.text


def failed_model(line: LogLine) -> tuple[str, str] | None:
    """Return the name of the model that this line says did not load, and what went wrong."""
    match = re.match(r"failed to load '(.+)' version (\d+): (?:Internal: )?(.*)", line.text)
    return (match[1], f"version {match[2]}: {match[3]}") if match else None


def reasons(lines: list[LogLine]) -> list[str]:
    """Return why a server stopped, from its log: the models that failed, else its error lines."""
    failures = [f"model '{found[0]}' {found[1]}" for line in lines if (found := failed_model(line))]
    errors = [line.text for line in lines if line.level == "error" and line.text.strip()]
    return list(dict.fromkeys(failures or errors))
