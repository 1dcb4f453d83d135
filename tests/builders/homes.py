"""State dicts with the names and shapes that other libraries write, and their forward passes.

The names were printed by the libraries themselves: transformers 4.57 and 5.24, timm 1.0.31,
torchvision 0.28; rstrudel/segmenter's from its source. The forward passes are written from each
library's code, in plain functions on its own names, so that nothing of the package under test is in
them. `tests/export/checkpoint/homes/test_libraries.py` compares them with transformers, timm and
torchvision where `make references` has installed these; Segmenter is in no registry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
DIM, HEADS, HIDDEN, DEPTH, CLASSES = 128, 2, 96, 2, 5


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small ViT; its width has two heads by the rule of 64 channels a head."""

    height: int = 32
    width: int = 32
    patch: int = 8
    channels: int = 3
    classes: int = CLASSES

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]


@dataclass
class Weights:
    """Random tensors by name, from one seed."""

    state: State = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def random(self, name: str, *shape: int, scale: float = 0.02, mean: float = 0.0) -> None:
        """Add a tensor of normal numbers."""
        self.state[name] = mean + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, out: int, *into: int, bias: bool = True) -> None:
        """Add a linear or convolution layer that keeps the size of its input."""
        self.random(f"{name}.weight", out, *into, scale=1 / math.sqrt(math.prod(into)))
        if bias:
            self.random(f"{name}.bias", out)

    def norm(self, name: str, dim: int = DIM) -> None:
        """Add a layer norm."""
        self.random(f"{name}.weight", dim, scale=0.2, mean=1.0)
        self.random(f"{name}.bias", dim, scale=0.2)


# --- Hugging Face -------------------------------------------------------------------------------


def huggingface_state(
    kind: str, version: int, sizes: Sizes, head: str = "classifier", prefix: bool = True
) -> State:
    """What `save_pretrained` of transformers 4 or 5 writes.

    Args:
        kind: vit, deit, dinov2 or dinov2_with_registers.
        version: 4 or 5.
        sizes: Of the model.
        head: classifier, both (DeiT's two) or empty.
        prefix: Whether the body's names begin with its kind, as in a model with a head.
    """
    weights, dino = Weights(), kind.startswith("dinov2")
    body = f"{kind}." if prefix else ""
    at = f"{body}embeddings."
    weights.random(f"{at}cls_token", 1, 1, DIM)
    prefix_rows = 1
    if dino:
        weights.random(f"{at}mask_token", 1, DIM)
    if kind == "deit":
        weights.random(f"{at}distillation_token", 1, 1, DIM)
        prefix_rows = 2
    if kind == "dinov2_with_registers":
        weights.random(f"{at}register_tokens", 1, 4, DIM)
    weights.random(f"{at}position_embeddings", 1, prefix_rows + sizes.patches, DIM)
    weights.linear(
        f"{at}patch_embeddings.projection", DIM, sizes.channels, sizes.patch, sizes.patch
    )
    for index in range(DEPTH):
        old = version == 4
        layer = f"{body}{'encoder.layer' if old or dino else 'layers'}.{index}."
        for part in ("query", "key", "value"):
            name = f"attention.attention.{part}" if old else f"attention.{part[0]}_proj"
            weights.linear(f"{layer}{name}", DIM, DIM)
        weights.linear(f"{layer}attention.{'output.dense' if old else 'o_proj'}", DIM, DIM)
        plain = old and not dino
        weights.linear(f"{layer}{'intermediate.dense' if plain else 'mlp.fc1'}", HIDDEN, DIM)
        weights.linear(f"{layer}{'output.dense' if plain else 'mlp.fc2'}", DIM, HIDDEN)
        weights.norm(f"{layer}{'norm1' if dino else 'layernorm_before'}")
        weights.norm(f"{layer}{'norm2' if dino else 'layernorm_after'}")
        if dino:
            weights.random(f"{layer}layer_scale1.lambda1", DIM, scale=0.5)
            weights.random(f"{layer}layer_scale2.lambda1", DIM, scale=0.5)
    weights.norm(f"{body}layernorm")
    if head == "both":
        weights.linear("cls_classifier", sizes.classes, DIM)
        weights.linear("distillation_classifier", sizes.classes, DIM)
    elif head:
        weights.linear("classifier", sizes.classes, 2 * DIM if dino else DIM)
    else:
        weights.linear("pooler.dense", DIM, DIM)
    return weights.state


def huggingface_config(kind: str, sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """A `config.json` of such a model."""
    return {
        "model_type": kind,
        "hidden_size": DIM,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6 if kind.startswith("dinov2") else 1e-12,
        "image_size": sizes.height if sizes.height == sizes.width else [sizes.height, sizes.width],
        "patch_size": sizes.patch,
        "num_channels": sizes.channels,
        "qkv_bias": True,
        "id2label": {str(index): f"kind {index}" for index in range(sizes.classes)},
        **({} if kind.startswith("dinov2") else {"intermediate_size": HIDDEN}),
        **({"num_register_tokens": 4} if kind == "dinov2_with_registers" else {}),
        **changes,
    }


def huggingface_forward(
    state: Mapping[str, Tensor],
    image: Tensor,
    heads: int = HEADS,
    epsilon: float | None = None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    """Logits of a classifier; the last hidden state where there is none."""
    anchor = next(name for name in state if name.endswith("embeddings.cls_token"))
    body = anchor.removesuffix("embeddings.cls_token")
    at, new = f"{body}embeddings.", f"{body}layers.0.layernorm_before.weight" in state
    layers = f"{body}layers" if new else f"{body}encoder.layer"
    dino = f"{layers}.0.norm1.weight" in state
    old = f"{layers}.0.attention.attention.query.weight" in state
    eps = epsilon or (1e-6 if dino else 1e-12)
    patches = _patches(state, f"{at}patch_embeddings.projection", image)
    first = [state[f"{at}cls_token"]]
    if f"{at}distillation_token" in state:
        first.append(state[f"{at}distillation_token"])
    x = torch.cat([*(t.expand(len(image), -1, -1) for t in first), patches], 1)
    x = x + state[f"{at}position_embeddings"]
    prefix = len(first)
    if f"{at}register_tokens" in state:
        registers = state[f"{at}register_tokens"]
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1)
        prefix += registers.shape[1]
    for index in range(DEPTH):
        layer = f"{layers}.{index}."
        names = [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ]
        if not old:
            names = ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
        y = _norm(state, f"{layer}{'norm1' if dino else 'layernorm_before'}", x, eps)
        y = _attend(*(_linear(state, f"{layer}{name}", y) for name in names), heads)
        y = _linear(state, f"{layer}attention.{'output.dense' if old else 'o_proj'}", y)
        x = x + (y * state[f"{layer}layer_scale1.lambda1"] if dino else y)
        y = _norm(state, f"{layer}{'norm2' if dino else 'layernorm_after'}", x, eps)
        plain = old and not dino
        y = activation(_linear(state, f"{layer}{'intermediate.dense' if plain else 'mlp.fc1'}", y))
        y = _linear(state, f"{layer}{'output.dense' if plain else 'mlp.fc2'}", y)
        x = x + (y * state[f"{layer}layer_scale2.lambda1"] if dino else y)
    x = _norm(state, f"{body}layernorm", x, eps)
    if "cls_classifier.weight" in state:
        both = _linear(state, "cls_classifier", x[:, 0])
        return (both + _linear(state, "distillation_classifier", x[:, 1])) / 2
    if "classifier.weight" not in state:
        return x
    pooled = torch.cat([x[:, 0], x[:, prefix:].mean(1)], 1) if dino else x[:, 0]
    return _linear(state, "classifier", pooled)


# --- timm ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timm:
    """Arguments of timm's `VisionTransformer` that change its names or its forward pass."""

    class_token: bool = True
    distilled: bool = False
    registers: int = 0
    embed_prefix: bool = True  # not timm's no_embed_class
    layer_scale: str = ""  # "ls{}.gamma", or DeiT III's own "gamma_{}"
    pre_norm: bool = False
    qk_norm: bool = False
    qkv_bias: bool = True
    pool: str = "token"
    fc_norm: bool | None = None  # None: where it pools by average
    final_norm: bool = True

    @property
    def norms_pooled(self) -> bool:
        """Whether the norm comes behind the pooling."""
        return self.pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def prefix(self) -> int:
        """Number of prefix tokens."""
        return self.class_token + self.distilled + self.registers

    @property
    def epsilon(self) -> float:
        """Of its layer norms: timm's CLIP models have pre_norm and another epsilon."""
        return 1e-5 if self.pre_norm else 1e-6


def timm_state(kind: Timm, sizes: Sizes) -> State:
    """What timm's `VisionTransformer.state_dict()` has."""
    weights = Weights()
    for name, count in (
        ("cls_token", int(kind.class_token)),
        ("dist_token", int(kind.distilled)),
        ("reg_token", kind.registers),
    ):
        if count:
            weights.random(name, 1, count, DIM)
    placed = kind.prefix if kind.embed_prefix else 0
    weights.random("pos_embed", 1, placed + sizes.patches, DIM, scale=0.3)
    weights.linear(
        "patch_embed.proj", DIM, sizes.channels, sizes.patch, sizes.patch, bias=not kind.pre_norm
    )
    if kind.pre_norm:
        weights.norm("norm_pre")
    for index in range(DEPTH):
        at = f"blocks.{index}."
        weights.norm(f"{at}norm1")
        weights.linear(f"{at}attn.qkv", 3 * DIM, DIM, bias=kind.qkv_bias)
        if kind.qk_norm:
            weights.norm(f"{at}attn.q_norm", DIM // HEADS)
            weights.norm(f"{at}attn.k_norm", DIM // HEADS)
        weights.linear(f"{at}attn.proj", DIM, DIM)
        weights.norm(f"{at}norm2")
        weights.linear(f"{at}mlp.fc1", HIDDEN, DIM)
        weights.linear(f"{at}mlp.fc2", DIM, HIDDEN)
        if kind.layer_scale:
            for number in (1, 2):
                weights.random(at + kind.layer_scale.format(number), DIM, scale=0.5)
    if kind.final_norm:
        weights.norm("fc_norm" if kind.norms_pooled else "norm")
    if sizes.classes:
        weights.linear("head", sizes.classes, DIM)
        if kind.distilled:
            weights.linear("head_dist", sizes.classes, DIM)
    return weights.state


def timm_forward(
    state: Mapping[str, Tensor],
    image: Tensor,
    kind: Timm,
    epsilon: float | None = None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    """Logits, as timm's `VisionTransformer.forward` computes them."""
    eps, batch = epsilon or kind.epsilon, len(image)
    x = _patches(state, "patch_embed.proj", image)
    prefix = [state[n].expand(batch, -1, -1) for n in _PREFIX if n in state]
    if kind.embed_prefix:
        x = torch.cat([*prefix, x], 1) + state["pos_embed"]
    else:
        x = torch.cat([*prefix, x + state["pos_embed"]], 1)
    if kind.pre_norm:
        x = _norm(state, "norm_pre", x, eps)
    for index in range(DEPTH):
        x = _timm_block(state, f"blocks.{index}.", x, eps, activation)
    if kind.final_norm and not kind.norms_pooled:
        x = _norm(state, "norm", x, eps)
    pooled = x[:, 0] if kind.pool == "token" else x[:, kind.prefix :].mean(1)
    if kind.final_norm and kind.norms_pooled:
        pooled = _norm(state, "fc_norm", pooled, eps)
    if kind.distilled:
        return (_linear(state, "head", x[:, 0]) + _linear(state, "head_dist", x[:, 1])) / 2
    return _linear(state, "head", pooled)


_PREFIX = ("cls_token", "dist_token", "reg_token")


def _timm_block(
    state: Mapping[str, Tensor],
    at: str,
    x: Tensor,
    eps: float,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    y = _norm(state, f"{at}norm1", x, eps)
    query, key, value = _linear(state, f"{at}attn.qkv", y).chunk(3, -1)
    norms = [f"{at}attn.q_norm", f"{at}attn.k_norm"] if f"{at}attn.q_norm.weight" in state else []
    if norms:
        query, key = (
            _norm(state, name, part.unflatten(-1, (HEADS, -1)), eps).flatten(-2)
            for name, part in zip(norms, (query, key), strict=True)
        )
    y = _linear(state, f"{at}attn.proj", _attend(query, key, value, HEADS))
    x = x + y * _scale(state, at, 1)
    y = activation(_linear(state, f"{at}mlp.fc1", _norm(state, f"{at}norm2", x, eps)))
    return x + _linear(state, f"{at}mlp.fc2", y) * _scale(state, at, 2)


def _scale(state: Mapping[str, Tensor], at: str, number: int) -> Tensor | float:
    for name in (f"{at}ls{number}.gamma", f"{at}gamma_{number}"):
        if name in state:
            return state[name]
    return 1.0


# --- torchvision --------------------------------------------------------------------------------


def torchvision_state(sizes: Sizes) -> State:
    """What torchvision's `VisionTransformer.state_dict()` has."""
    weights = Weights()
    weights.random("class_token", 1, 1, DIM)
    weights.linear("conv_proj", DIM, sizes.channels, sizes.patch, sizes.patch)
    weights.random("encoder.pos_embedding", 1, 1 + sizes.patches, DIM)
    for index in range(DEPTH):
        at = f"encoder.layers.encoder_layer_{index}."
        weights.norm(f"{at}ln_1")
        weights.random(f"{at}self_attention.in_proj_weight", 3 * DIM, DIM, scale=DIM**-0.5)
        weights.random(f"{at}self_attention.in_proj_bias", 3 * DIM)
        weights.linear(f"{at}self_attention.out_proj", DIM, DIM)
        weights.norm(f"{at}ln_2")
        weights.linear(f"{at}mlp.0", HIDDEN, DIM)
        weights.linear(f"{at}mlp.3", DIM, HIDDEN)
    weights.norm("encoder.ln")
    weights.linear("heads.head", sizes.classes, DIM)
    return weights.state


def torchvision_forward(state: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """Logits, as torchvision's `VisionTransformer.forward` computes them."""
    x = _patches(state, "conv_proj", image)
    x = torch.cat([state["class_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["encoder.pos_embedding"]
    for index in range(DEPTH):
        at = f"encoder.layers.encoder_layer_{index}."
        y = _norm(state, f"{at}ln_1", x, 1e-6)
        weight, bias = (state[f"{at}self_attention.in_proj_{part}"] for part in ("weight", "bias"))
        y = _attend(*F.linear(y, weight, bias).chunk(3, -1), HEADS)
        x = x + _linear(state, f"{at}self_attention.out_proj", y)
        y = F.gelu(_linear(state, f"{at}mlp.0", _norm(state, f"{at}ln_2", x, 1e-6)))
        x = x + _linear(state, f"{at}mlp.3", y)
    return _linear(state, "heads.head", _norm(state, "encoder.ln", x, 1e-6)[:, 0])


# --- Segmenter ----------------------------------------------------------------------------------


def segmenter_state(sizes: Sizes, distilled: bool = False, masks: bool = True) -> State:
    """What rstrudel/segmenter saves under "model": its encoder has a head that nothing uses."""
    weights = Weights()
    weights.random("encoder.cls_token", 1, 1, DIM)
    if distilled:
        weights.random("encoder.dist_token", 1, 1, DIM)
    weights.random("encoder.pos_embed", 1, 1 + distilled + sizes.patches, DIM)
    weights.linear("encoder.patch_embed.proj", DIM, 3, sizes.patch, sizes.patch)
    _segmenter_blocks(weights, "encoder.")
    weights.norm("encoder.norm")
    weights.linear("encoder.head", 1000, DIM)
    if distilled:
        weights.linear("encoder.head_dist", 1000, DIM)
    if not masks:
        weights.linear("decoder.head", sizes.classes, DIM)
        return weights.state
    weights.random("decoder.cls_emb", 1, sizes.classes, DIM)
    weights.random("decoder.proj_patch", DIM, DIM, scale=DIM**-0.5)
    weights.random("decoder.proj_classes", DIM, DIM, scale=DIM**-0.5)
    _segmenter_blocks(weights, "decoder.")
    weights.linear("decoder.proj_dec", DIM, DIM)
    weights.norm("decoder.decoder_norm")
    weights.norm("decoder.mask_norm", sizes.classes)
    return weights.state


def _segmenter_blocks(weights: Weights, at: str) -> None:
    for index in range(DEPTH):
        block = f"{at}blocks.{index}."
        weights.norm(f"{block}norm1")
        weights.norm(f"{block}norm2")
        weights.linear(f"{block}attn.qkv", 3 * DIM, DIM)
        weights.linear(f"{block}attn.proj", DIM, DIM)
        weights.linear(f"{block}mlp.fc1", HIDDEN, DIM)
        weights.linear(f"{block}mlp.fc2", DIM, HIDDEN)


def segmenter_forward(state: Mapping[str, Tensor], image: Tensor, sizes: Sizes) -> Tensor:
    """Class scores of every pixel, as Segmenter's `forward` gives them; eps is torch's default."""
    eps = 1e-5
    prefix = [state[f"encoder.{n}"] for n in _PREFIX[:2] if f"encoder.{n}" in state]
    x = _patches(state, "encoder.patch_embed.proj", image)
    x = torch.cat([*(t.expand(len(x), -1, -1) for t in prefix), x], 1)
    x = x + state["encoder.pos_embed"]
    for index in range(DEPTH):
        x = _timm_block(state, f"encoder.blocks.{index}.", x, eps)
    x = _norm(state, "encoder.norm", x, eps)
    if "decoder.cls_emb" not in state:
        return x
    x = _linear(state, "decoder.proj_dec", x[:, len(prefix) :])
    x = torch.cat([x, state["decoder.cls_emb"].expand(len(x), -1, -1)], 1)
    for index in range(DEPTH):
        x = _timm_block(state, f"decoder.blocks.{index}.", x, eps)
    x = _norm(state, "decoder.decoder_norm", x, eps)
    classes = state["decoder.cls_emb"].shape[1]
    patches = F.normalize(x[:, :-classes] @ state["decoder.proj_patch"], dim=-1)
    named = F.normalize(x[:, -classes:] @ state["decoder.proj_classes"], dim=-1)
    masks = _norm(state, "decoder.mask_norm", patches @ named.transpose(1, 2), eps)
    masks = masks.transpose(1, 2).unflatten(-1, sizes.grid)
    size = (sizes.height, sizes.width)
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)


# --- parts --------------------------------------------------------------------------------------


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _patches(state: Mapping[str, Tensor], name: str, image: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    found = F.conv2d(image, weight, state.get(f"{name}.bias"), stride=weight.shape[-1])
    return found.flatten(2).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
