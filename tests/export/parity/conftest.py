"""One small trained model per family, exported, with its FP64 and eager answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.builders.exported import exported
from tests.builders.subjects import Subject

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.parity.compare import truth_of
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.parity.reference import ReferenceSpec

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
FAMILIES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "digits": ("digits_bilateral", {}),
    "sequence": ("listops_bilateral", {"length": (24,)}),
    "language": ("pydoc_bilateral", {"length": (8,), "past": (4,)}),
}


class Made(dict[str, Subject]):
    """Subjects by family, each made when it is first asked for."""

    def __init__(self, make: Callable[[str], Subject]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, family: str) -> Subject:
        self[family] = self.make(family)
        return self[family]


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Checkpoint]:
    return {
        family: load_checkpoint(CHECKPOINTS / f"{name}.safetensors")
        for family, (name, _) in FAMILIES.items()
    }


@pytest.fixture(scope="session")
def colours(digits: Checkpoint) -> Checkpoint:
    """The digits' model for three channels, with fresh patch embeddings."""
    card = digits.card.model_copy(
        update={"model": digits.card.model.model_copy(update={"channels": 3})}
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(digits.card.model.dim, 3, 2, 2, generator=generator) / 4
    state = digits.state | {"patch_embed.proj.weight": weight}
    return Checkpoint(digits.path, digits.sha256, card, state)


@pytest.fixture(scope="session")
def subjects(
    checkpoints: dict[str, Checkpoint],
    deeper_digits: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Subject]:
    every = checkpoints | {"deeper digits": deeper_digits}

    def make(family: str) -> Subject:
        checkpoint, lengths = every[family], FAMILIES.get(family, ("", {}))[1]
        if family in FAMILIES:
            path = exported(FAMILIES[family][0], tmp_path_factory)
        else:
            path = tmp_path_factory.mktemp("subjects") / f"{family}.onnx"
            export_onnx(checkpoint, path)
        samples = random_samples(checkpoint.build_model(), lengths=lengths)
        spec = ReferenceSpec("fp32", "fp32")
        reference, eager = spec.oracles(checkpoint)
        truth = truth_of(checkpoint, spec, samples)
        return Subject(checkpoint, path, lengths, samples, truth, reference, eager)

    return Made(make)
