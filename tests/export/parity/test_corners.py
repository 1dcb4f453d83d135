"""Default inputs reach the ends of every dynamic dimension: what is baked in there fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.builders.graph_faults import Spoiled, change_weight
from tests.builders.subjects import Subject

from bilateral_export.parity.compare import Candidate
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.matrix import ParityJob, run_matrix
from bilateral_export.parity.stages import Stage
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.tensors import Array


def _baked(node: str, size: int) -> Callable[[onnx.ModelProto], None]:
    """A size that a Shape took from an input is a constant."""

    def apply(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([size]), "baked"))
        for user in model.graph.node:
            for position, name in enumerate(user.input):
                if name == node:
                    user.input[position] = "baked"

    return apply


def _wrong_from(row: int) -> Callable[[Array], Array]:
    def change(table: Array) -> Array:
        table[row:] = table[row - 1]
        return table

    return change


@dataclass(frozen=True)
class Baked:
    """A fault that a family's usual inputs do not meet."""

    model: str
    apply: Callable[[onnx.ModelProto], None]
    usual: dict[str, tuple[int, ...]]


BAKED = {
    "a past": Baked("language", _baked("model/Shape_3", 32), {"past": (32,), "length": (64,)}),
    "positions from row 96 on": Baked(
        "language",
        change_weight("model/Gather", 0, _wrong_from(96)),
        {"past": (32,), "length": (64,)},
    ),
    "sinusoids from row 96 on": Baked(
        "language",
        change_weight("model/Gather_2", 0, _wrong_from(96)),
        {"past": (32,), "length": (64,)},
    ),
    "a length": Baked("sequence", _baked("model/Shape_2", 128), {"length": (128,)}),
}


def _passes(subject: Subject, runner: Runner, samples: list[Sample]) -> bool:
    stage = Stage(Candidate(runner, "fp32", stage="judged"))
    return run_matrix(ParityJob(subject.checkpoint, [stage], samples, bisect=False)).passed


@pytest.mark.parametrize("name", BAKED)
def test_what_is_baked_in_fails_by_default(
    subjects: dict[str, Subject], tmp_path: Path, name: str
) -> None:
    fault = BAKED[name]
    subject = subjects[fault.model]
    model = onnx.load(subject.onnx)
    fault.apply(model)
    onnx.save(model, tmp_path / "baked.onnx")
    described = subject.checkpoint.build_model()
    usual = random_samples(described, (1, 2, 7), fault.usual, items=10)
    runner = OnnxRuntimeRunner(tmp_path / "baked.onnx", threads=1)
    assert _passes(subject, runner, usual)
    assert not _passes(subject, runner, random_samples(described))


def _wrong_from_the_eighth(answer: dict[str, Array]) -> dict[str, Array]:
    """Items beyond a batch that was tested get the first one's answer."""
    logits = answer["logits"].copy()
    logits[7:] = logits[0]
    return {"logits": logits}


def _wrong_from_the_ninth(answer: dict[str, Array]) -> dict[str, Array]:
    logits = answer["logits"].copy()
    logits[8:] = logits[0]
    return {"logits": logits}


@pytest.mark.parametrize("spoil", [_wrong_from_the_eighth, _wrong_from_the_ninth])
def test_the_served_batch_and_one_more_are_met_by_default(
    subjects: dict[str, Subject], spoil: Callable[[dict[str, Array]], dict[str, Array]]
) -> None:
    subject = subjects["digits"]
    described = subject.checkpoint.build_model()
    runner = Spoiled(OnnxRuntimeRunner(subject.onnx, threads=1), after=spoil)
    assert _passes(subject, runner, random_samples(described, (1, 2, 7)))
    assert not _passes(subject, runner, random_samples(described))


@pytest.mark.parametrize("family", ["language", "sequence"])
def test_a_healthy_model_passes_at_the_ends(subjects: dict[str, Subject], family: str) -> None:
    subject = subjects[family]
    described = subject.checkpoint.build_model()
    runner = OnnxRuntimeRunner(subject.onnx, threads=1)
    for seed in range(2):
        assert _passes(subject, runner, random_samples(described, seed=seed))
