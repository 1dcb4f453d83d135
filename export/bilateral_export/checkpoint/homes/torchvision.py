"""torchvision's `VisionTransformer`: vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14.

Names were taken from torchvision 0.28.
"""

from __future__ import annotations

from typing import Any

from bilateral_export.checkpoint.homes.conversion import (
    Conversion,
    Ledger,
    Source,
    check_heads,
    configured,
    depth_of,
    image_size,
    visible_sizes,
)
from bilateral_export.checkpoint.homes.facts import FIXED, heads_of, torchvision_preprocessing

SIGNATURE = r"^(?P<root>.*?)conv_proj[.]weight$"
_LAYERS = "encoder.layers.encoder_layer_"
_NAMES = {(768, 16): "vit_b_16", (768, 32): "vit_b_32", (1024, 16): "vit_l_16"}
_NAMES |= {(1024, 32): "vit_l_32", (1280, 14): "vit_h_14"}


def convert(source: Source) -> Conversion:
    """Rename a torchvision ViT.

    Raises:
        UserError: Tensors are missing or unknown, or the sizes are not a model's.
    """
    fixed = FIXED["torchvision"]
    ledger = Ledger(source, "a torchvision ViT")
    depth = depth_of(source.state, _LAYERS.replace(".", r"\.") + r"(\d+)\.", source.path)
    ledger.linear("conv_proj", "patch_embed.proj")
    ledger.move("class_token", "cls_token")
    ledger.move("encoder.pos_embedding", "pos_embed")
    for index in range(depth):
        _block(ledger, f"{_LAYERS}{index}.", f"blocks.{index}.")
    ledger.norm("encoder.ln", "norm")
    if "heads.head.weight" in source.state:
        ledger.linear("heads.head", "head")
    left = ledger.left_over({})
    tensors = ledger.tensors
    seen = visible_sizes(source, tensors, depth)
    dim, patch = seen["dim"], seen["patch_size"]
    size, _ = image_size(source, tensors["pos_embed"].shape[1] - 1, patch, None)
    heads = heads_of(dim)
    check_heads(source, heads, dim)
    head = tensors.get("head.weight")
    values: dict[str, Any] = {
        "family": "image-classifier",
        "image_size": size,
        **seen,
        "heads": heads,
        "num_classes": 0 if head is None else head.shape[0],
        "layer_norm_epsilon": fixed.epsilon,
        "activation": fixed.activation,
        "output": "logits" if head is not None else "cls",
    }
    model, assumptions = configured(
        values,
        source,
        {
            "heads": "torchvision's vit_b, vit_l and vit_h",
            "layer_norm_epsilon": fixed.source,
            "activation": "nn.GELU in its MLPBlock",
        },
    )
    name = _NAMES.get((dim, patch), "VisionTransformer")
    how = torchvision_preprocessing(dim, patch, size) if isinstance(size, int) else None
    return Conversion(
        home="torchvision ViT",
        architecture=name,
        config=model,
        tensors=tensors,
        mapped=ledger.mapped,
        left_over=left,
        assumptions=assumptions,
        preprocessing=how,
        preprocessing_source=f"torchvision's IMAGENET1K_V1 weights of {name}" if how else "",
        resampling=fixed.resampling,
        notes=("other weights of torchvision (SWAG) are prepared differently: give --model a card",)
        if how
        else ("how images are prepared is not known",),
    )


def _block(ledger: Ledger, old: str, new: str) -> None:
    ledger.norm(f"{old}ln_1", f"{new}norm1")
    ledger.norm(f"{old}ln_2", f"{new}norm2")
    ledger.move(f"{old}self_attention.in_proj_weight", f"{new}attn.qkv.weight")
    ledger.move(f"{old}self_attention.in_proj_bias", f"{new}attn.qkv.bias")
    ledger.linear(f"{old}self_attention.out_proj", f"{new}attn.proj")
    # torchvision before 0.12 has its MLPs as linear_1 and linear_2.
    old_names = f"{old}mlp.linear_1.weight" in ledger.source.state
    first, second = ("linear_1", "linear_2") if old_names else ("0", "3")
    ledger.linear(f"{old}mlp.{first}", f"{new}mlp.fc1")
    ledger.linear(f"{old}mlp.{second}", f"{new}mlp.fc2")
