"""`bilateral bench pipeline`: a model goes all the way, the table says so, and is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_benchmarks.pipeline import run
from bilateral_benchmarks.pipeline.run import NAMES, Pipeline, run_pipeline
from bilateral_export.errors import UserError
from bilateral_export.models.zoo import MODELS

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"
NAME = "digits_bilateral"


def test_a_model_goes_from_its_checkpoint_to_answers_over_grpc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_pipeline(tmp_path, CHECKPOINTS, only=[NAME])
    assert found.failures == {}
    (journey,) = found.journeys
    assert found.passed, journey.parity.failures
    assert (journey.name, journey.weights, journey.attention_nodes) == (NAME, "trained", 4)
    assert len({row.stage for row in journey.parity.rows}) == 2
    assert journey.plan.mb > 0.1
    (answer,) = journey.answers
    assert answer.agreement == 1.0
    assert answer.difference is not None
    assert answer.difference < 1e-5
    assert f"| {NAME} | trained | 114,830 | 114,778 |" in (tmp_path / "pipeline.md").read_text()
    assert Pipeline.model_validate_json((tmp_path / "pipeline.json").read_bytes()) == found

    # What passed is not run again, and a model that does not arrive costs the others nothing.
    asked: list[str] = []

    def fail(name: str, *_: object) -> str:
        asked.append(name)
        return "no room"

    monkeypatch.setattr(run, "_travel", fail)
    again = run_pipeline(tmp_path, CHECKPOINTS, resume=True)
    assert asked == [name for name in NAMES if name != NAME]
    assert again.journeys == found.journeys
    assert set(again.failures.values()) == {"no room"}
    assert not again.passed


def test_every_family_is_in_it() -> None:
    assert {MODELS[name].family for name in NAMES} == {one.family for one in MODELS.values()}


def test_what_cannot_be_run_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model name 'nobody'"):
        run_pipeline(tmp_path, CHECKPOINTS, only=["nobody"])
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(UserError, match="not what this command writes"):
        run_pipeline(tmp_path, CHECKPOINTS, resume=True)
