"""Process status from /proc (proc(5)): parent, processor time, start, command."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessStatus:
    """A process that runs.

    Attributes:
        parent: Its parent's number.
        cpu_s: Processor time that all its threads have used, in seconds.
        started: When it started, in the kernel's ticks; with the number it names one process only.
        command: Its program and arguments.
    """

    parent: int
    cpu_s: float
    started: int
    command: tuple[str, ...]


def read_status(pid: int) -> ProcessStatus | None:
    """Read a process's status; None if it has ended, collected by its parent or not."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        command = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    if fields[0] in "ZX":
        return None
    return ProcessStatus(
        parent=int(fields[1]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        started=int(fields[19]),
        command=tuple(command.split("\0")[:-1]),
    )


def children(parent: int) -> dict[int, ProcessStatus]:
    """Return the processes that a process has started and that still run, by number."""
    found = {}
    for directory in _PROC.glob("[0-9]*"):
        status = read_status(int(directory.name))
        if status is not None and status.parent == parent:
            found[int(directory.name)] = status
    return found


def busy_s(pid: int) -> float:
    """Return seconds that a process has run, and that its threads have waited for a processor."""
    status = read_status(pid)
    waited_ns = 0
    for thread in (_PROC / str(pid) / "task").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the thread has ended, or this kernel does not count
            waited_ns += int((thread / "schedstat").read_text().split()[1])
    return (status.cpu_s if status else 0.0) + waited_ns / 1e9


def owner_name(pid: int) -> str:
    """Return a name for what a process leaves behind; `owner_is_gone` reads it.

    Raises:
        ProcessLookupError: There is no such process.
    """
    status = read_status(pid)
    if status is None:
        raise ProcessLookupError(pid)
    return f"{_namespace():x}-{pid:x}-{status.started:x}"


def owner_is_gone(name: str) -> bool:
    """Return whether the process of an `owner_name` has ended; False in another PID namespace."""
    try:
        namespace, pid, started = (int(part, 16) for part in name.split("-"))
    except ValueError:
        return False
    if namespace != _namespace():  # a container's, which shares the directory only
        return False
    status = read_status(pid)
    return status is None or status.started != started


def _namespace() -> int:
    return (_PROC / "self/ns/pid").stat().st_ino
