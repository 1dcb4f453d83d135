"""The operator as a custom op of ONNX Runtime: the same answers without the body."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders.exported import exported
from tests.builders.graph_faults import GRAPH_FAULTS

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.metadata import Precision
from bilateral_export.parity.bisection.search import bisect
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.parity.reference import ReferenceSpec
from bilateral_export.runners.custom_op import _TOKENS, CustomOpRunner, _attend
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.registry import RUNTIMES

pytest.importorskip("onnxruntime_extensions")
CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


def _verdicts(
    name: str, path: Path, precision: Precision, **lengths: tuple[int, ...]
) -> list[bool]:
    """Whether the body passes, and whether the custom op does."""
    checkpoint = load_checkpoint(CHECKPOINTS / f"{name}.safetensors")
    samples = random_samples(checkpoint.build_model(), lengths=lengths)
    runners = OnnxRuntimeRunner(path, threads=1), CustomOpRunner(path, threads=1)
    reports = [compare(checkpoint, [Candidate(r, precision)], samples) for r in runners]
    return [report.passed for report in reports]


@pytest.mark.parametrize(
    ("name", "precision", "lengths"),
    [
        ("digits_bilateral", "fp32", {}),
        ("digits_bilateral", "fp16", {}),
        ("listops_bilateral", "fp32", {"length": (24,)}),  # with a key bias
        pytest.param(  # causal, more keys
            "pydoc_bilateral", "fp32", {"length": (8,), "past": (4,)}, marks=pytest.mark.slow
        ),
    ],
)
def test_every_configuration_passes_as_its_body_does(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    precision: Precision,
    lengths: dict[str, tuple[int, ...]],
) -> None:
    options = {} if precision == "fp32" else {"precision": precision}
    path = exported(name, tmp_path_factory, **options)
    assert _verdicts(name, path, precision, **lengths) == [True, True]


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


@pytest.mark.parametrize(
    ("fault", "verdicts"),
    [("key norm with the wrong sign", [False, True]), ("scale one percent off", [False, False])],
)
def test_it_tells_a_wrong_body_from_a_wrong_node(
    digits_file: Path, tmp_path: Path, fault: str, verdicts: list[bool]
) -> None:
    model = onnx.load(digits_file)
    GRAPH_FAULTS[fault].apply(model)
    onnx.save(model, tmp_path / "faulty.onnx")
    assert _verdicts("digits_bilateral", tmp_path / "faulty.onnx", "fp32") == verdicts


def test_bisection_walks_it(digits_file: Path) -> None:
    fault = GRAPH_FAULTS["scale one percent off"]
    checkpoint = load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors")
    model = onnx.load(digits_file)
    fault.apply(model)
    arrays = checkpoint.build_model().example(2, np.random.default_rng(0))
    oracles = ReferenceSpec("fp32", "fp32").oracles(checkpoint)
    walk = bisect(model, lambda path: CustomOpRunner(path, threads=1), arrays, *oracles, "fp32")
    assert walk.culprit is not None
    assert walk.culprit.at.node == fault.node


def test_bfloat16_and_a_missing_package_are_refused(
    digits_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = exported("digits_bilateral", tmp_path_factory, precision="bf16")
    with pytest.raises(UserError, match="takes float32 and float16"), CustomOpRunner(path):
        pass
    absent = replace(RUNTIMES["onnxruntime custom op"], package="a_package_that_nobody_has")
    monkeypatch.setitem(RUNTIMES, absent.name, absent)
    with pytest.raises(UserError, match="not installed"), CustomOpRunner(digits_file):
        pass


def test_operands_that_do_not_fit_do_not_end_the_process() -> None:
    """An exception in the package's C++ code would; NaN fails parity, and nothing else."""
    operands = [np.zeros((1, 2, size, 4), np.float32) for size in (3, 5, 6)]
    made = _attend(
        *operands,
        **{
            "scale": 1.0,
            "range_kernel": "dot",
            "spatial_kernel": "none",
            "query_prefix": 0,
            "key_prefix": 0,
            "causal": 0,
            _TOKENS: 1,
        },
    )
    assert made.shape == (1, 2, 3, 4)
    assert np.isnan(made).all()
