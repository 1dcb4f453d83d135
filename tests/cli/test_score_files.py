"""`bilateral score-files`: wrong calls are one line, and Ray is not needed before it is used."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Bilateral

WITHOUT = """
import sys
sys.modules["{package}"] = None  # as where it is not installed
from bilateral_cli.main import run
sys.argv = ["bilateral", "score-files", "model.onnx", "photos", "--output", "scores"]
run()
"""
PLAIN = """
import sys
import bilateral_cli.commands, bilateral_serving.client, bilateral_serving.repository
assert not {"ray", "pyarrow", "bilateral_serving.scoring"} & set(sys.modules)
"""


def test_wrong_calls_are_one_line_and_write_nothing(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra [ray]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    photo = digits_onnx.parent / "none.png"
    new = tmp_path / "scores"
    for arguments, message in (
        ((digits_onnx, photo, "-o", new), "does not exist"),
        ((digits_onnx, tmp_path / "empty", "-o", new), "has no item"),
        ((digits_onnx, tmp_path, "--where", "x > 1", "-o", new), "needs columns"),
        ((photo, tmp_path, "-o", new), "does not exist"),
        ((digits_onnx, tmp_path, "--runtime", "tpu", "-o", new), "unknown runtime"),
        ((digits_onnx, tmp_path, "-o", tmp_path / "used"), "holds other files"),
    ):
        outcome = bilateral("score-files", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.err
        assert outcome.err.strip().splitlines()[-1].startswith("Error:")
        assert not new.exists()


def test_an_address_without_a_cluster_is_one_line(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: the extra [ray]")
    (tmp_path / "photo.png").write_bytes(b"any")
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        to = ("--output", tmp_path / "scores", "--address", address)
        outcome = bilateral("score-files", digits_onnx, tmp_path / "photo.png", *to)
    assert outcome.code == 2
    assert f"no Ray cluster answers at {address}" in outcome.err


@pytest.mark.parametrize("package", ["pyarrow"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path) -> None:
    code = WITHOUT.format(package=package)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bilateral-serve[ray]" in done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_else_imports_ray() -> None:
    subprocess.run([sys.executable, "-c", PLAIN], check=True)
