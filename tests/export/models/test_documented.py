"""What the models' pages say, where the code alone would not show that a page is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.language import LanguageModelConfig, sinusoids
from bilateral_export.models.registry import build
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.op import torch_op
from bilateral_export.tasks import listops
from bilateral_export.text import Tokenizer

GAUSSIAN = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian", bandwidth=(0.5, 2))
IMAGE = ImageClassifierConfig(
    image_size=16, patch_size=4, dim=16, depth=2, heads=2, num_classes=3, attention=GAUSSIAN
)
TOKENS = {"length": 12, "dim": 16, "depth": 2, "heads": 2, "attention": GAUSSIAN}
CLASS = SequenceClassifierConfig(vocabulary=16, num_classes=3, pooling="class", **TOKENS)
MEAN = CLASS.model_copy(update={"pooling": "mean"})
WORDS = LanguageModelConfig(
    vocabulary=12, context=8, dim=16, depth=2, heads=2, hidden=8, cutoffs=(), attention=GAUSSIAN
)
MASKS = SegmenterConfig(
    image_size=16, patch_size=4, dim=16, depth=1, heads=2, num_classes=3, attention=GAUSSIAN
)


@pytest.mark.parametrize(
    ("config", "dead"),
    [
        (IMAGE, True),
        (IMAGE.model_copy(update={"distilled": True}), True),
        (CLASS, True),
        (MEAN, False),
    ],
    ids=["image", "distilled", "class token", "mean"],
)
def test_the_last_blocks_bandwidths_are_dead_where_the_class_token_alone_is_read(
    config: FamilyConfig, dead: bool
) -> None:
    torch.manual_seed(0)
    model = build(config).double()
    given = model.example(2, np.random.default_rng(0))
    inputs = [torch.from_numpy(array) for array in given.values()]
    model(*(x.double() if x.is_floating_point() else x for x in inputs)).square().sum().backward()
    first, last = (model.blocks[number].attn.log_bandwidth.grad for number in (0, -1))
    assert first is not None
    assert first.abs().min() > 0
    assert last is None or bool((last == 0).all()) == dead
    assert not (last is None and not dead)


@pytest.mark.parametrize("config", [IMAGE, CLASS, WORDS, MASKS], ids=lambda config: config.family)
def test_every_layer_norm_has_an_epsilon_of_1e_6(config: FamilyConfig) -> None:
    norms = [module for module in build(config).modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms if norm.normalized_shape == (16,)} == {1e-6}
    assert [norm.eps for norm in norms if norm.normalized_shape != (16,)] in ([], [1e-5])


def test_log_bandwidth_is_the_natural_logarithm_of_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(*operands: object) -> torch.Tensor:
        seen.append(operands[5])
        return operands[2]  # type: ignore[return-value]

    attention = build(IMAGE).blocks[0].attn
    np.testing.assert_allclose(attention.log_bandwidth.detach(), np.log([0.5, 2]), atol=1e-6)
    monkeypatch.setattr(torch_op, "bilateral_attention", watch)
    attention(torch.zeros(1, 17, 16), torch.zeros(17, 2))
    np.testing.assert_allclose(seen[0].detach(), [0.5, 2], atol=1e-6)


def test_sinusoids_are_sines_and_then_cosines() -> None:
    table = sinusoids(5, 6)
    for position in range(5):
        angles = [position * 10_000 ** (-2 * i / 6) for i in range(3)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        np.testing.assert_allclose(table[position], expected, atol=1e-6)


def test_listops_ids_are_those_of_the_page() -> None:
    symbols = ["[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789"]
    assert listops.encode(symbols).tolist() == list(range(1, 16))


def test_words_are_cut_by_the_rule_of_the_page() -> None:
    tokenizer = Tokenizer.trained("don't e.g. x_1,(3.5)!<unk>", least=1)
    assert set(tokenizer.words[2:]) == {"don't", "e.g", ".", "x_1", ",", "(", "3.5", ")", "!"}
