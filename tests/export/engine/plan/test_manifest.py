from __future__ import annotations

import json
from pathlib import Path

import pytest

from bilateral_export.engine.plan.manifest import (
    AttentionRecord,
    FileRecord,
    PlanManifest,
    describe_file,
    manifest_path,
    verify_plan,
)
from bilateral_export.errors import UserError


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Some bytes with a manifest that fits them."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(bytes(range(256)) * 64)
    manifest = PlanManifest(
        plan=describe_file(plan),
        onnx=FileRecord(name="model.onnx", bytes=1, sha256="0" * 64),
        library="tensorrt_rtx",
        version="1.7.1.116",
        targets=("sm_86",),
        precision="fp16",
        types={"fp16": 1},
        tf32=False,
        attention=AttentionRecord(nodes=0, path="none"),
        inputs=(),
        outputs=(),
        profiles=(),
        max_batch=0,
        built="2025-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    manifest_path(plan).write_text(manifest.model_dump_json())
    return plan


def test_a_plan_with_its_manifest_is_accepted(plan: Path) -> None:
    assert verify_plan(plan).plan.name == "model.plan"


def test_the_manifest_lies_beside_the_plan(plan: Path) -> None:
    assert manifest_path(plan) == plan.parent / "model.plan.json"


@pytest.mark.parametrize("position", [0, 100, 256 * 64 - 1])
def test_one_flipped_bit_is_noticed(plan: Path, position: int) -> None:
    data = bytearray(plan.read_bytes())
    data[position] ^= 1
    plan.write_bytes(data)
    with pytest.raises(UserError, match="SHA-256"):
        verify_plan(plan)


def test_a_truncated_plan_is_noticed(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(UserError, match="16383 bytes"):
        verify_plan(plan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"precision": None}, "precision"),
        ({"surprise": 1}, "surprise"),
        ({"plan": {"name": "x", "bytes": 1, "sha256": "short"}}, "plan.sha256"),
    ],
)
def test_a_manifest_of_another_form_is_refused(plan: Path, change: dict, reason: str) -> None:
    path = manifest_path(plan)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=reason):
        verify_plan(plan)


def test_a_manifest_that_is_no_json_or_missing_is_refused(plan: Path) -> None:
    manifest_path(plan).write_text("{")
    with pytest.raises(UserError, match="manifest"):
        verify_plan(plan)
    manifest_path(plan).unlink()
    with pytest.raises(UserError, match="does not exist"):
        verify_plan(plan)
