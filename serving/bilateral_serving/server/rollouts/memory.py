"""Whether memory holds two versions of a model at once, judged by what the served one uses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(
    processes: Collection[int], loaded: Collection[int], wanted: Mapping[int, int]
) -> int:
    """Return the memory that loading versions takes beside those that are served.

    Triton loads every version of a model anew before it lets the served ones go.

    Args:
        processes: The processes of the model, all its versions and instances.
        loaded: The versions that these serve.
        wanted: The versions to load, and the bytes of their files.
    """
    resident = sum(map(_resident_bytes, processes))
    # Where Triton itself runs the model its share is not known: the weights, and as much again.
    by_files = sum(2 * size for size in wanted.values())
    served = [wanted[version] for version in loaded if version in wanted]
    if not resident or not served:
        return by_files
    each = resident / len(loaded)
    larger = sum(max(0, size - max(served)) for size in wanted.values())
    return round(each * len(wanted)) + 2 * larger


def available_bytes() -> int | None:
    """Return what the machine, or this container, can still give; None if neither says."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number: no limit
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
