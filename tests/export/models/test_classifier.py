"""The image classifier: sizes, timm's names, and plain DeiT as a special case."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from bilateral_export.errors import UserError
from bilateral_export.models.attention import AttentionConfig, grid_positions
from bilateral_export.models.classifier import ImageClassifier, ImageClassifierConfig
from bilateral_export.models.registry import build, named
from bilateral_export.models.residual import ResidualConfig

TINY = ImageClassifierConfig(image_size=16, patch_size=4, dim=24, depth=2, heads=3, num_classes=5)


# DeiT's published sizes (Touvron et al., 2021, table 1 and the repository's model files).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
    ],
)
def test_plain_models_have_the_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(named(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def plain_vit(state: dict[str, Tensor], image: Tensor, config: ImageClassifierConfig) -> Tensor:
    """A ViT written out from timm-named weights alone, independent of the model's code."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6
        )

    stride = config.patch_size
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = F.conv2d(image, weight, bias, stride=stride).flatten(2).transpose(1, 2)
    prefix = [state["cls_token"]] + ([state["dist_token"]] if config.distilled else [])
    x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1)
    x = x + state["pos_embed"]
    for block in (f"blocks.{number}" for number in range(config.depth)):
        batch, tokens, dim = x.shape
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        qkv = qkv.reshape(batch, tokens, 3, config.heads, dim // config.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(batch, tokens, dim)
        x = x + linear(f"{block}.attn.proj", attended)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    x = norm("norm", x)
    if config.distilled:
        return (linear("head", x[:, 0]) + linear("head_dist", x[:, 1])) / 2
    return linear("head", x[:, 0])


@pytest.mark.parametrize("distilled", [False, True])
def test_timm_named_weights_load_unchanged_and_mean_the_same(distilled: bool) -> None:
    config = TINY.model_copy(update={"distilled": distilled})
    torch.manual_seed(0)
    model = ImageClassifier(config).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain_vit(model.state_dict(), image, config))


def test_bilateral_kernels_and_boosting_change_the_answer() -> None:
    variants = [
        {"attention": AttentionConfig(spatial_kernel="gaussian")},
        {"attention": AttentionConfig(range_kernel="gaussian")},
        {"attention": AttentionConfig(spatial_kernel="dot", position_features=4)},
        {"residual": ResidualConfig(preset="twicing")},
    ]
    torch.manual_seed(0)
    plain = ImageClassifier(TINY).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(2, 3, 16, 16)
    for variant in variants:
        model = ImageClassifier(TINY.model_copy(update=variant)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("_features"):
                torch.nn.init.normal_(parameter)
        model.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            assert (model(image) - plain(image)).abs().max() > 1e-4, variant


def test_positions_are_centred_and_prefix_tokens_have_none() -> None:
    positions = grid_positions(2, 3, prefix=2)
    assert positions.tolist() == [
        [0, 0], [0, 0],
        [-0.5, -1], [-0.5, 0], [-0.5, 1],
        [0.5, -1], [0.5, 0], [0.5, 1],
    ]  # fmt: skip


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="image_size 17 is not a multiple of patch_size 4"):
        ImageClassifierConfig(image_size=17, patch_size=4)
    with pytest.raises(ValidationError, match="dim 25 is not a multiple of heads 3"):
        ImageClassifierConfig(dim=25, heads=3)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown model name 'deit_huge'.*deit_tiny_patch16_224"):
        named("deit_huge")
