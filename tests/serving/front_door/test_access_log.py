"""The access log where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_serving.front_door.access_log import AccessLog
from bilateral_serving.front_door.call_record import CallRecord, Observers
from bilateral_serving.front_door.model_hashes import ModelHashes


def test_a_full_disk_costs_lines_and_no_calls(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(Path("/dev/full"), ModelHashes(None))
    observers = Observers([log])
    for _ in range(3):
        with observers.call(CallRecord("grpc", "m", "p"), {}) as record:
            record.status = "OK"
    log.close()
    assert log.dropped == 3
    assert caplog.text.count("No space left on device") == 1


def test_a_file_that_cannot_be_made_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        AccessLog(tmp_path / "nowhere" / "log", ModelHashes(None))
