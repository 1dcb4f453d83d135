"""The sequence classifier: padding changes nothing, pairs are pairs, and every task exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.registry import MODELS, build, named
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.models.sequence import SequenceClassifier, SequenceClassifierConfig
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner

SMALL = SequenceClassifierConfig(vocabulary=12, length=24, dim=16, hidden=24, num_classes=3)
GAUSSIAN = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian", bandwidth=(2, 8))
KERNELS = [
    AttentionConfig(),
    GAUSSIAN,
    AttentionConfig(spatial_kernel="dot", position_features=4),
]
TASKS = {"image": 1024, "text": 4096, "listops": 2048, "retrieval": 4096, "pathfinder": 1024}


def model_of(config: SequenceClassifierConfig) -> SequenceClassifier:
    torch.manual_seed(0)
    model = SequenceClassifier(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("attention", KERNELS)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=5))
@settings(max_examples=8, deadline=None)
def test_a_padded_batch_equals_the_single_runs(
    attention: AttentionConfig, pooling: str, lengths: list[int]
) -> None:
    changes = {"attention": attention, "pooling": pooling}
    model = model_of(SMALL.model_copy(update=changes)).double()
    documents = [torch.randint(1, 12, (1, length)) for length in lengths]
    padded = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, document in zip(padded, documents, strict=True):
        row[: document.shape[1]] = document[0]
    with torch.no_grad():
        singles = torch.cat([model(document) for document in documents])
        torch.testing.assert_close(model(padded), singles)


def test_a_pair_is_read_by_one_encoder_and_compared() -> None:
    model = model_of(SMALL.model_copy(update={"documents": 2}))
    pair = torch.randint(1, 12, (1, 2, 10))
    with torch.no_grad():
        torch.testing.assert_close(model.encode(pair[:, 0]), model.encode(pair.flatten(0, 1))[:1])
        assert not torch.allclose(model(pair), model(pair.flip(1)))


def test_order_matters_even_without_a_spatial_kernel() -> None:
    model = model_of(SMALL)
    tokens = torch.randint(1, 12, (1, 10))
    with torch.no_grad():
        assert not torch.allclose(model(tokens), model(tokens.flip(1)))


@pytest.mark.parametrize(
    "config",
    [
        SMALL.model_copy(update={"attention": GAUSSIAN, "residual": ResidualConfig(learned=True)}),
        SMALL.model_copy(update={"attention": KERNELS[2], "pooling": "class"}),
        SMALL.model_copy(update={"attention": GAUSSIAN, "documents": 2}),
        SMALL.model_copy(update={"attention": GAUSSIAN, "grid": (4, 6)}),
    ],
    ids=["bytes", "class token", "pair", "pixels"],
)
def test_the_exported_graph_agrees_at_every_length(
    config: SequenceClassifierConfig, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    card = CheckpointCard(name="small", model=config)
    save_checkpoint(path, model_of(config).state_dict(), card)
    checkpoint = load_checkpoint(path)
    exported = export_onnx(checkpoint, tmp_path / "model.onnx")
    assert exported.attention_nodes == config.depth
    with OnnxRuntimeRunner(exported.path) as runner, TorchRunner(checkpoint) as torch_runner:
        for batch, length in ((1, 24), (3, 7), (2, 1)):
            arrays = model_of(config).example(batch, np.random.default_rng(0), length=length)
            got, wanted = runner.run(arrays)["logits"], torch_runner.run(arrays)["logits"]
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=() if task == "image" else pytest.mark.slow) for task in TASKS],
)
def test_every_task_of_the_benchmark_exports_at_its_real_length(task: str, tmp_path: Path) -> None:
    config = named(f"lra_bilateral_{task}")
    assert isinstance(config, SequenceClassifierConfig)
    assert config.length == TASKS[task]
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(config).state_dict(), CheckpointCard(name=task, model=config))
    checkpoint = load_checkpoint(path)
    exported = export_onnx(checkpoint, tmp_path / "model.onnx")
    arrays = SequenceClassifier(config).example(1, np.random.default_rng(0))
    assert arrays["tokens"].shape[-1] == TASKS[task]
    with OnnxRuntimeRunner(exported.path) as runner, TorchRunner(checkpoint) as torch_runner:
        np.testing.assert_allclose(
            runner.run(arrays)["logits"], torch_runner.run(arrays)["logits"], atol=1e-4
        )


def test_the_plain_twins_differ_in_the_kernels_only() -> None:
    """A bandwidth per head and five coefficients per residual connection, nothing else."""
    for task in TASKS:
        plain, bilateral = MODELS[f"lra_{task}"], MODELS[f"lra_bilateral_{task}"]
        with torch.device("meta"):
            sizes = [sum(p.numel() for p in build(c).parameters()) for c in (plain, bilateral)]
        assert sizes[1] - sizes[0] == 2 * (2 + 2 * 5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="not a multiple of heads 3"):
        SequenceClassifierConfig(dim=16, heads=3)
    with pytest.raises(ValidationError, match="does not have 100 pixels"):
        SequenceClassifierConfig(length=100, grid=(9, 9))
