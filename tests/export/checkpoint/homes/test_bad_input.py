"""What is broken or of another kind is refused in one line: what it is, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.builders.homes import (
    Sizes,
    State,
    Timm,
    huggingface_config,
    huggingface_state,
    segmenter_state,
    timm_state,
    torchvision_state,
)

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError

SIZES = Sizes()
VIT = huggingface_config("vit", SIZES)


def folder(path: Path, state: State, config: dict[str, Any] | None = None, **others: Any) -> Path:
    path.mkdir()
    if state:
        save_file({name: t.contiguous() for name, t in state.items()}, path / "model.safetensors")
    for name, document in {"config": config, **others}.items():
        if document is not None:
            (path / f"{name}.json").write_text(json.dumps(document))
    return path


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


def vit(version: int = 4) -> State:
    return huggingface_state("vit", version, SIZES)


def torch_file(path: Path, content: Any) -> Path:
    path.mkdir()
    torch.save(content, path / "c.pth")
    return path / "c.pth"


def shards(path: Path, change: Callable[[dict[str, State], dict[str, str]], None]) -> Path:
    state, names = vit(), sorted(vit())
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    held = {part: {name: state[name] for name in some} for part, some in parts.items()}
    index = {name: part for part, some in parts.items() for name in some}
    change(held, index)
    path.mkdir()
    for part, some in held.items():
        save_file(some, path / part)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def mixed(held: dict[str, State], _index: dict[str, str]) -> None:
    """The second part is that of a model with fewer blocks."""
    held["b.safetensors"] = without(held["b.safetensors"], ".layer.1.")


def grown(held: dict[str, State], _index: dict[str, str]) -> None:
    held["a.safetensors"]["another"] = torch.zeros(2)


def resized(held: dict[str, State], _index: dict[str, str]) -> None:
    """The second part is that of a wider model."""
    held["b.safetensors"] = {n: torch.cat([t, t]) for n, t in held["b.safetensors"].items()}


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def bin_folder(path: Path) -> Path:
    folder(path, {}, VIT)
    torch.save({"a": RunsCode()}, path / "pytorch_model.bin")
    return path


def renamed(name: str, content: bytes, path: Path) -> Path:
    folder(path, {}, VIT)
    (path / name).write_bytes(content)
    return path


def two_models(path: Path) -> Path:
    state = timm_state(Timm(), SIZES)
    both = {f"{prefix}.{n}": t for prefix in ("student", "teacher") for n, t in state.items()}
    return torch_file(path, {"state_dict": both})


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "config: depth": (
        lambda path: folder(path, vit(), VIT | {"num_hidden_layers": 12}),
        r"config.json has num_hidden_layers 12, the weights have 2. Give the weights and the conf",
    ),
    "config: width and patches": (
        lambda path: folder(path, vit(), VIT | {"hidden_size": 768, "patch_size": 16}),
        r"hidden_size 768, the weights have 128; patch_size 16, the weights have 8",
    ),
    "config: image size": (
        lambda path: folder(path, vit(), VIT | {"image_size": 224}),
        r"positions for 16 patches, and images of 224x224 pixels have 784 of 8x8",
    ),
    "config: classes": (
        lambda path: folder(path, vit(), VIT | {"id2label": {"0": "cat", "1": "dog"}}),
        r"names 2 classes, the weights have 5",
    ),
    "config: heads": (
        lambda path: folder(path, vit(), VIT | {"num_attention_heads": 3}),
        r"dim 128 is not a multiple of heads 3",
    ),
    "config: another model": (
        lambda path: folder(path, vit(), VIT | {"model_type": "vit_mae"}),
        r"has the names of ViT, and its config.json says model_type vit_mae, which is not supp",
    ),
    "config: activation": (
        lambda path: folder(path, vit(), VIT | {"hidden_act": "mish"}),
        r"hidden_act mish. Supported: gelu,",
    ),
    "processor: size": (
        lambda path: folder(
            path,
            vit(),
            VIT,
            preprocessor_config={
                "image_processor_type": "ViTImageProcessor",
                "size": 64,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
        ),
        r"its preprocessor_config.json makes images of 64x64 pixels, the model takes 32x32",
    ),
    "an unknown architecture": (
        lambda path: folder(path, {"conv1.weight": torch.zeros(3)}, {"model_type": "resnet"}),
        r"Hugging Face folder with model_type resnet, which is not supported",
    ),
    "a block is missing": (
        lambda path: folder(path, without(vit(), ".layer.0."), VIT),
        r"has 2 blocks by its names, without number 0. Give the whole file",
    ),
    "a tensor is missing": (
        lambda path: folder(path, without(vit(), "layer.1.output.dense.bias")),
        r"1 of its tensors is missing: vit.encoder.layer.1.output.dense.bias. Give the whole",
    ),
    "a tensor too many": (
        lambda path: folder(path, vit() | {"vit.encoder.layer.0.gate": torch.zeros(2)}),
        r"has no place for: vit.encoder.layer.0.gate. It is another architecture",
    ),
    "shards: one is missing": (
        lambda path: shards(path, lambda held, _: held.pop("b.safetensors") and None),
        r"its index names 2 parts, of which 1 is missing: b.safetensors. Download every file",
    ),
    "shards: of another depth": (
        lambda path: shards(path, mixed),
        r"part b.safetensors is not the one its index describes: it does not hold vit.enc",
    ),
    "shards: of another model": (
        lambda path: shards(path, grown),
        r"part a.safetensors is not the one .* holds another, which it should not",
    ),
    "shards: of another width": (
        lambda path: shards(path, resized),
        r"contradicts|not|does not fit",
    ),
    "shards: outside the folder": (
        lambda path: shards(path, lambda _, index: index.update(x="../../secret")),
        r"names a part outside its folder \(../../secret\): refused",
    ),
    "an index that is not one": (
        lambda path: renamed("model.safetensors.index.json", b'{"weight_map": 3}', path),
        r"does not say which part holds which tensor",
    ),
    "two prefixes": (
        two_models,
        r"2 models, under the prefixes student., teacher.. Say which with --weights, such as",
    ),
    "a LoRA adapter, by its names": (
        lambda path: folder(path, {"base.vit.q.lora_A.weight": torch.zeros(2, 2)}),
        r"has the names of a LoRA adapter.*Merge it into its base model",
    ),
    "a LoRA adapter's folder": (
        lambda path: folder(path, {}, None, adapter_config={"peft_type": "LORA"}),
        r"is a directory: a LoRA adapter.*Merge it into its base model",
    ),
    "GPTQ": (
        lambda path: folder(path, {"vit.q.qweight": torch.zeros(2, dtype=torch.int32)}, VIT),
        r"has the names of quantised weights. Give the weights they were made from",
    ),
    "GPTQ, by its config": (
        lambda path: folder(path, vit(), VIT | {"quantization_config": {"quant_method": "gptq"}}),
        r"is quantised \(quant_method gptq in its config.json\). Give the weights it was made",
    ),
    "int8": (
        lambda path: folder(path, {n: (t * 9).to(torch.int8) for n, t in vit().items()}, VIT),
        r"not floating point: .* is int8",
    ),
    "Flax": (
        lambda path: renamed("flax_model.msgpack", b"\x81\xa6params\x80", path),
        r"is a directory: a Flax model. Give PyTorch weights",
    ),
    "TensorFlow": (
        lambda path: renamed("tf_model.h5", b"\x89HDF\r\n\x1a\n", path),
        r"is a directory: a TensorFlow model. Give PyTorch weights",
    ),
    "a DeepSpeed folder": (
        lambda path: renamed("zero_to_fp32.py", b"", path),
        r"a DeepSpeed checkpoint in partitions. Run the zero_to_fp32.py inside it",
    ),
    "a folder without weights": (
        lambda path: folder(path, {}, VIT),
        r"a Hugging Face folder without weights. Download its model.safetensors",
    ),
    "a .bin that wants to run code": (bin_folder, r"wants to run code when it is read .*: refused"),
    "timm: heads cannot be seen": (
        lambda path: torch_file(path, {n: t[..., :] for n, t in _narrow().items()}),
        r"does not say which model it is: its width of 96 does not show how many heads",
    ),
    "timm: one bias is missing": (
        lambda path: torch_file(path, without(timm_state(Timm(), SIZES), "1.attn.qkv.bias")),
        r"1 of its tensors is missing: blocks.1.attn.qkv.bias. Give the whole file",
    ),
    "timm: SwiGLU": (
        lambda path: torch_file(
            path, timm_state(Timm(), SIZES) | {"blocks.0.mlp.w12.weight": torch.zeros(2)}
        ),
        r"is a ViT with SwiGLU MLPs \(blocks.0.mlp.w12.weight\)",
    ),
    "timm: attention pooling": (
        lambda path: torch_file(
            path, timm_state(Timm(), SIZES) | {"attn_pool.latent": torch.zeros(2)}
        ),
        r"is a ViT with attention pooling \(SigLIP\)",
    ),
    "timm: RMS norms": (
        lambda path: torch_file(path, without(timm_state(Timm(), SIZES), "norm1.bias")),
        r"has RMS norms. It is not supported",
    ),
    "timm: not a square": (
        lambda path: torch_file(path, timm_state(Timm(), Sizes(height=16, width=40))),
        r'positions, which are not those of a square.*"image_size"',
    ),
    "torchvision: truncated": (
        lambda path: torch_file(path, without(torchvision_state(SIZES), "encoder_layer_1.mlp")),
        r"has the names of a torchvision ViT, but 4 of its tensors are missing",
    ),
    "Segmenter: half a decoder": (
        lambda path: torch_file(path, {"model": without(segmenter_state(SIZES), "decoder.proj")}),
        r"has the names of a Segmenter, but 4 of its tensors are missing",
    ),
}


def _narrow() -> State:
    """A ViT whose width is not a multiple of 64."""
    return {
        name: tensor[tuple(slice(0, 96 if size == 128 else None) for size in tensor.shape)]
        .clone()
        .contiguous()
        for name, tensor in timm_state(Timm(), SIZES).items()
    }


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write, message = BROKEN[case]
    path = write(tmp_path / "broken")
    with pytest.raises(UserError, match=message) as refusal:
        load_checkpoint(path)
    text = str(refusal.value)
    assert text.isprintable()
    assert len(text) - text.count(str(path)) * len(str(path)) < 400
