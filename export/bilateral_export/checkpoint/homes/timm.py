"""timm's `VisionTransformer`, and those who kept its names: DeiT, DeiT III, DINOv2's own files.

Names were taken from timm 1.0.31, facebookresearch/deit and facebookresearch/dinov2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bilateral_export.checkpoint.formats.folder import CONFIG
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.checkpoint.homes.conversion import (
    Conversion,
    Ledger,
    Source,
    configured,
    depth_of,
    image_size,
    square_grid,
    visible_sizes,
)
from bilateral_export.checkpoint.homes.documents import (
    pretrained_cfg_preprocessing,
    size_of,
    whole,
)
from bilateral_export.checkpoint.homes.facts import (
    FIXED,
    Fixed,
    heads_of,
    timm_activation,
    timm_preprocessing,
)
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import ImagePreprocessing

SIGNATURE = r"^(?P<root>.*?)patch_embed[.]proj[.]weight$"
_UNUSED = {
    r"^mask_token$": "used in pre-training only",
    r"^norm\.(weight|bias)$": "not used by its classifier, which norms what it pooled (fc_norm)",
}
# Names that only other architectures of timm have, and what they are.
_OTHERS = {
    r"^blocks\.\d+\.attn\.relative_position_bias_table|\.q_bias$": "a BEiT",
    r"^blocks\.\d+\.attns\.": "a ViT with parallel blocks",
    r"^blocks\.\d+\.mlp\.(w12|w1|fc1_g)\.": "a ViT with SwiGLU MLPs",
    r"^attn_pool\.": "a ViT with attention pooling (SigLIP)",
    r"^pre_logits\.fc\.": "a ViT with a representation layer before its head",
    r"^layers\.\d+\.(blocks|downsample)\.": "a Swin Transformer",
    r"^blocks\.\d+\.\d+\.": "a model whose blocks are in chunks (FSDP) or stages",
    r"^rope\.|\.rope\.": "a ViT with rotary positions",
}


def convert(source: Source) -> Conversion:
    """Rename a timm ViT; most names stay.

    Raises:
        UserError: It is another of timm's architectures, tensors are missing or unknown, or a
            document contradicts them.
    """
    state = source.state
    for pattern, what in _OTHERS.items():
        if found := next((name for name in state if re.search(pattern, name)), None):
            raise UserError(
                f"checkpoint {source.path} is {what} ({printable(found)})",
                "It is not supported; its plain ViT or DeiT counterpart is.",
            )
    if "blocks.0.norm1.weight" in state and "blocks.0.norm1.bias" not in state:
        raise UserError(
            f"checkpoint {source.path} has RMS norms", "It is not supported; layer norms are."
        )
    config = source.documents.get(CONFIG, {})
    ledger = Ledger(source, "a timm ViT")
    depth = depth_of(state, r"blocks\.(\d+)\.", source.path)
    ledger.linear("patch_embed.proj", "patch_embed.proj", may_lack_bias=True)
    tensors = ledger.tensors
    shown = _tokens(ledger, state)
    for index in range(depth):
        _block(ledger, f"blocks.{index}.")
    positions = ledger.take("pos_embed")
    for name in ("norm_pre", "head", "head_dist"):
        if f"{name}.weight" in state:
            (ledger.norm if name == "norm_pre" else ledger.linear)(name, name)
    # With fc_norm, timm's classifier has no norm before it; a file that has both uses one.
    final = "fc_norm" if "fc_norm.weight" in state else "norm"
    if f"{final}.weight" in state:
        ledger.norm(final, final)
    left = ledger.left_over(_UNUSED)
    assert positions is not None, "left_over has raised where it is missing"

    values, assumed = _values(source, ledger, depth, shown, positions)
    model, assumptions = configured(values, source, assumed)
    size = values["image_size"]
    pair = (size, size) if isinstance(size, int) else size
    architecture = _architecture(source)
    how, said, notes = _preprocessing(source, architecture, values["channels"], pair)
    labels = config.get("label_names")
    own = isinstance(labels, list) and len(labels) == values["num_classes"]
    return Conversion(
        home="facebookresearch DINOv2" if "mask_token" in state else "timm",
        architecture=architecture or "VisionTransformer",
        config=model,
        tensors=tensors,
        mapped=ledger.mapped,
        left_over=left,
        assumptions=assumptions,
        labels=tuple(map(str, labels)) if own and isinstance(labels, list) else (),
        preprocessing=how,
        preprocessing_source=said,
        resampling=_fixed(shown).resampling,
        notes=notes,
    )


def _tokens(ledger: Ledger, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Take prefix tokens; return the fields that they and other optional layers show."""
    for name in ("cls_token", "dist_token", "reg_token"):
        if name in state:
            ledger.move(name, name)
    if "register_tokens" in state:
        ledger.move("register_tokens", "reg_token")
    registers = ledger.tensors.get("reg_token")
    return {
        "class_token": "cls_token" in state,
        "distilled": "dist_token" in state,
        "registers": 0 if registers is None else registers.shape[1],
        "pre_norm": "norm_pre.weight" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "fc_norm": "fc_norm.weight" in state,
        "final_norm": "norm.weight" in state and "fc_norm.weight" not in state,
        "layer_scale": any(f"blocks.0.{name}" in state for name in ("ls1.gamma", "gamma_1")),
    }


def _block(ledger: Ledger, at: str) -> None:
    state = ledger.source.state
    for norm in ("norm1", "norm2"):
        ledger.norm(f"{at}{norm}", f"{at}{norm}")
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        ledger.linear(f"{at}{layer}", f"{at}{layer}", may_lack_bias=layer == "attn.qkv")
    for norm in ("attn.q_norm", "attn.k_norm"):
        if f"{at}{norm}.weight" in state:
            ledger.norm(f"{at}{norm}", f"{at}{norm}")
    for number in ("1", "2"):
        # DeiT III's own repository has its layer scales as gamma_1 and gamma_2.
        for name in (f"{at}ls{number}.gamma", f"{at}gamma_{number}"):
            if name in state:
                ledger.move(name, f"{at}ls{number}.gamma")


def _values(
    source: Source, ledger: Ledger, depth: int, shown: Mapping[str, Any], positions: Tensor
) -> tuple[dict[str, Any], dict[str, str]]:
    config, tensors = source.documents.get(CONFIG, {}), ledger.tensors
    seen = visible_sizes(source, tensors, depth)
    patch = seen["patch_size"]
    prefix = shown["class_token"] + shown["distilled"] + shown["registers"]
    said = _said_size(config)
    rows, guessed = _placed(source, positions, prefix, shown, patch, said)
    tensors["pos_embed"] = rows
    size, assumed_size = image_size(source, rows.shape[1] - prefix, patch, said)
    heads, architecture = _heads(source, seen["dim"], tensors)
    head = tensors.get("head.weight")
    classes = 0 if head is None else head.shape[0]
    if classes and "num_classes" in config and whole(config, "num_classes") != classes:
        raise UserError(
            f"checkpoint {source.path}: its {CONFIG} has num_classes {config['num_classes']},"
            f" the weights have {classes}",
            "Give the weights and the configuration of one model.",
        )
    pooling, why = _pooling(config, shown)
    fixed = _fixed(shown)
    named = timm_activation(architecture)
    values: dict[str, Any] = {
        "family": "image-classifier",
        "image_size": size,
        **seen,
        "heads": heads,
        **shown,
        "num_classes": classes,
        "pooling": pooling,
        "layer_norm_epsilon": fixed.epsilon,
        "activation": named or fixed.activation,
        "output": "logits" if classes else ("cls" if pooling == "cls" else "pooled"),
    }
    assumed = {
        "heads": "the channels of its q_norm"
        if shown["qk_norm"]
        else f"as {architecture} has"
        if architecture
        else "64 channels a head, but for the widths of huge and giant models",
        "layer_norm_epsilon": fixed.source,
        "activation": f"the name {architecture}" if named else "timm's default",
    }
    if why:
        assumed["pooling"] = why
    if assumed_size:
        assumed["image_size"] = f"the positions are a square{guessed}"
    return values, assumed


def _said_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width by a config.json: the model's arguments, then its pretrained_cfg."""
    arguments = config.get("model_args")
    if isinstance(arguments, Mapping) and (size := size_of(arguments.get("img_size"))):
        return size
    shape = _pretrained(config).get("input_size")
    return size_of(shape[1:]) if isinstance(shape, list | tuple) and len(shape) == 3 else None


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("pretrained_cfg")
    return nested if isinstance(nested, Mapping) else config


def _placed(
    source: Source,
    positions: Tensor,
    prefix: int,
    shown: Mapping[str, Any],
    patch: int,
    said: tuple[int, int] | None,
) -> tuple[Tensor, str]:
    """The position table with a row for every prefix token: zeros for those that have none.

    timm gives a position to all of them or (`no_embed_class`) to none, DINOv2's own code to the
    class token only. Which, the number of rows says where the patches are a square; else what was
    said of the image's size.
    """
    rows = positions.shape[1]
    known = None
    chosen = size_of(source.chosen.get("image_size")) or said
    if chosen is not None:
        known = (chosen[0] // patch) * (chosen[1] // patch)
    without = [0, prefix] + ([1] if shown["class_token"] and shown["registers"] else [])
    fitting = [
        count
        for count in sorted(set(without), reverse=True)
        if (rows - count == known if known else square_grid(rows - count))
    ]
    if not fitting:
        if known:
            raise UserError(
                f"checkpoint {source.path} has {rows} positions, and its images of"
                f" {chosen} pixels have {known} patches",
                "Give the weights and the image size of one model.",
            )
        raise UserError(
            f"checkpoint {source.path} has {rows} positions, which are not those of a square",
            'Give --model a JSON document: {"image_size": [height, width]}.',
        )
    count = fitting[0]
    zeros = positions.new_zeros(1, prefix - count, positions.shape[2])
    table = torch.cat([positions[:, :count], zeros, positions[:, count:]], dim=1)
    text = f", {count} of {prefix} prefix tokens with a position" if len(fitting) > 1 else ""
    return table, text


def _heads(
    source: Source, dim: int, tensors: Mapping[str, Tensor]
) -> tuple[int | None, str | None]:
    architecture = _architecture(source)
    norm = tensors.get("blocks.0.attn.q_norm.weight")
    if norm is not None:
        return dim // len(norm), architecture
    config = source.documents.get(CONFIG, {})
    arguments = config.get("model_args")
    said = arguments.get("num_heads") if isinstance(arguments, Mapping) else None
    heads = said if isinstance(said, int) else heads_of(dim, architecture)
    if heads is None and "heads" not in source.chosen:
        raise UserError(
            f"checkpoint {source.path} does not say which model it is: its width of {dim} does not"
            " show how many heads it has",
            'Give --model a JSON document such as {"heads": 3}, or a name that `bilateral models`'
            " lists.",
        )
    return heads, architecture


def _architecture(source: Source) -> str | None:
    said = source.architecture or source.documents.get(CONFIG, {}).get("architecture")
    return said if isinstance(said, str) else None


def _pooling(config: Mapping[str, Any], shown: Mapping[str, Any]) -> tuple[str, str]:
    """Pooling in this package's word, and where it comes from if the weights do not show it."""
    arguments = config.get("model_args")
    nested = arguments.get("global_pool") if isinstance(arguments, Mapping) else None
    said = config.get("global_pool") or nested
    if said in ("token", "avg"):
        return ("cls" if said == "token" else "mean"), CONFIG
    if said:
        raise UserError(f"{CONFIG} has global_pool {printable(said)}", "Supported: token and avg.")
    if not shown["class_token"]:
        return "mean", ""
    if shown["fc_norm"]:
        return "mean", "timm's fc_norm comes with global_pool avg"
    return "cls", "timm's default, global_pool token"


def _fixed(shown: Mapping[str, Any]) -> Fixed:
    return FIXED["timm-clip" if shown["pre_norm"] else "timm"]


def _preprocessing(
    source: Source,
    architecture: str | None,
    channels: int,
    size: tuple[int, int],
) -> tuple[ImagePreprocessing | None, str, tuple[str, ...]]:
    config = source.documents.get(CONFIG, {})
    cfg = _pretrained(config)
    if "mean" in cfg:
        how, problem = pretrained_cfg_preprocessing(cfg, channels, size)
        if how is None:
            return None, "", (f"{CONFIG} is left out for preprocessing: {problem}",)
        return how, f"pretrained_cfg in {CONFIG}", ()
    if architecture is not None and channels == 3:
        how = timm_preprocessing(architecture, size)
        if how is not None:
            return how, f"timm's default configuration of {architecture}", ()
    note = (
        "how images are prepared is not known: timm's own ViTs normalise with 0.5 and 0.5, DeiT"
        " with ImageNet's mean; give --model the name of its architecture, or a card"
    )
    return None, "", (note,)
