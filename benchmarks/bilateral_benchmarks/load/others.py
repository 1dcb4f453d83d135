"""The share of the processors that other processes took while something was measured."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

# Of a core: what a quiet system takes for itself stays below it.
QUIET_SHARE = 0.1
_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields of /proc/PID/stat after the name
_IDLE, _IO_WAIT, _GUEST = 3, 4, 8  # of the first line of /proc/stat, which counts guests twice


class Others:
    """Measures what others take within a `with` block: other than this process and its descendants.

    A descendant that ends within the block counts as another.

    Attributes:
        share: Of one core, after the block.
    """

    share = 0.0

    def __enter__(self) -> Others:
        self._before = self._state()
        return self

    def __exit__(self, *error: object) -> None:
        busy, own, at = (
            after - before for after, before in zip(self._state(), self._before, strict=True)
        )
        self.share = max(0.0, (busy - own) / os.sysconf("SC_CLK_TCK") / at)

    @property
    def were_quiet(self) -> bool:
        """Whether what was measured in the block is not disturbed by others."""
        return self.share <= QUIET_SHARE

    def _state(self) -> tuple[float, float, float]:
        """Return ticks of all processors in use, those of this process's family, and the time."""
        with Path("/proc/stat").open(encoding="ascii") as file:
            ticks = list(map(int, file.readline().split()[1:]))
        busy = sum(ticks[:_GUEST]) - ticks[_IDLE] - ticks[_IO_WAIT]
        return busy, _family_ticks(os.getpid()), time.monotonic()


def _family_ticks(root: int) -> int:
    used: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            pid = int(path.parent.name)
            used[pid] = int(fields[_USER]) + int(fields[_SYSTEM])
            children.setdefault(int(fields[_PARENT]), []).append(pid)
    family, ticks = [root], 0
    while family:
        pid = family.pop()
        ticks += used.get(pid, 0)
        family += children.get(pid, [])
    return ticks
