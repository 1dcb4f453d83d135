"""Drop-in attention: the same numbers as what it replaces, and no silence where it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilateral_export import (
    BilateralAttention,
    grid_positions,
    register_with_transformers,
    replace_attention,
    scaled_dot_product_attention,
)
from bilateral_export.models.drop_in import hf_attention, hf_attention_mask
from bilateral_export.models.examples import vit
from bilateral_export.op.attention import attention


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


QUERY, KEY, VALUE = (tokens(2, 4, 7 + i, 8)[:, :, :7] for i in range(3))
KEPT = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": KEPT[:, None, None, :]},
        {"attn_mask": KEPT[:1, None, None, :]},
        {"attn_mask": KEPT[1:]},
        {"attn_mask": tokens(2, 1, 1, 7)},
    ],
    ids=str,
)
def test_without_kernels_it_is_pytorchs_function(options: dict[str, Any]) -> None:
    wanted = F.scaled_dot_product_attention(QUERY, KEY, VALUE, **options)
    got = scaled_dot_product_attention(QUERY, KEY, VALUE, **options)
    torch.testing.assert_close(got, wanted)


def test_heads_may_share_keys_and_values() -> None:
    few = KEY[:, :2], VALUE[:, :2]
    wanted = F.scaled_dot_product_attention(QUERY, *few, enable_gqa=True)
    torch.testing.assert_close(scaled_dot_product_attention(QUERY, *few, enable_gqa=True), wanted)


def test_with_kernels_it_is_the_operator() -> None:
    places, sigma = tokens(7, 2), tokens(4).exp()
    got = scaled_dot_product_attention(
        QUERY,
        KEY,
        VALUE,
        range_kernel="gaussian",
        positions=places.half(),
        bandwidth=sigma,
        prefix=1,
    )
    wide = places.half().float()
    wanted = attention(
        *(QUERY, KEY, VALUE, wide, wide, sigma),
        scale=8**-0.5,
        range_kernel="gaussian",
        spatial_kernel="gaussian",
        query_prefix=1,
        key_prefix=1,
    )
    torch.testing.assert_close(got, wanted)
    features = tokens(4, 7, 3)
    got = scaled_dot_product_attention(QUERY, KEY, VALUE, positions=features)
    wanted = attention(QUERY, KEY, VALUE, features, features, scale=8**-0.5, spatial_kernel="dot")
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: scaled_dot_product_attention(QUERY, KEY, VALUE, dropout_p=0.1), "no dropout"),
        (
            lambda: scaled_dot_product_attention(
                QUERY, KEY, VALUE, attn_mask=torch.ones(7, 7, dtype=torch.bool)
            ),
            "the same for every query and head",
        ),
        (
            lambda: scaled_dot_product_attention(QUERY[:, :, :2], KEY, VALUE, is_causal=True),
            "PyTorch aligns their starts",
        ),
        (lambda: scaled_dot_product_attention(QUERY[0], KEY[0], VALUE[0]), r"\[B, H, N, D\]"),
        (lambda: hf_attention(nn.Identity(), QUERY, KEY, VALUE, dropout=0.1), "model.eval"),
        (lambda: hf_attention_mask(2, 7, 7, local_size=3), "in 3 tokens"),
        (lambda: replace_attention(nn.Linear(2, 2)), "no attention"),
        (lambda: BilateralAttention(10, num_heads=4), "not a multiple"),
    ],
)
def test_what_it_cannot_do_is_said(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()


def test_it_stands_where_timms_attention_stood() -> None:
    torch.manual_seed(0)
    plain = vit.VisionTransformer().eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    replaced = copy.deepcopy(plain)
    assert replace_attention(replaced) == vit.DEPTH
    assert replaced.state_dict().keys() == plain.state_dict().keys()
    image = tokens(2, 3, 32, 32)
    torch.testing.assert_close(replaced(image), plain(image))
    bilateral = copy.deepcopy(plain)
    replace_attention(bilateral, positions=grid_positions(4, 4, 1), prefix=1)
    new = bilateral.state_dict().keys() - plain.state_dict().keys()
    assert new == {f"blocks.{n}.attn.log_bandwidth" for n in range(vit.DEPTH)}
    assert not torch.allclose(bilateral(image), plain(image))


def test_another_attention_is_not_taken_for_timms() -> None:
    model = vit.VisionTransformer()
    model.blocks[0].attn.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="relative_position_bias_table, which timm's"):
        replace_attention(model)


def test_every_option_of_timms_attention_counts() -> None:
    made = BilateralAttention(
        12,
        num_heads=2,
        attn_head_dim=4,
        dim_out=10,
        qkv_bias=True,
        qk_norm=True,
        scale_norm=True,
        gated=True,
        norm_layer=nn.LayerNorm,
        causal=True,
    ).eval()
    x = tokens(2, 5, 12)
    query, key, value = made.qkv(x).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(
        made.q_norm(query), made.k_norm(key), value, is_causal=True
    )
    joined = made.norm(heads.transpose(1, 2).flatten(2)) * made.gate(x).sigmoid()
    torch.testing.assert_close(made(x), made.proj(joined))
    shared = BilateralAttention.of(made, causal=True)
    torch.testing.assert_close(shared(x), made(x))
    assert shared.qkv is made.qkv


def test_hugging_faces_function_with_a_cache_and_padding() -> None:
    module = nn.Module()
    module.is_causal = True
    module.register_buffer("positions", torch.arange(7.0)[:, None])
    module.log_bandwidth = nn.Parameter(torch.zeros(4))
    mask = hf_attention_mask(2, 7, 7, attention_mask=KEPT)
    whole, weights = hf_attention(module, QUERY, KEY[:, :2], VALUE[:, :2], mask)
    assert weights is None
    assert whole.shape == (2, 7, 4, 8)
    last, _ = hf_attention(module, QUERY[:, :, -1:], KEY[:, :2], VALUE[:, :2], mask)
    torch.testing.assert_close(last, whole[:, -1:])
    changed = VALUE[:, :2].clone()
    changed[1, :, 5:] += 9
    again, _ = hf_attention(module, QUERY, KEY[:, :2], changed, mask)
    torch.testing.assert_close(again, whole)


def test_a_real_model_of_timm() -> None:
    timm = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    sizes |= {"num_classes": 5, "qk_norm": True, "scale_attn_norm": True}
    plain = timm.VisionTransformer(**sizes).eval()
    given = timm.VisionTransformer(**sizes, attn_layer=BilateralAttention).eval()
    given.load_state_dict(plain.state_dict())
    replaced = copy.deepcopy(plain)
    assert replace_attention(replaced) == 2
    image = tokens(2, 3, 32, 32)
    for model in (given, replaced):
        torch.testing.assert_close(model(image), plain(image))


def test_real_models_of_hugging_face() -> None:
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    register_with_transformers()
    sizes = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}
    ids, kept = torch.arange(14).reshape(2, 7), KEPT.long()
    for kind, config in (
        (hf.BertModel, hf.BertConfig(**sizes, num_attention_heads=6)),
        (hf.LlamaModel, hf.LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)),
    ):
        model = kind._from_config(config, attn_implementation="sdpa").eval()
        wanted = model(input_ids=ids, attention_mask=kept)[0]
        model.set_attn_implementation("bilateral")
        got = model(input_ids=ids, attention_mask=kept)[0]
        torch.testing.assert_close(got[KEPT], wanted[KEPT])
