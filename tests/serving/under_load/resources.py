"""What the processes of a server hold, over time, and whether it grows."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.serving.under_load.confined import Confined

from bilateral_serving.process_status import children

MIB = 1 << 20
# Student's t for a two-sided 95 % interval, by degrees of freedom; beyond them the normal one's.
_T95 = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    6: 2.45,
    8: 2.31,
    10: 2.23,
    15: 2.13,
    20: 2.09,
}


@dataclass(frozen=True)
class Slope:
    """A least-squares slope per hour, with its 95 % interval."""

    per_hour: float
    low: float
    high: float
    last: float

    def __str__(self) -> str:
        return f"{self.last:.1f}, {self.per_hour:+.2f}/h [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Growth:
    """A slope over some time, and over its halves.

    What is lost with each call grows in both halves. An allocator that takes more once, for a
    coincidence of large messages, makes a step, which one half has and the other has not.
    """

    whole: Slope
    first: Slope
    second: Slope

    def is_more_than(self, per_hour: float) -> bool:
        """Return whether it is, in each half and with a confidence of 97.5 % there."""
        return min(self.first.low, self.second.low) > per_hour

    def __str__(self) -> str:
        halves = ", ".join(f"{half.per_hour:+.1f}" for half in (self.first, self.second))
        return f"{self.whole}; its halves {halves}"


def slope(times_s: np.ndarray, values: np.ndarray, bins: int = 16) -> Slope:
    """Fit means over equal stretches of time: neighbouring samples are not independent."""
    edges = np.linspace(times_s[0], times_s[-1] + 1e-9, bins + 1)
    group = np.digitize(times_s, edges) - 1
    x = np.array([times_s[group == i].mean() for i in range(bins)]) / 3600
    y = np.array([values[group == i].mean() for i in range(bins)])
    spread = x - x.mean()
    per_hour = float(spread @ y / (spread @ spread))
    rest = y - y.mean() - per_hour * spread
    error = float(np.sqrt(rest @ rest / (bins - 2) / (spread @ spread)))
    t = next((t for n, t in sorted(_T95.items()) if n >= bins - 2), 1.96)
    return Slope(per_hour, per_hour - t * error, per_hour + t * error, float(y[-1]))


class Watcher(threading.Thread):
    """Samples memory (RSS, MiB), open files and /dev/shm (MiB) of a server."""

    def __init__(self, server: Confined, every_s: float) -> None:
        super().__init__(daemon=True)
        self._server, self._every_s = server, every_s
        self._over = threading.Event()
        self.times: list[float] = []
        self.values: dict[tuple[str, str], list[float]] = {}

    def run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(self._every_s):
            self.times.append(time.monotonic() - began)
            for key, value in self._sample().items():
                self.values.setdefault(key, []).append(value)

    def finish(self, after_s: float) -> dict[tuple[str, str], Growth]:
        """Stop, and return how everything has grown since the warm-up."""
        self._over.set()
        self.join()
        times = np.array(self.times)
        middle = (after_s + times[-1]) / 2
        parts = times >= after_s, (times >= after_s) & (times < middle), times >= middle
        return {
            key: Growth(
                *(
                    slope(times[part], np.array(values)[part], bins)
                    for part, bins in zip(parts, (16, 8, 8), strict=True)
                )
            )
            for key, values in self.values.items()
        }

    def _sample(self) -> dict[tuple[str, str], float]:
        server = self._server.server
        triton = server.server()
        processes = {
            "supervisor": server.process.pid,
            "front door": server.door(),
            "tritonserver": triton,
        }
        for pid, status in children(triton).items():
            processes[f"model {Path(status.command[1]).parent.parent.name}"] = pid
        found = {}
        for name, pid in processes.items():
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
            found[name, "memory, MiB"] = resident / MIB
            found[name, "files"] = float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        used = sum(path.stat().st_blocks * 512 for path in self._server.shared_memory.iterdir())
        found["/dev/shm", "MiB"] = used / MIB
        return found
