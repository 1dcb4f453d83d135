"""Behaviour beside the error: alone as in a batch, strided, again, at once, at extremes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.builders.graph_faults import after
from tests.builders.subjects import Subject

from bilateral_export.errors import UserError
from bilateral_export.parity.checks import Limit, behaviour_checks, extreme_checks
from bilateral_export.parity.compare import Candidate, truth_of
from bilateral_export.parity.inputs.adversarial import POPULATION, box_of, search
from bilateral_export.parity.inputs.differentiable import DifferentiableGraph
from bilateral_export.parity.inputs.extremes import extreme_samples, token_extremes
from bilateral_export.parity.measure import item_errors
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array


class Faulty(OnnxRuntimeRunner):
    """A healthy runner until `answer` is replaced."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self.answer(dict(arrays))

    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return super().run(arrays)


class CrossTalk(Faulty):
    """Two requests at once get each other's answers."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.waiting: list[tuple[dict[str, Array], threading.Event, dict[str, Array]]] = []
        self.lock = threading.Lock()

    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        mine = OnnxRuntimeRunner.run(self, arrays)
        if threading.current_thread() is threading.main_thread():
            return mine
        with self.lock:
            previous = getattr(self, "previous", mine)
            self.previous = mine
        return previous


class Drifting(Faulty):
    """Each call moves the answer a little further: some state is kept."""

    calls = 0

    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        self.calls += 1
        logits = OnnxRuntimeRunner.run(self, arrays)["logits"]
        return {"logits": logits * np.float32(1 + 1e-3 * self.calls)}


class BatchDependent(Faulty):
    """Statistics over the batch leak into every item."""

    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        logits = OnnxRuntimeRunner.run(self, arrays)["logits"]
        return {"logits": logits - logits.mean(0, keepdims=True) * np.float32(1e-3)}


class BlindToStrides(Faulty):
    """Reads memory from the first element on, whatever the strides say."""

    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        image = arrays["image"]
        if not image.flags.c_contiguous and image.base is not None:
            raw = image.base.reshape(-1)[: image.size]
            arrays = {"image": np.ascontiguousarray(raw).reshape(image.shape)}
        return OnnxRuntimeRunner.run(self, arrays)


class HidesNaN(Faulty):
    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return {
            name: np.nan_to_num(array)
            for name, array in OnnxRuntimeRunner.run(self, arrays).items()
        }


class SpreadsNaN(Faulty):
    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        logits = OnnxRuntimeRunner.run(self, arrays)["logits"]
        return {"logits": logits + logits.sum() * 0}


class Saturates(Faulty):
    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return OnnxRuntimeRunner.run(self, {"image": np.clip(arrays["image"], -8, 8)})


class Refuses(Faulty):
    def answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        if not np.isfinite(arrays["image"]).all():
            raise UserError("image holds NaN or infinity", "Give finite pixels.")
        return OnnxRuntimeRunner.run(self, arrays)


BEHAVIOUR = {
    CrossTalk: {"concurrent calls"},
    Drifting: {"repeated calls"},
    BatchDependent: {"batch of items"},
    BlindToStrides: {"strided memory"},
}
EXTREMES = {
    HidesNaN: {"extreme: NaN", "extreme: infinity"},
    SpreadsNaN: {"extreme: NaN", "extreme: infinity"},
    Saturates: {"extreme: saturated", "extreme: negative"},
}


def _failures(subject: Subject, runner: OnnxRuntimeRunner) -> set[str]:
    candidate = Candidate(runner, "fp32")
    model = subject.checkpoint.build_model()
    samples = [*extreme_samples(model), *token_extremes(model)]
    with runner:
        limits = dict.fromkeys(subject.truth.reference, Limit(1e-5, 0.0))
        checks = behaviour_checks(candidate, subject.samples[2], limits)
        if samples:
            truth = truth_of(subject.checkpoint, candidate.reference_spec, samples)
            checks += extreme_checks(candidate, samples, truth, 4, limits)
    assert len(checks) == 5 + len(samples)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("family", ["digits", "sequence", "language"])
def test_a_healthy_runner_passes_every_check(subjects: dict[str, Subject], family: str) -> None:
    assert _failures(subjects[family], OnnxRuntimeRunner(subjects[family].onnx, threads=1)) == set()


@pytest.mark.parametrize("kind", [*BEHAVIOUR, *EXTREMES])
def test_a_faulty_runner_fails_the_check_that_is_for_it(
    subjects: dict[str, Subject], kind: type[Faulty]
) -> None:
    failed = _failures(subjects["digits"], kind(subjects["digits"].onnx, threads=1))
    assert failed >= (BEHAVIOUR | EXTREMES)[kind]
    if kind in EXTREMES:
        assert all(name.startswith("extreme") for name in failed)


def test_refusing_what_is_not_finite_is_as_good_as_propagating_it(
    subjects: dict[str, Subject],
) -> None:
    assert _failures(subjects["digits"], Refuses(subjects["digits"].onnx, threads=1)) == set()


@pytest.fixture
def rarely_wrong(subjects: dict[str, Subject], tmp_path: Path) -> onnx.ModelProto:
    """Activations are cut off where few inputs reach."""
    model = onnx.load(subjects["digits"].onnx)
    after("blocks.1.mlp.fc2/Add", "Clip", np.float32(-2.0), np.float32(2.0))(model)
    onnx.save(model, tmp_path / "rarely.onnx")
    return model


def test_gradients_find_a_fault_that_random_inputs_barely_meet(
    subjects: dict[str, Subject], rarely_wrong: onnx.ModelProto, tmp_path: Path
) -> None:
    """Five times further than the worst of as many random inputs, most of which show nothing."""
    subject, steps = subjects["digits"], 20
    model = subject.checkpoint.build_model()
    box = box_of(model, subject.checkpoint.card.preprocessing)
    draw = model.example(POPULATION * (steps + 1), np.random.default_rng(1))
    random = {"image": np.clip(draw["image"], *box["image"])}
    forward = DifferentiableGraph(rarely_wrong)
    with (
        TorchRunner(subject.checkpoint, torch.float64) as reference,
        TorchRunner(subject.checkpoint) as eager,
        OnnxRuntimeRunner(tmp_path / "rarely.onnx", threads=1) as runner,
    ):
        met = item_errors(runner.run(random)["logits"], reference.run(random)["logits"])
        found = search(model, runner, reference, steps, box=box, forward=forward)
        blind = search(model, runner, reference, steps, box=box)
        usual = search(model, eager, reference, steps, box=box, forward=eager.forward)
    assert np.median(met) < 1e-5
    assert found.error > 5 * met.max()
    assert found.error > 2 * blind.error > 0
    assert found.error > 1000 * usual.error
    assert usual.error >= usual.start
    assert found.climbed > 10
    low, high = box["image"]
    image = found.sample.arrays["image"]
    assert (image >= low).all()
    assert (image <= high).all()


class WithoutPast:
    """The language model read from the start: its tokens are all there is to search."""

    def __init__(self, subject: Subject) -> None:
        self._model = subject.checkpoint.build_model()

    def example(self, batch: int, generator: np.random.Generator) -> dict[str, Array]:
        return self._model.example(batch, generator, length=24, past=0)


def test_gradients_find_tokens_that_blind_exchanges_do_not(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """The same number of inputs is tried; without gradients none shows the fault."""
    subject, steps = subjects["language"], 12
    model = onnx.load(subject.onnx)
    after("blocks.1.mlp.fc2/Add", "Clip", np.float32(-3.0), np.float32(3.0))(model)
    onnx.save(model, tmp_path / "rarely.onnx")
    family = WithoutPast(subject)
    with (
        TorchRunner(subject.checkpoint, torch.float64) as reference,
        OnnxRuntimeRunner(tmp_path / "rarely.onnx", threads=1) as runner,
    ):
        found = search(family, runner, reference, steps, seed=1, forward=DifferentiableGraph(model))
        blind = search(family, runner, reference, steps, seed=1)
    assert blind.error < 1e-6
    assert found.error > 1e-4
    assert found.climbed > 0


def test_padding_is_neither_exchanged_nor_brought_in(subjects: dict[str, Subject]) -> None:
    subject = subjects["sequence"]
    model = subject.checkpoint.build_model()
    drawn = model.example(POPULATION, np.random.default_rng(0))["tokens"]
    with (
        TorchRunner(subject.checkpoint, torch.float64) as reference,
        TorchRunner(subject.checkpoint) as eager,
    ):
        found = search(model, eager, reference, 3, forward=eager.forward)
    tokens = found.sample.arrays["tokens"]
    assert sorted((tokens == 0).sum(1)) == sorted((drawn == 0).sum(1))
    assert (np.diff((tokens == 0).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("family", ["digits", "language"])
def test_a_graph_in_pytorch_is_the_graph_and_has_its_slope(
    subjects: dict[str, Subject], family: str
) -> None:
    """Finite differences of the FP64 model, which the file is, but for constants folded in fp32."""
    subject = subjects[family]
    forward = DifferentiableGraph(onnx.load(subject.onnx))
    tensors = {n: torch.from_numpy(a.copy()) for n, a in subject.samples[1].arrays.items()}
    truth = subject.truth.reference
    name, *_ = truth
    leaves = [t.requires_grad_() for t in tensors.values() if t.is_floating_point()]
    outputs = forward(tensors)
    for output, pieces in truth.items():
        np.testing.assert_allclose(outputs[output].detach(), pieces[1], atol=1e-5)
    (slope, *_) = torch.autograd.grad(outputs[name].sum(), leaves)
    step = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    with TorchRunner(subject.checkpoint, torch.float64) as reference, torch.no_grad():
        ends = []
        for sign in (1, -1):
            leaves[0].data += sign * step
            ends.append(reference.forward(tensors)[name].sum().item())
            leaves[0].data -= sign * step
    assert (slope * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2, rel=0.02)


def test_an_operator_without_a_derivative_is_named(subjects: dict[str, Subject]) -> None:
    model = onnx.load(subjects["digits"].onnx)
    model.graph.node[3].op_type = "Nonsense"
    with pytest.raises(UserError, match="no derivative of Nonsense"):
        DifferentiableGraph(model)
