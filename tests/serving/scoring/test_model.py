"""What a model's file says decides how it is run, and by how many workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import labelled, tiny_models

pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra [ray]")

from dataclasses import replace

from bilateral_export.errors import UserError
from bilateral_serving.scoring.model import load_model
from bilateral_serving.scoring.size import Resources, Wanted, batch_of, choose_size

GIB = 1 << 30
REPORT = Path(__file__).parents[2] / "older_files" / "parity.json"


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return tiny_models.quadrants(tmp_path / "model.onnx")


def test_models_that_give_no_row_are_refused(tmp_path: Path) -> None:
    for file, message in (
        (tiny_models.words(tmp_path / "words.onnx"), "neither classifies"),
        (labelled.brightest_channel(tmp_path / "segmenter.onnx"), "neither classifies"),
        (tiny_models.sum_and_product(tmp_path / "sum.onnx"), "does not say how"),
        (tiny_models.quadrants(tmp_path / "bare.onnx", preprocessing=None), "without prepr"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(file)
    with pytest.raises(UserError, match="unknown runtime 'tpu'"):
        load_model(tiny_models.quadrants(tmp_path / "model.onnx"), "tpu")


def test_the_verdict_of_parity_is_of_the_same_file(onnx: Path) -> None:
    assert load_model(onnx).parity == "not judged"
    with pytest.raises(UserError, match="judges no file that it names"):
        load_model(onnx, parity=REPORT)


def test_a_worker_for_each_core_unless_memory_is_short(onnx: Path) -> None:
    model = load_model(onnx)
    cores = Resources(cpus=16, gpus=0, memory_bytes=32 * GIB)
    plenty = choose_size(model, Wanted(), cores, GIB // 2)
    assert (plenty.workers, plenty.threads, plenty.readers) == (16, 1, 0)
    short = choose_size(model, Wanted(), cores, 7 * GIB)
    assert (short.workers, short.threads, short.readers) == (4, 4, 4)
    assert short.workers * short.memory_bytes <= cores.memory_bytes
    wanted = choose_size(model, Wanted(workers=3, threads=2, batch=5), cores, GIB)
    assert (wanted.workers, wanted.threads, wanted.batch) == (3, 2, 5)
    huge = choose_size(model, Wanted(), cores, 100 * GIB)
    assert (huge.workers, huge.memory_bytes) == (1, 32 * GIB)  # Ray would wait for more for ever


def test_a_worker_for_each_gpu(onnx: Path) -> None:
    model = replace(load_model(onnx), runtime="onnxruntime CUDA")
    size = choose_size(model, Wanted(), Resources(32, 4, 128 * GIB), 4 * GIB)
    assert (size.workers, size.gpus, size.cpus, size.readers) == (4, 1, 8, 8)
    assert size.batch == 64
    with pytest.raises(UserError, match="Ray sees none"):
        choose_size(model, Wanted(), Resources(32, 0, 128 * GIB), GIB)


def test_the_batch_is_what_the_file_takes(tmp_path: Path, onnx: Path) -> None:
    assert batch_of(load_model(onnx), Wanted()) == 16
    fixed = load_model(tiny_models.quadrants(tmp_path / "fixed.onnx", batch=4))
    assert batch_of(fixed, Wanted()) == 4
    with pytest.raises(UserError, match="at most 4"):
        batch_of(fixed, Wanted(batch=5))
