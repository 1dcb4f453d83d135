"""`bilateral explain`: an image and a model in, a directory with a page out."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bilateral_cli.commands import app
from bilateral_export.errors import UserError

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"
IMAGE = str(CHECKPOINTS / "digits" / "3-0.png")
MODEL = str(CHECKPOINTS / "digits_bilateral.safetensors")


def explain(*arguments: str) -> str:
    return CliRunner().invoke(app, ["explain", *arguments], catch_exceptions=False).stdout


def test_a_checkpoint_and_its_exported_file_show_the_same(tmp_path: Path) -> None:
    onnx = tmp_path / "digits.onnx"
    export = ["export", MODEL, str(onnx), "--explain"]
    assert CliRunner().invoke(app, export).exit_code == 0
    assert (tmp_path / "digits.explain.onnx").is_file()
    for name, model in (("torch", MODEL), ("onnx", str(tmp_path / "digits.explain.onnx"))):
        out = tmp_path / name
        assert explain(IMAGE, model, "--out", str(out)).strip() == str(out / "index.html")
    pages = [(tmp_path / name / "index.html").read_text() for name in ("torch", "onnx")]
    assert "PyTorch from digits_bilateral.safetensors" in pages[0]
    assert "ONNX Runtime from digits.explain.onnx (fp32)" in pages[1]
    for page in pages:
        assert page.index("<td>3</td>") < page.index("<td>5</td>")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--patch", "here"], "'here' is not a patch. Give its row and column"),
        (["--patch", "4,4"], "there is no patch 4,4"),
        (["--layer", "9"], "there is no layer 9. Layers go from 0 to 3"),
    ],
)
def test_a_place_that_is_not_there_is_refused(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        explain(IMAGE, MODEL, "--out", str(tmp_path / "out"), *arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_says_of_a_checkpoint_what_it_is_is_no_option_of_an_exported_file(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="an exported file, which says itself what it is"):
        explain(IMAGE, "digits.onnx", "--model", "digits_bilateral", "--out", str(tmp_path / "out"))


def test_a_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        explain(IMAGE, MODEL, "--out", str(tmp_path))


def test_what_has_no_heat_maps_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = str(CHECKPOINTS / "listops_bilateral.safetensors")
    export = ["export", model, str(tmp_path / "listops.onnx"), "--explain"]
    with pytest.raises(UserError, match="not an image classifier"):
        CliRunner().invoke(app, export, catch_exceptions=False)
    assert not list(tmp_path.iterdir())
