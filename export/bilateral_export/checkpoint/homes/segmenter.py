"""Segmenter (rstrudel/segmenter): a ViT encoder and a mask-transformer decoder.

The published encoders carry a classification head that nothing uses. Names were taken from
`segm/model/vit.py` and `segm/model/decoder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
from bilateral_export.checkpoint.homes.facts import FIXED, heads_of
from bilateral_export.errors import UserError

# The decoder, or the encoder's unused head, tells it from another model's "encoder." prefix.
SIGNATURE = r"^(?P<root>.*?)(?:encoder[.]head[.]weight|decoder[.](?:cls_emb|head[.]weight))$"
_UNUSED = {
    r"^encoder\.head(_dist)?\.": "the encoder's classification head, which Segmenter never uses"
}


def has_unused(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the unused head, by which Segmenter's own code wrote them."""
    return "encoder.head.weight" in state


def convert(source: Source) -> Conversion:
    """Take a published Segmenter; without a mask decoder, its encoder's features.

    Raises:
        UserError: Tensors are missing or unknown, or the sizes are not a model's.
    """
    fixed, state = FIXED["segmenter"], source.state
    ledger = Ledger(source, "a Segmenter")
    masks = "decoder.cls_emb" in state
    inner = "encoder." if masks else ""
    depth = depth_of(state, r"encoder\.blocks\.(\d+)\.", source.path)
    distilled = "encoder.dist_token" in state
    ledger.linear("encoder.patch_embed.proj", f"{inner}patch_embed.proj")
    for name in ("cls_token", "pos_embed", *(("dist_token",) if distilled else ())):
        # Without a head of its own, a distillation token is one more prefix token.
        new = "reg_token" if name == "dist_token" and not masks else name
        ledger.move(f"encoder.{name}", f"{inner}{new}")
    for index in range(depth):
        _block(ledger, f"encoder.blocks.{index}.", f"{inner}blocks.{index}.")
    ledger.norm("encoder.norm", f"{inner}norm")
    decoder_depth = depth_of(state, r"decoder\.blocks\.(\d+)\.", source.path)
    known = dict(_UNUSED)
    if masks:
        for index in range(decoder_depth):
            _block(ledger, f"decoder.blocks.{index}.", f"decoder.blocks.{index}.")
        ledger.linear("decoder.proj_dec", "decoder.proj_dec")
        for name in ("cls_emb", "proj_patch", "proj_classes"):
            ledger.move(f"decoder.{name}", f"decoder.{name}")
        for name in ("decoder_norm", "mask_norm"):
            ledger.norm(f"decoder.{name}", f"decoder.{name}")
    else:
        known[r"^decoder\.head\."] = "a linear decoder, which is not supported"
    left = ledger.left_over(known)

    tensors = ledger.tensors
    seen = visible_sizes(source, tensors, depth, inner)
    channels = seen.pop("channels")  # a Segmenter's images are in colour
    prefix = 1 + distilled
    patches = tensors[f"{inner}pos_embed"].shape[1] - prefix
    size, _ = image_size(source, patches, seen["patch_size"], None)
    if not isinstance(size, int):
        raise UserError(
            f"checkpoint {source.path}: a Segmenter's windows are square, not of"
            f" {size[0]}x{size[1]} pixels",
            'Give --model a JSON document with one number: {"image_size": PIXELS}.',
        )
    heads = heads_of(seen["dim"])
    check_heads(source, heads, seen["dim"])
    values: dict[str, Any] = {
        "family": "segmenter" if masks else "image-classifier",
        "image_size": size,
        **seen,
        "heads": heads,
        "layer_norm_epsilon": fixed.epsilon,
        "activation": fixed.activation,
    }
    notes = []
    if masks:
        values |= {
            "distilled": distilled,
            "decoder_depth": decoder_depth,
            "num_classes": tensors["decoder.cls_emb"].shape[1],
        }
    else:
        values |= {"channels": channels, "registers": prefix - 1, "num_classes": 0}
        values |= {"output": "tokens"}
        notes.append("there is no mask decoder: it can be exported for its encoder's features")
    model, assumptions = configured(
        values,
        source,
        {
            "heads": "64 channels a head, in the encoder and the decoder",
            "layer_norm_epsilon": fixed.source,
            "activation": "nn.GELU in segm/model/blocks.py",
        },
    )
    return Conversion(
        home="Segmenter (rstrudel)",
        architecture="Segmenter, mask transformer" if masks else "Segmenter's encoder",
        config=model,
        tensors=tensors,
        mapped=ledger.mapped,
        left_over=left,
        assumptions=assumptions,
        notes=tuple(notes),
    )


def _block(ledger: Ledger, old: str, new: str) -> None:
    for norm in ("norm1", "norm2"):
        ledger.norm(f"{old}{norm}", f"{new}{norm}")
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        ledger.linear(f"{old}{layer}", f"{new}{layer}")
