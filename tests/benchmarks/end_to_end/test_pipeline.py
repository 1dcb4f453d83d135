"""`bilateral bench pipeline`: a model goes all the way, the table says so, and is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bilateral_benchmarks.end_to_end import study
from bilateral_benchmarks.end_to_end.report import Pipeline
from bilateral_benchmarks.end_to_end.study import NAMES, run_pipeline
from bilateral_export.errors import UserError
from bilateral_export.models.registry import MODELS

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
NAME = "digits_bilateral"


def kill_the_server_once() -> Callable[[str], None]:
    """For `on_step`: the first server that a run starts dies by SIGSEGV while it loads."""
    killed: list[int] = []
    others = set(descendants(os.getpid()))  # a server of another test, for one

    def on_step(what: str) -> None:
        end = time.monotonic() + 60
        while what == f"{NAME}: serve" and not killed and time.monotonic() < end:
            for pid in set(descendants(os.getpid())) - others:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"tritonserver" in command and b"--id=" in command:
                    os.kill(pid, signal.SIGSEGV)
                    killed.append(pid)
                    return
            time.sleep(0.002)

    return on_step


def descendants(pid: int) -> Iterator[int]:
    """Processes below a process."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            for child in map(int, children.read_text().split()):
                yield child
                yield from descendants(child)


@pytest.mark.slow
def test_a_model_goes_from_its_checkpoint_to_answers_over_grpc_though_a_server_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    found = run_pipeline(tmp_path, CHECKPOINTS, only=[NAME], on_step=kill_the_server_once())
    assert found.failures == {}
    assert list(scratch.iterdir()) == []
    (report,) = found.journeys
    assert found.passed, report.parity.failures
    assert report.first_failure is not None
    # Its own end is seen first, or that of its model's process: it takes seconds to die.
    assert report.first_failure.startswith("tritonserver ")
    assert "while loading: " in report.first_failure
    assert (report.name, report.weights, report.attention_nodes) == (NAME, "trained", 4)
    assert len({row.stage for row in report.parity.rows}) == 2
    assert report.plan.mb > 0.1
    (answer,) = report.answers
    assert answer.agreement == 1.0
    assert answer.difference is not None
    assert answer.difference < 1e-5
    page = (tmp_path / "pipeline.md").read_text()
    assert f"| {NAME} | trained | 114,830 | 114,778 |" in page
    assert "| pass at the second try; the first: tritonserver " in page
    assert Pipeline.model_validate_json((tmp_path / "pipeline.json").read_bytes()) == found

    # What passed is not run again, and a model that does not arrive costs the others nothing.
    asked: list[str] = []

    def fail(name: str, *_: object) -> str:
        asked.append(name)
        return "no room"

    monkeypatch.setattr(study, "_run_once", fail)
    again = run_pipeline(tmp_path, CHECKPOINTS, resume=True)
    assert asked == [name for name in NAMES if name != NAME for _ in range(2)]
    assert again.journeys == found.journeys
    assert set(again.failures.values()) == {"twice: no room"}
    assert not again.passed
    assert "| FAILED twice: no room |" in (tmp_path / "pipeline.md").read_text()


def test_a_run_that_takes_too_long_is_ended_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LIMIT_S", 0.3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = run_pipeline(tmp_path / "out", CHECKPOINTS, only=[NAME])
    assert "took longer than 0.3 s" in found.failures[NAME]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_committed_results_are_resumed(tmp_path: Path) -> None:
    committed = CHECKPOINTS.parents[1] / "benchmarks" / "results" / "pipeline.json"
    shutil.copy(committed, tmp_path / "pipeline.json")
    found = run_pipeline(tmp_path, CHECKPOINTS, resume=True)
    assert [report.name for report in found.journeys] == list(NAMES)
    assert found.passed


def test_every_family_is_in_it() -> None:
    assert {MODELS[name].family for name in NAMES} == {one.family for one in MODELS.values()}


def test_what_cannot_be_run_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model name 'nobody'"):
        run_pipeline(tmp_path, CHECKPOINTS, only=["nobody"])
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(UserError, match="not what this command writes"):
        run_pipeline(tmp_path, CHECKPOINTS, resume=True)
