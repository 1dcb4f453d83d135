"""Hugging Face `transformers`: ViT, DeiT, DINOv2, with and without registers.

Published files have the names of transformers 4; transformers 5 writes others. Both are read. Names
were taken from transformers 4.57 and 5.24.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from bilateral_export.checkpoint.formats.folder import CONFIG, PROCESSOR
from bilateral_export.checkpoint.formats.text import printable
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
from bilateral_export.checkpoint.homes.documents import (
    labels_of,
    processor_preprocessing,
    size_of,
    whole,
)
from bilateral_export.checkpoint.homes.facts import FIXED, heads_of
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import ImagePreprocessing

_BODIES = ("vit", "deit", "dinov2", "dinov2_with_registers")
PATCHES = "embeddings.patch_embeddings.projection"
SIGNATURE = rf"^(?P<root>.*?)(?:(?:{'|'.join(_BODIES)})\.)?{PATCHES.replace('.', '[.]')}[.]weight$"
_TITLES = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
}
# Activations by the names of `hidden_act`.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_UNUSED = {
    r"embeddings\.mask_token$": "used in pre-training only",
    r"(^|\.)pooler\.dense\.": "the pooler, which no classifier and no feature uses",
    r"embeddings\.position_ids$": "an index, not a weight",
}
_ONE_MODEL = "Give the weights and the configuration of one model."


def convert(source: Source) -> Conversion:
    """Rename a Hugging Face ViT, DeiT or DINOv2.

    Raises:
        UserError: Tensors are missing or unknown, or a document contradicts them.
    """
    state = source.state
    body = next(n for n in state if re.match(SIGNATURE, n)).removesuffix(f"{PATCHES}.weight")
    config = source.documents.get(CONFIG, {})
    kind = _kind(source, body, config)
    layers = f"{body}layers." if any(n.startswith(f"{body}layers.") for n in state) else ""
    layers = layers or f"{body}encoder.layer."
    old = f"{layers}0.attention.attention.query.weight" in state
    title = f"Hugging Face {_TITLES[kind]} (names of transformers {4 if old else 5})"
    ledger = Ledger(source, f"a {title.partition(' (')[0]}")
    depth = depth_of(state, re.escape(layers) + r"(\d+)\.", source.path)

    ledger.linear(f"{body}{PATCHES}", "patch_embed.proj")
    ledger.move(f"{body}embeddings.cls_token", "cls_token")
    heads_of_class = _heads(ledger, body, state)
    for index in range(depth):
        _block(ledger, f"{layers}{index}.", f"blocks.{index}.", kind, old)
    ledger.norm(f"{body}layernorm", "norm")
    positions = ledger.take(f"{body}embeddings.position_embeddings")
    if "reg_token" in ledger.tensors and positions is not None:
        # Registers come behind the class token and have no position: rows of zeros. DeiT's
        # distillation token stands there too, and has one.
        registers = ledger.tensors["reg_token"].shape[1]
        if kind == "dinov2_with_registers":
            zeros = positions.new_zeros(1, registers, positions.shape[2])
            positions = torch.cat([positions[:, :1], zeros, positions[:, 1:]], dim=1)
    left = ledger.left_over(_UNUSED)
    assert positions is not None, "left_over has raised where it is missing"
    ledger.tensors["pos_embed"] = positions

    values, assumed = _values(source, ledger, kind, depth, heads_of_class)
    _check_config(source, config, values, depth)
    model, assumptions = configured(values, source, assumed)
    how, said, notes, run_size = _preprocessing(source, values)
    classes = values["num_classes"]
    return Conversion(
        home=title,
        architecture=str(next(iter(config.get("architectures") or []), "") or _TITLES[kind]),
        config=model,
        tensors=ledger.tensors,
        mapped=ledger.mapped,
        left_over=left,
        assumptions=assumptions,
        labels=labels_of(config, classes, source.path),
        preprocessing=how,
        preprocessing_source=said,
        resampling=FIXED[kind].resampling,
        run_size=run_size,
        notes=notes,
    )


def _kind(source: Source, body: str, config: Mapping[str, Any]) -> str:
    """Which of the four architectures: by names; ViT and DeiT without tokens look the same."""
    state = source.state
    if f"{body}embeddings.register_tokens" in state:
        found = "dinov2_with_registers"
    elif any(".layer_scale1.lambda1" in name for name in state):
        found = "dinov2"
    elif f"{body}embeddings.distillation_token" in state:
        found = "deit"
    else:
        found = "vit"
    said = config.get("model_type")
    if said is not None and said != found:
        known = "" if said in _BODIES else ", which is not supported"
        raise UserError(
            f"checkpoint {source.path} has the names of {_TITLES[found]}, and its {CONFIG} says"
            f" model_type {printable(said)}{known}",
            _ONE_MODEL,
        )
    return found


def _heads(ledger: Ledger, body: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Take prefix tokens and classification heads; return the fields that they show."""
    distilled = "distillation_classifier.weight" in state
    token = f"{body}embeddings.distillation_token"
    registers = f"{body}embeddings.register_tokens"
    if distilled:
        ledger.move(token, "dist_token")
        ledger.linear("cls_classifier", "head")
        ledger.linear("distillation_classifier", "head_dist")
    elif "classifier.weight" in state:
        ledger.linear("classifier", "head")
    if token in state and not distilled:
        ledger.move(token, "reg_token")
    if registers in state:
        ledger.move(registers, "reg_token")
    head = ledger.tensors.get("head.weight")
    return {
        "distilled": distilled,
        "registers": ledger.tensors["reg_token"].shape[1] if "reg_token" in ledger.tensors else 0,
        "num_classes": 0 if head is None else head.shape[0],
    }


def _block(ledger: Ledger, old: str, new: str, kind: str, names_of_4: bool) -> None:
    dino = kind.startswith("dinov2")
    ledger.norm(f"{old}{'norm1' if dino else 'layernorm_before'}", f"{new}norm1")
    ledger.norm(f"{old}{'norm2' if dino else 'layernorm_after'}", f"{new}norm2")
    attention = f"{old}attention."
    for part in ("query", "key", "value"):
        name = f"attention.{part}" if names_of_4 else f"{part[0]}_proj"
        ledger.linear(f"{attention}{name}", f"{new}{part}", may_lack_bias=True)
    for kind_of in ("weight", "bias"):
        parts = [ledger.tensors.pop(f"{new}{p}.{kind_of}", None) for p in ("query", "key", "value")]
        present = [part for part in parts if part is not None]
        if len(present) == len(parts):
            ledger.tensors[f"{new}attn.qkv.{kind_of}"] = torch.cat(present)
    ledger.linear(f"{attention}{'output.dense' if names_of_4 else 'o_proj'}", f"{new}attn.proj")
    plain = names_of_4 and not dino
    ledger.linear(f"{old}{'intermediate.dense' if plain else 'mlp.fc1'}", f"{new}mlp.fc1")
    ledger.linear(f"{old}{'output.dense' if plain else 'mlp.fc2'}", f"{new}mlp.fc2")
    if dino:
        ledger.move(f"{old}layer_scale1.lambda1", f"{new}ls1.gamma")
        ledger.move(f"{old}layer_scale2.lambda1", f"{new}ls2.gamma")


def _values(
    source: Source, ledger: Ledger, kind: str, depth: int, shown: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration's fields, and which of them the weights do not show, with their source."""
    config, tensors, fixed = source.documents.get(CONFIG, {}), ledger.tensors, FIXED[kind]
    seen = visible_sizes(source, tensors, depth)
    dim, patch = seen["dim"], seen["patch_size"]
    prefix = 1 + shown["registers"] + shown["distilled"]
    patches = tensors["pos_embed"].shape[1] - prefix
    size, assumed_size = image_size(source, patches, patch, size_of(config.get("image_size")))
    heads, by_rule = whole(config, "num_attention_heads"), False
    if heads is None:
        heads, by_rule = heads_of(dim), True
    check_heads(source, heads, dim, f"Put its {CONFIG} beside it, or give")
    activation = _ACTIVATIONS.get(config.get("hidden_act", "gelu"))
    if activation is None:
        raise UserError(
            f"{CONFIG} beside {source.path} has hidden_act {printable(config['hidden_act'])}",
            f"Supported: {', '.join(_ACTIVATIONS)}.",
        )
    head = tensors.get("head.weight")
    pooling = "cls"
    if kind.startswith("dinov2") and head is not None and head.shape[1] == 2 * dim:
        pooling = "cls_mean"
    values: dict[str, Any] = {
        "family": "image-classifier",
        "image_size": size,
        **seen,
        "heads": heads,
        **shown,
        "pooling": pooling,
        "layer_scale": "blocks.0.ls1.gamma" in tensors,
        "layer_norm_epsilon": config.get("layer_norm_eps", fixed.epsilon),
        "activation": activation,
        "output": "logits" if head is not None else "cls",
    }
    rule = "64 channels a head, but for the widths of huge and giant models"
    assumed = {
        "heads": rule if by_rule else CONFIG,
        "layer_norm_epsilon": CONFIG if "layer_norm_eps" in config else fixed.source,
        "activation": CONFIG if "hidden_act" in config else fixed.source,
    }
    if assumed_size:
        assumed["image_size"] = "the positions are a square"
    return values, assumed


def _check_config(
    source: Source, config: Mapping[str, Any], values: Mapping[str, Any], depth: int
) -> None:
    """Refuse a config.json with other sizes than the weights, all of them in one line."""
    ratio = values["mlp_ratio"]
    pairs = {
        "hidden_size": values["dim"],
        "num_hidden_layers": depth,
        "patch_size": values["patch_size"],
        "num_channels": values["channels"],
    }
    if "intermediate_size" in config:
        pairs["intermediate_size"] = int(values["dim"] * ratio)
    if "num_register_tokens" in config and config.get("model_type") == "dinov2_with_registers":
        pairs["num_register_tokens"] = values["registers"]
    wrong = [
        f"{name} {printable(config[name])}, the weights have {value}"
        for name, value in pairs.items()
        if name in config and size_of(config[name]) != size_of(value)
    ]
    if wrong:
        raise UserError(
            f"checkpoint {source.path}: its {CONFIG} has {'; '.join(wrong)}", _ONE_MODEL
        )


def _preprocessing(
    source: Source, values: Mapping[str, Any]
) -> tuple[ImagePreprocessing | None, str, tuple[str, ...], tuple[int, int] | None]:
    """Preprocessing, who says it, notes, and the size that DINOv2 is run at."""
    if PROCESSOR not in source.documents:
        note = f"no {PROCESSOR} beside the weights: how images are prepared is not known"
        return None, "", (note,), None
    how, problem = processor_preprocessing(source.documents[PROCESSOR], values["channels"])
    if how is None:
        return None, "", (f"{PROCESSOR} is left out: {problem}",), None
    size = values["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    if (how.height, how.width) == (height, width):
        return how, PROCESSOR, (), None
    patch = values["patch_size"]
    if not values["layer_scale"] or how.height % patch or how.width % patch:
        raise UserError(
            f"checkpoint {source.path}: its {PROCESSOR} makes images of {how.height}x{how.width}"
            f" pixels, the model takes {height}x{width}",
            _ONE_MODEL,
        )
    note = (
        f"positions interpolated from {height}x{width} pixels to the {how.height}x{how.width} of"
        f" {PROCESSOR}, as Hugging Face does when it runs the model"
    )
    return how, PROCESSOR, (note,), (how.height, how.width)
