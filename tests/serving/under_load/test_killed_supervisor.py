"""`serve` itself killed (SIGKILL), under load."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import mentioning, wait_until_gone
from tests.serving.server.test_supervise import Supervised
from tests.serving.under_load.steady_caller import SteadyCaller

from bilateral_serving import repository
from bilateral_serving.config import Settings


@pytest.mark.slow
def test_its_children_end_and_the_next_start_serves(tmp_path: Path) -> None:
    one = Settings(threads=1, warmup=False)
    repository.add("quadrants", models.quadrants(tmp_path / "q.onnx"), tmp_path / "r", settings=one)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.onnx")}
    server = Supervised(tmp_path / "r")
    server.wait_for("ready")
    caller = SteadyCaller(server.url)
    caller.start()
    caller.wait_for(20)
    began = time.monotonic()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert wait_until_gone(server.mark, 30) == []
    again = Supervised(tmp_path / "r", port=int(server.url.rpartition(":")[2]))
    again.wait_for("ready")
    caller.wait_for(20)
    print(f"\nserved again {time.monotonic() - began:.1f} s after SIGKILL")
    account = caller.finish()
    assert account.wrong == 0
    assert all("UNAVAILABLE" in text for text in account.failed), account
    assert account.longest_s < 30
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(server.mark)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again.end()
    assert mentioning(again.mark) == []
