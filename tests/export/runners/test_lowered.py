"""The lowered form that is kept beside a file, and when it is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders.exported import exported

from bilateral_export.files import sha256
from bilateral_export.lowering.kept import DIRECTORY, read_kept
from bilateral_export.runners import lowered
from bilateral_export.runners.lowered import LoweredRunner

RUNTIME = "onnxruntime-cpu"
IMAGES = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def digits(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(exported("digits_bilateral", tmp_path_factory).read_bytes())
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are lowered from now on."""
    found: list[Path] = []

    def count(model: Path, *arguments: object) -> object:
        found.append(model)
        return real(model, *arguments)  # type: ignore[arg-type]

    real = lowered.lower
    monkeypatch.setattr(lowered, "lower", count)
    return found


def logits(path: Path) -> np.ndarray:
    with LoweredRunner(path) as runner:
        assert runner.lowering is not None
        assert runner.lowering.source_sha256 == sha256(path)
        return runner.run({runner.inputs[0].name: IMAGES})["logits"]


def test_a_file_is_lowered_once(digits: Path, counted: list[Path]) -> None:
    first = logits(digits)
    np.testing.assert_array_equal(logits(digits), first)
    assert counted == [digits]
    kept = read_kept(digits, RUNTIME)
    assert kept is not None
    assert {path.name for path in (digits.parent / DIRECTORY).iterdir()} == {
        kept.path.name,
        kept.path.with_suffix(".json").name,
    }


@pytest.mark.parametrize("what", ["the form", "the record", "the source", "the code"])
def test_what_was_changed_is_lowered_anew(
    what: str, digits: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = logits(digits)
    kept = read_kept(digits, RUNTIME)
    assert kept is not None
    if what == "the form":
        content = bytearray(kept.path.read_bytes())
        content[len(content) // 2] ^= 1
        kept.path.write_bytes(content)
    elif what == "the record":
        kept.path.with_suffix(".json").write_text("{")
    elif what == "the source":
        model = onnx.load(digits)
        (bias,) = [t for t in model.graph.initializer if t.name == "head.bias"]
        bias.raw_data = (onnx.numpy_helper.to_array(bias) + 1).tobytes()
        onnx.save(model, digits)
    else:
        monkeypatch.setattr("bilateral_export.lowering.kept._code", lambda: "newer")
    np.testing.assert_allclose(logits(digits), first + (what == "the source"), atol=1e-5)
    assert counted == [digits, digits]
    logits(digits)
    assert len(counted) == 2


def test_weights_in_another_file_are_part_of_the_source(digits: Path, counted: list[Path]) -> None:
    def save(added: float) -> None:
        model = onnx.load(content)
        (bias,) = [t for t in model.graph.initializer if t.name == "head.bias"]
        bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(added)).tobytes()
        (digits.parent / "weights").unlink(missing_ok=True)
        onnx.save(model, digits, save_as_external_data=True, location="weights", size_threshold=0)

    content = digits.with_name("content.onnx")
    digits.rename(content)
    save(0)
    graph, first = digits.read_bytes(), logits(digits)
    np.testing.assert_array_equal(logits(digits), first)
    save(1)
    assert digits.read_bytes() == graph
    np.testing.assert_allclose(logits(digits), first + 1, atol=1e-5)
    assert counted == [digits, digits]


def test_what_was_written_while_it_was_lowered_is_not_kept(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(model: Path, *arguments: object) -> object:
        done = real(model, *arguments)  # type: ignore[arg-type]
        loaded = onnx.load(model)
        loaded.doc_string = "another"
        onnx.save(loaded, model)
        return done

    real = lowered.lower
    monkeypatch.setattr(lowered, "lower", replaced)
    with LoweredRunner(digits):
        assert read_kept(digits, RUNTIME) is None
    assert not (digits.parent / DIRECTORY).exists()


def test_where_nothing_can_be_kept_it_runs_all_the_same(digits: Path, counted: list[Path]) -> None:
    (digits.parent / DIRECTORY).write_text("in the way")
    np.testing.assert_array_equal(logits(digits), logits(digits))
    assert len(counted) == 2
    assert {path.name for path in digits.parent.iterdir()} == {"digits.onnx", DIRECTORY}


def test_a_name_too_long_to_be_kept_runs_all_the_same(digits: Path, counted: list[Path]) -> None:
    path = digits.rename(digits.with_name("d" * 240 + ".onnx"))
    np.testing.assert_array_equal(logits(path), logits(path))
    assert len(counted) == 2


def test_a_file_that_no_pass_foresaw_runs_as_it_is(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("spatial_kernel")

    monkeypatch.setattr(lowered, "lower", fails)
    with LoweredRunner(digits) as runner, LoweredRunner(digits, lower=False) as plain:
        assert "spatial_kernel" in runner.refused
        feed = {runner.inputs[0].name: IMAGES}
        np.testing.assert_array_equal(runner.run(feed)["logits"], plain.run(feed)["logits"])


def test_many_at_once_leave_one_good_form(digits: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(logits, [digits] * 4)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert read_kept(digits, RUNTIME) is not None
    assert len(list((digits.parent / DIRECTORY).iterdir())) == 2


def test_opening_a_kept_form_needs_no_torch(digits: Path) -> None:
    logits(digits)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from bilateral_export.runners.lowered import LoweredRunner\n"
        "with LoweredRunner(Path(sys.argv[1])): assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code, str(digits)], check=True, env=environment)
