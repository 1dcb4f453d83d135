"""The language model: causal, the cache changes nothing, the adaptive softmax is a distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.language import LanguageModel, LanguageModelConfig, sinusoids
from bilateral_export.models.registry import build, named
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner

SMALL = LanguageModelConfig(
    vocabulary=40, context=24, dim=16, depth=2, heads=2, hidden=32, cutoffs=(10, 25)
)
KERNELS = [
    AttentionConfig(),
    AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
    AttentionConfig(spatial_kernel="dot", position_features=4),
]


def model_of(config: LanguageModelConfig, double: bool = True) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double() if double else model


def empty(config: LanguageModelConfig, batch: int = 1) -> Tensor:
    head_dim = config.dim // config.heads
    return torch.zeros(batch, config.depth, config.heads, 0, head_dim, dtype=torch.float64)


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("split", [1, 7, 19])
def test_reading_in_two_steps_with_the_cache_equals_reading_at_once(
    attention: AttentionConfig, split: int
) -> None:
    config = SMALL.model_copy(
        update={"attention": attention, "residual": ResidualConfig(preset="sos")}
    )
    model, none = model_of(config), empty(config, 2)
    words = torch.randint(0, 40, (2, 21))
    tokens, targets = words[:, :-1], words[:, 1:]
    with torch.no_grad():
        whole = model(tokens, targets, none, none)
        first = model(tokens[:, :split], targets[:, :split], none, none)
        second = model(tokens[:, split:], targets[:, split:], first[2], first[3])
    torch.testing.assert_close(torch.cat([first[0], second[0]], dim=1), whole[0])
    for got, wanted in zip(second[1:], whole[1:], strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("attention", KERNELS)
def test_a_word_does_not_see_what_follows(attention: AttentionConfig) -> None:
    config = SMALL.model_copy(update={"attention": attention})
    model, none = model_of(config), empty(config)
    tokens = torch.randint(0, 40, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 40
    with torch.no_grad():
        before, after = (model(t, tokens, none, none)[0] for t in (tokens, changed))
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=0)
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("cutoffs", [(), (10, 25)])
def test_likelihoods_are_those_of_one_distribution(cutoffs: tuple[int, ...]) -> None:
    config = SMALL.model_copy(update={"cutoffs": cutoffs})
    model, none = model_of(config), empty(config)
    tokens = torch.randint(0, 40, (1, 6))
    with torch.no_grad():
        _, log_probabilities, _, _ = model(tokens, tokens, none, none)
        assert log_probabilities.exp().sum().item() == pytest.approx(1.0)
        for word in (0, 9, 10, 24, 25, 39):  # the first and last of every cluster
            targets = torch.full_like(tokens, word)
            likelihood = model(tokens, targets, none, none)[0]
            torch.testing.assert_close(likelihood[0, -1], log_probabilities[0, word])


def test_learned_position_features_start_as_a_shift_invariant_kernel() -> None:
    config = SMALL.model_copy(
        update={"attention": AttentionConfig(spatial_kernel="dot", position_features=8)}
    )
    attention = LanguageModel(config).get_submodule("blocks.0.attn")
    features = attention.query_features[0]  # type: ignore[index]
    kernel = features @ features.T
    for shift in range(4):
        assert kernel.diagonal(shift).std().item() < 1e-5
    assert kernel[0, 0].item() == pytest.approx(1.0)


def test_sinusoids_are_those_of_the_paper() -> None:
    """Vaswani et al., 2017, section 3.5: sin and cos of pos / 10000^(2i/d)."""
    table = sinusoids(10, 6)
    angle = 7 / 10_000 ** (2 * 1 / 6)
    assert table[7, 1].item() == pytest.approx(np.sin(angle))
    assert table[7, 3 + 1].item() == pytest.approx(np.cos(angle))


# The 44 M (small) and 90 M (medium) that are reported for these shapes; LANGUAGE.md counts them.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("wikitext103_small", 44_026_842), ("wikitext103_medium", 89_850_330)],
)
def test_plain_twins_have_the_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(named(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("attention", "precision"), [*((kernels, "fp32") for kernels in KERNELS), (KERNELS[1], "fp16")]
)
def test_the_exported_graph_takes_any_length_and_any_cache(
    attention: AttentionConfig, precision: str, tmp_path: Path
) -> None:
    config = SMALL.model_copy(update={"attention": attention})
    path = tmp_path / "model.safetensors"
    card = CheckpointCard(name="small", model=config)
    save_checkpoint(path, model_of(config, double=False).state_dict(), card)
    checkpoint = load_checkpoint(path)
    exported = export_onnx(checkpoint, tmp_path / "model.onnx", precision=precision)  # type: ignore[arg-type]
    assert exported.attention_nodes == config.depth
    tolerance = 1e-4 if precision == "fp32" else 0.1
    with OnnxRuntimeRunner(exported.path) as runner, TorchRunner(checkpoint) as torch_runner:
        for batch, length, past in ((1, 24, 0), (2, 5, 11), (3, 1, 23), (1, 1, 0)):
            model = model_of(config, double=False)
            arrays = model.example(batch, np.random.default_rng(0), length=length, past=past)
            got, wanted = runner.run(arrays), torch_runner.run(arrays)
            assert got["keys"].shape[3] == past + length
            for name, array in wanted.items():
                np.testing.assert_allclose(got[name], array, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_the_wikitext_model_exports_at_its_real_size(tmp_path: Path) -> None:
    config = named("wikitext103_bilateral_small")
    assert isinstance(config, LanguageModelConfig)
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(config).state_dict(), CheckpointCard(name="lm", model=config))
    checkpoint = load_checkpoint(path)
    exported = export_onnx(checkpoint, tmp_path / "model.onnx")
    assert exported.attention_nodes == 16
    with torch.device("meta"):
        described = LanguageModel(config)
    arrays = described.example(1, np.random.default_rng(0), length=8, past=248)
    with OnnxRuntimeRunner(exported.path) as runner, TorchRunner(checkpoint) as torch_runner:
        got, wanted = runner.run(arrays), torch_runner.run(arrays)
    assert got["log_probabilities"].shape == (1, 267_735)
    np.testing.assert_allclose(got["log_likelihood"], wanted["log_likelihood"], atol=1e-3)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not rise below 100 words"):
        LanguageModelConfig(vocabulary=100, cutoffs=(10, 200))
    with pytest.raises(ValidationError, match="not a multiple"):
        LanguageModelConfig(dim=20, heads=8)
