"""`bilateral export` at another resolution and with other class names, and parity of the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bilateral_cli.commands import app
from bilateral_export.artifact import read_onnx
from bilateral_export.errors import UserError

DIGITS = Path(__file__).parents[2] / "export" / "checkpoints" / "digits_bilateral.safetensors"


def test_a_moved_and_renamed_model_is_in_parity_with_its_checkpoint(tmp_path: Path) -> None:
    onnx, names = tmp_path / "digits.onnx", tmp_path / "names.txt"
    names.write_text("\n".join("abcdefghij"))
    arguments = ["export", str(DIGITS), str(onnx), "--image-size", "16", "--labels", str(names)]
    assert CliRunner().invoke(app, arguments).exit_code == 0

    metadata = read_onnx(onnx).metadata
    assert metadata is not None
    assert metadata.labels == tuple("abcdefghij")
    assert metadata.preprocessing is not None
    assert metadata.preprocessing.height == 16
    result = CliRunner().invoke(app, ["parity", str(DIGITS), str(onnx), "--json", "--items", "4"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)


def test_a_size_that_patches_do_not_tile_leaves_no_file(tmp_path: Path) -> None:
    onnx = tmp_path / "digits.onnx"
    with pytest.raises(UserError, match="image size 15 is not a multiple of the patch size 2"):
        CliRunner().invoke(
            app, ["export", str(DIGITS), str(onnx), "--image-size", "15"], catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []
