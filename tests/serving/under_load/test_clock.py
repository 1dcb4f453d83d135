"""The wall clock jumps under load, forward a day and back: waits and deadlines do not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import wait_until_gone
from tests.serving.server.test_supervise import Supervised
from tests.serving.under_load.steady_caller import SteadyCaller

from bilateral_serving import repository
from bilateral_serving.config import Settings

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.mark.slow
@pytest.mark.skipif(not _LIBRARIES, reason="needs Debian's package libfaketime")
def test_a_jump_loses_nothing_and_restarts_nothing(tmp_path: Path) -> None:
    one = Settings(threads=1, warmup=False)
    repository.add("quadrants", models.quadrants(tmp_path / "q.onnx"), tmp_path / "r", settings=one)
    offset, log = tmp_path / "offset", tmp_path / "calls.log"
    offset.write_text("+0")
    clock = {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # which no step of the wall clock moves
    }
    server = Supervised(tmp_path / "r", clock, access_log=log)
    server.wait_for("ready")
    caller = SteadyCaller(server.url)
    caller.start()
    for jump in ("+1d", "-1d", "+0"):
        caller.wait_for(50)
        offset.write_text(jump)
        time.sleep(3)
    caller.wait_for(50)
    account = caller.finish()
    print(f"\na day forward, a day back: {account}")
    assert (account.wrong, account.failed) == (0, [])
    assert account.longest_s < 10
    assert server.lines_so_far() == []
    days = {line.split('"time":"')[1][:10] for line in log.read_text().splitlines()}
    assert len(days) == 3  # the log has the wall clock's time
    # Not `end`: time.sleep fails with EINVAL in a process that libfaketime has moved.
    server.process.kill()
    server.process.wait()
    assert wait_until_gone(server.mark, 30) == []
