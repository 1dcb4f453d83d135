"""Healthy models pass, however few numbers an output has: the study of false alarms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.parity.matrix import ParityJob, run_matrix
from bilateral_export.parity.stages import stages

MODELS, SEEDS = 12, 5
# Eager PyTorch in other precisions is what budgets are measured by: it cannot fail.
JUDGED = ("torch.export", "onnxruntime", "openvino")


def _classifier(classes: int, seed: int, path: Path) -> Checkpoint:
    config = ImageClassifierConfig(
        image_size=16,
        patch_size=4,
        channels=1,
        dim=32,
        depth=2,
        heads=2,
        num_classes=classes,
        attention=AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
    )
    torch.manual_seed(seed)
    card = CheckpointCard(name=f"classes{classes}", model=config)
    return Checkpoint(path, "0" * 64, card, build(config).state_dict())


def failures(classes: int, models: range, seeds: range, scratch: Path) -> list[str]:
    """What fails of healthy models: the model, the seed of its inputs, and the reason."""
    found = []
    for model in models:
        checkpoint = _classifier(classes, model, scratch)
        path = scratch / f"{model}.onnx"
        export_onnx(checkpoint, path)
        made, _ = stages(checkpoint, path, "fp32", scratch, compiled=False)
        made = [stage for stage in made if stage.candidate.name.startswith(JUDGED)]
        described = checkpoint.build_model()
        for seed in seeds:
            samples = random_samples(described, seed=seed)
            job = ParityJob(
                checkpoint, made, samples, read_metadata(path), path, layers=seed == seeds[0]
            )
            report = run_matrix(job)
            bad = [f"{row.stage}: {row.reason}" for row in report.rows if not row.passed]
            bad += [f"{c.stage}: {c.name}: {c.detail}" for c in report.checks if not c.passed]
            found += [f"model {model}, seed {seed}: {text}" for text in bad]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_sixty_healthy_models_pass(classes: int, tmp_path: Path) -> None:
    assert failures(classes, range(MODELS), range(SEEDS), tmp_path) == []


def test_a_healthy_model_of_one_logit_passes(tmp_path: Path) -> None:
    assert failures(1, range(1), range(2), tmp_path) == []
