"""What other processes take is told apart from what this one and its children take."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bilateral_benchmarks.load.others import Others, _family_ticks

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def test_what_this_process_and_its_children_take_is_theirs() -> None:
    before = _family_ticks(os.getpid())
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    child = subprocess.Popen([sys.executable, "-c", BURN.format(0.5) + "time.sleep(60)"])
    try:
        deadline, expected = time.monotonic() + 60, 0.7 * os.sysconf("SC_CLK_TCK")
        while _family_ticks(os.getpid()) - before < expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _family_ticks(os.getpid()) - before >= expected
        assert _family_ticks(child.pid) < _family_ticks(os.getpid())
    finally:
        child.kill()
        child.wait()


def test_a_share_is_one_of_a_core() -> None:
    with Others() as others:
        time.sleep(0.2)
    assert 0 <= others.share <= 1.5 * (os.cpu_count() or 1)
