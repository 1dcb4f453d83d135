"""A disk that is full, under load: what cannot be written is not, and every call is answered."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
from tests.builders.waiting import eventually
from tests.serving.under_load.confined import Confined, filled
from tests.serving.under_load.steady_caller import SteadyCaller

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.watching.scrape import scrape

SMALL = Settings(threads=1, warmup=False)


def snapshot(root: Path) -> dict[str, str]:
    """The repository's files by their hashes, less what keeps Python from caching there."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != "__pycache__"
    }


def dropped(confined: Confined) -> float:
    page = scrape(f"http://127.0.0.1:{confined.metrics_port}/metrics")
    return page.total("bilateral_access_log_dropped_total")


def test_calls_are_answered_and_lines_are_counted(confined: Confined, caller: SteadyCaller) -> None:
    before = dropped(confined)
    with filled(confined.disk):
        caller.wait_for(50)
        eventually(lambda: dropped(confined) > before)
    size = (confined.disk / "calls.log").stat().st_size
    eventually(lambda: (confined.disk / "calls.log").stat().st_size > size)
    account = caller.finish()
    assert (account.wrong, account.failed) == (0, [])


def test_add_and_promote_refuse_and_change_nothing(
    confined: Confined, caller: SteadyCaller
) -> None:
    root, port = confined.repository, confined.url.rpartition(":")[2]
    other = confined.new_version(gain=4.0)  # whose answers would be wrong ones
    repository.add("quadrants", other, root, settings=SMALL)
    before = snapshot(root)
    with filled(confined.disk):
        with pytest.raises(UserError, match="No space left on device"):
            repository.add("quadrants", other, root, settings=SMALL)
        refused = confined.command(
            *("repository", "promote", "quadrants", "2", "--unjudged", "--grpc-port", port)
        )
        assert (refused.returncode, "No space left on device" in refused.stderr) == (2, True)
        caller.wait_for(20)
    assert snapshot(root) == before
    account = caller.finish()
    assert (account.wrong, account.failed) == (0, [])


def test_a_restart_needs_no_room(confined: Confined, caller: SteadyCaller) -> None:
    with filled(confined.disk):
        os.kill(confined.server.server(), signal.SIGKILL)
        assert "Restart" in confined.server.wait_for("event")
        caller.wait_for(5)
    account = caller.finish()
    assert (account.wrong, account.failed) == (0, [])
    # The readiness file comes when there is room for it.
    eventually((confined.disk / "ready").exists)
