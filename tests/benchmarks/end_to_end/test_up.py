"""What `up` adds to the repository; the command itself is in tests/cli/test_up.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders.exported import exported
from tests.builders.labelled import mistaken

from bilateral_benchmarks.end_to_end.up import added
from bilateral_export.errors import UserError


def test_a_model_is_not_added_twice_and_never_replaced(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = exported("digits_bilateral", tmp_path_factory)
    for _ in range(2):
        entry = added("digits", model, tmp_path / "models", None)
        assert [version.number for version in entry.versions] == [1]
    newer = mistaken(model, tmp_path / "newer.onnx", checkpoint_sha256="0" * 64)
    entry = added("digits", newer, tmp_path / "models", None)
    assert [version.number for version in entry.versions] == [1, 2]
    other = mistaken(model, tmp_path / "other.onnx", interpolation="bilinear")
    with pytest.raises(UserError, match="other preprocessing"):
        added("digits", other, tmp_path / "models", None)
