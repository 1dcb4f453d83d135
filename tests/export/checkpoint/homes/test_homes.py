"""Checkpoints of other libraries give what a plain forward pass on their own names gives.

In FP64, on small random weights; `tests/builders/homes.py` has names, shapes and forward passes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.builders.homes import (
    CLASSES,
    DIM,
    HEADS,
    Sizes,
    State,
    Timm,
    huggingface_config,
    huggingface_forward,
    huggingface_state,
    segmenter_forward,
    segmenter_state,
    timm_forward,
    timm_state,
    torchvision_forward,
    torchvision_state,
)

from bilateral_export.checkpoint.homes.facts import heads_of, timm_activation
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError

SIZES = Sizes()
TOLERANCE = 1e-6


def images(sizes: Sizes, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, sizes.channels, sizes.height, sizes.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def answer(checkpoint: Checkpoint, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.build_model().double()(image)


def double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def agree(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).norm() / wanted.norm()) < TOLERANCE


def folder(path: Path, state: State, **documents: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors"
    )
    for name, document in documents.items():
        (path / f"{name}.json").write_text(json.dumps(document))
    return path


# --- Hugging Face -------------------------------------------------------------------------------

KINDS = ("vit", "deit", "dinov2", "dinov2_with_registers")


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_folder(tmp_path: Path, kind: str, version: int) -> None:
    state = huggingface_state(kind, version, SIZES)
    path = folder(tmp_path / "mine", state, config=huggingface_config(kind, SIZES))
    loaded = load_checkpoint(path)
    assert loaded.conversion is not None
    assert f"names of transformers {version}" in loaded.conversion.home
    assert loaded.card.name == "mine"
    assert loaded.card.labels == tuple(f"kind {index}" for index in range(CLASSES))
    agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_file_alone(tmp_path: Path, kind: str) -> None:
    state = huggingface_state(kind, 4, SIZES)
    save_file(state, tmp_path / "anything.bin")  # its content says what it is, not its name
    loaded = load_checkpoint(tmp_path / "anything.bin")
    agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES)))
    assert loaded.conversion is not None
    epsilon = "1e-06" if kind.startswith("dinov2") else "1e-12"
    assert any(f"layer_norm_epsilon {epsilon}" in line for line in loaded.conversion.assumptions)


def test_deit_with_both_heads_averages_them(tmp_path: Path) -> None:
    state = huggingface_state("deit", 4, SIZES, head="both")
    loaded = load_checkpoint(folder(tmp_path, state, config=huggingface_config("deit", SIZES)))
    agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_without_a_head_gives_features(tmp_path: Path, kind: str) -> None:
    state = huggingface_state(kind, 4, SIZES, head="", prefix=False)
    loaded = load_checkpoint(folder(tmp_path, state))
    hidden = huggingface_forward(double(state), images(SIZES))
    agree(answer(loaded, images(SIZES)), hidden[:, 0])
    assert loaded.conversion is not None
    assert "pooler.dense.weight" in loaded.conversion.left_over


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu_new", lambda x: F.gelu(x, approximate="tanh")),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
        ("relu", F.relu),
        ("silu", F.silu),
    ],
)
def test_the_configuration_names_the_activation(
    tmp_path: Path, name: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = huggingface_state("vit", 4, SIZES)
    config = huggingface_config("vit", SIZES, hidden_act=name, layer_norm_eps=1e-3)
    loaded = load_checkpoint(folder(tmp_path, state, config=config))
    wanted = huggingface_forward(double(state), images(SIZES), HEADS, 1e-3, function)
    agree(answer(loaded, images(SIZES)), wanted)


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_the_configuration_names_the_heads(tmp_path: Path, heads: int) -> None:
    state = huggingface_state("vit", 5, SIZES)
    config = huggingface_config("vit", SIZES, num_attention_heads=heads)
    loaded = load_checkpoint(folder(tmp_path, state, config=config))
    agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES), heads))


def test_parts_with_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    state = huggingface_state("vit", 4, SIZES)
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, some in parts.items():
        save_file({name: state[name] for name in some}, tmp_path / part)
    index = {"weight_map": {name: part for part, some in parts.items() for name in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        loaded = load_checkpoint(path)
        agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES)))
        assert "joined 2 parts" in loaded.notes


def processor(**changes: Any) -> dict[str, Any]:
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 36},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "resize", "interpolation"),
    [
        ({}, 36, "bicubic"),
        ({"resample": 2, "size": {"height": 40, "width": 36}}, (40, 36), "bilinear"),
        (
            {
                "image_processor_type": "ViTImageProcessor",
                "size": 32,
                "do_center_crop": False,
                "crop_size": None,
            },
            (32, 32),
            "bicubic",
        ),
    ],
)
def test_the_image_processor_becomes_the_preprocessing(
    tmp_path: Path, changes: dict[str, Any], resize: Any, interpolation: str
) -> None:
    state = huggingface_state("vit", 4, SIZES)
    path = folder(tmp_path, state, preprocessor_config=processor(**changes))
    how = load_checkpoint(path).card.preprocessing
    assert how is not None
    assert how.model_dump() == {
        "kind": "image",
        "height": 32,
        "width": 32,
        "channels": 3,
        "resize": resize,
        "interpolation": interpolation,
        "crop": "floor",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }


@pytest.mark.parametrize("change", [{"resample": 0}, {"do_resize": False}, {"rescale_factor": 1.0}])
def test_what_cannot_be_prepared_here_is_left_out_and_said(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    state = huggingface_state("vit", 4, SIZES)
    loaded = load_checkpoint(folder(tmp_path, state, preprocessor_config=processor(**change)))
    assert loaded.card.preprocessing is None
    assert any("preprocessor_config.json is left out" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("kind", "antialias"), [("dinov2", False), ("dinov2_with_registers", True)]
)
def test_dinov2_runs_at_the_size_of_its_processor(
    tmp_path: Path, kind: str, antialias: bool
) -> None:
    trained = Sizes(height=48, width=48)
    state = huggingface_state(kind, 4, trained)
    config = huggingface_config(kind, trained)
    path = folder(tmp_path, state, config=config, preprocessor_config=processor())
    loaded = load_checkpoint(path)
    assert loaded.card.model.image_size == 32
    assert loaded.card.preprocessing.resize == 36
    rows = double(state)[f"{kind}.embeddings.position_embeddings"]
    grid = rows[:, 1:].float().unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (4, 4), mode="bicubic", align_corners=False, antialias=antialias)
    rows = torch.cat([rows[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).double()], 1)
    moved = double(state) | {f"{kind}.embeddings.position_embeddings": rows}
    agree(answer(loaded, images(SIZES)), huggingface_forward(moved, images(SIZES)))


# --- timm ---------------------------------------------------------------------------------------

TIMM = {
    "vit": Timm(),
    "deit_distilled": Timm(distilled=True),
    "deit3": Timm(layer_scale="ls{}.gamma", embed_prefix=False),
    "deit3's repository": Timm(layer_scale="gamma_{}", embed_prefix=False),
    "no class token": Timm(class_token=False, pool="avg"),
    "no class token, norm": Timm(class_token=False, pool="avg", fc_norm=False),
    "average, fc_norm": Timm(pool="avg"),
    "registers": Timm(registers=4, embed_prefix=False, layer_scale="ls{}.gamma"),
    "registers with positions": Timm(registers=3),
    "registers, average": Timm(registers=4, embed_prefix=False, pool="avg"),
    "pre_norm": Timm(pre_norm=True),
    "qk_norm": Timm(qk_norm=True),
    "no biases, no final norm": Timm(qkv_bias=False, final_norm=False),
}


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_state_dict(tmp_path: Path, name: str) -> None:
    kind = TIMM[name]
    state = timm_state(kind, SIZES)
    torch.save(state, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    agree(answer(loaded, images(SIZES)), timm_forward(double(state), images(SIZES), kind))


@pytest.mark.parametrize(
    "sizes",
    [Sizes(patch=8), Sizes(56, 56, 14), Sizes(64, 64, 16), Sizes(96, 96, 32), Sizes(channels=1)],
    ids=str,
)
def test_patches_and_channels(tmp_path: Path, sizes: Sizes) -> None:
    state = timm_state(Timm(), sizes)
    torch.save(state, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    agree(answer(loaded, images(sizes)), timm_forward(double(state), images(sizes), Timm()))


def test_images_that_are_not_square(tmp_path: Path) -> None:
    sizes = Sizes(height=16, width=40)
    state = timm_state(Timm(), sizes)
    given = tmp_path / "size.json"
    given.write_text('{"image_size": [16, 40]}')
    torch.save(state, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth", model=str(given))
    agree(answer(loaded, images(sizes)), timm_forward(double(state), images(sizes), Timm()))
    state = huggingface_state("vit", 5, sizes)
    path = folder(tmp_path / "hf", state, config=huggingface_config("vit", sizes))
    agree(
        answer(load_checkpoint(path), images(sizes)),
        huggingface_forward(double(state), images(sizes)),
    )


def test_timms_configuration_is_read(tmp_path: Path) -> None:
    kind = Timm(pool="avg", fc_norm=False)
    config = {
        "architecture": "vit_mine_patch8_32",
        "num_classes": CLASSES,
        "global_pool": "avg",
        "model_args": {"num_heads": 4},
        "label_names": list("abcde"),
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    state = timm_state(kind, SIZES)
    loaded = load_checkpoint(folder(tmp_path, state, config=config))
    assert loaded.card.labels == tuple("abcde")
    assert loaded.card.preprocessing.resize == 35  # floor(32 / 0.9)
    assert (loaded.card.model.heads, loaded.card.model.pooling) == (4, "mean")


@pytest.mark.parametrize(
    ("name", "mean", "resize"),
    [("vit_small_patch16_224", 0.5, 248), ("deit3_small_patch16_224", 0.485, 248)],
)
def test_a_name_of_timm_brings_its_preprocessing(
    tmp_path: Path, name: str, mean: float, resize: int
) -> None:
    torch.save(timm_state(Timm(), Sizes(224, 224, 16)), tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth", model=name)
    assert loaded.card.name == name
    assert (loaded.card.preprocessing.mean[0], loaded.card.preprocessing.resize) == (mean, resize)


def test_training_arguments_say_how_images_are_prepared(tmp_path: Path) -> None:
    arguments = {"model": "deit3_small_patch16_LS", "eval_crop_ratio": 1.0, "nb_classes": CLASSES}
    state = timm_state(TIMM["deit3's repository"], Sizes(224, 224, 16))
    torch.save({"model": state, "args": argparse.Namespace(**arguments)}, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    how = loaded.card.preprocessing
    assert (how.mean[0], how.resize) == (0.485, 224)
    assert loaded.preprocessing_source == (
        "timm's default configuration of deit3_small_patch16_LS, with the training arguments'"
        " crop 1.0"
    )


# --- torchvision and Segmenter ------------------------------------------------------------------


def test_a_torchvision_state_dict(tmp_path: Path) -> None:
    state = torchvision_state(SIZES)
    torch.save(state, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    agree(answer(loaded, images(SIZES)), torchvision_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("distilled", [False, True])
def test_a_published_segmenter(tmp_path: Path, distilled: bool) -> None:
    state = segmenter_state(SIZES, distilled)
    torch.save({"model": state, "n_cls": CLASSES}, tmp_path / "checkpoint.pth")
    loaded = load_checkpoint(tmp_path / "checkpoint.pth")
    with torch.no_grad():
        scores = loaded.build_model().double().scores(images(SIZES))
    agree(scores, segmenter_forward(double(state), images(SIZES), SIZES))
    assert loaded.card.model.layer_norm_epsilon == 1e-5
    assert loaded.conversion is not None
    assert "encoder.head.weight" in loaded.conversion.left_over


def test_a_segmenter_of_windows_that_are_not_square_is_refused(tmp_path: Path) -> None:
    path, given = tmp_path / "segmenter.pth", tmp_path / "given.json"
    torch.save({"model": segmenter_state(SIZES)}, path)
    given.write_text('{"image_size": [16, 64]}')  # as many patches as the table has
    with pytest.raises(UserError, match="windows are square, not of 16x64 pixels"):
        load_checkpoint(path, model=str(given))


def test_a_segmenter_without_a_mask_decoder_gives_features(tmp_path: Path) -> None:
    state = segmenter_state(SIZES, masks=False)
    torch.save({"model": state}, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    wanted = segmenter_forward(double(state), images(SIZES), SIZES)
    agree(answer(loaded, images(SIZES)), wanted)
    assert any("no mask decoder" in note for note in loaded.notes)


# --- wrappers, prefixes, types ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "prefix"),
    [
        ("model", ""),
        ("model_ema", "module."),
        ("state_dict", "model."),
        ("state_dict", "net."),
        ("state_dict", "model.backbone."),
        ("module", "_orig_mod."),
        ("state_dict", "model._fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("home", ["timm", "hugging face"])
def test_wrappers_are_taken_off(tmp_path: Path, entry: str, prefix: str, home: str) -> None:
    state = timm_state(Timm(), SIZES) if home == "timm" else huggingface_state("vit", 4, SIZES)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    if prefix.startswith("model."):
        wrapped["criterion.weight"] = torch.zeros(3)  # Lightning keeps the loss's beside them
    content = {entry: wrapped, "epoch": 3, "pytorch-lightning_version": "2.5.0"}
    torch.save(content, tmp_path / "c.ckpt")
    loaded = load_checkpoint(tmp_path / "c.ckpt")
    wanted = (
        timm_forward(double(state), images(SIZES), Timm())
        if home == "timm"
        else huggingface_forward(double(state), images(SIZES))
    )
    agree(answer(loaded, images(SIZES)), wanted)


def test_one_of_two_prefixes_is_chosen(tmp_path: Path) -> None:
    student, teacher = timm_state(Timm(), SIZES), timm_state(Timm(registers=4), SIZES)
    both = {f"student.{name}": t for name, t in student.items()}
    both |= {f"teacher.{name}": t for name, t in teacher.items()}
    torch.save({"state_dict": both}, tmp_path / "c.ckpt")
    for weights in ("teacher.", "state_dict:teacher."):
        loaded = load_checkpoint(tmp_path / "c.ckpt", weights=weights)
        assert loaded.weights == "state_dict:teacher."
        assert loaded.card.model.registers == 4
        assert loaded.conversion is not None
        assert len(loaded.conversion.left_over) == len(student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {n: t.to(dtype) for n, t in huggingface_state("vit", 4, SIZES).items()}
    loaded = load_checkpoint(folder(tmp_path, state))
    assert all(tensor.dtype == dtype for tensor in loaded.state.values())
    agree(answer(loaded, images(SIZES)), huggingface_forward(double(state), images(SIZES)))


def test_what_the_weights_do_not_show_can_be_given(tmp_path: Path) -> None:
    state = timm_state(Timm(), SIZES)
    torch.save(state, tmp_path / "c.pth")
    given = tmp_path / "given.json"
    given.write_text('{"heads": 4, "layer_norm_epsilon": 0.001, "activation": "relu"}')
    loaded = load_checkpoint(tmp_path / "c.pth", model=str(given))
    model = loaded.card.model
    assert (model.heads, model.layer_norm_epsilon, model.activation) == (4, 1e-3, "relu")
    assert model.dim == DIM
    assert loaded.conversion is not None
    assert "heads 4: --model" in loaded.conversion.assumptions


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("vit_base_patch32_clip_quickgelu_224", "quick_gelu"),
        ("vit_so400m_patch16_siglip_256", "gelu_tanh"),
        ("vit_large_patch16_siglip_gap_512", "gelu_tanh"),
        ("vit_base_patch16_siglip_224", None),
        ("vit_small_patch16_224", None),
        (None, None),
    ],
)
def test_names_of_timm_tell_another_activation(
    architecture: str | None, activation: str | None
) -> None:
    assert timm_activation(architecture) == activation


@pytest.mark.parametrize(
    ("dim", "architecture", "heads"),
    [
        (768, None, 12),
        (768, "vit_base_patch16_gap_224", 16),
        (1536, "vit_giantopt_patch16_siglip_256", 16),
        (1408, None, 16),
        (1152, "vit_so400m_patch14_siglip_224", 16),
        (100, None, None),
    ],
)
def test_published_models_have_a_known_number_of_heads(
    dim: int, architecture: str | None, heads: int | None
) -> None:
    assert heads_of(dim, architecture) == heads


def test_a_configuration_keeps_the_epsilon_of_the_home(tmp_path: Path) -> None:
    sizes = Sizes(512, 512, 16, classes=150)
    state = segmenter_state(sizes)
    torch.save({"model": state}, tmp_path / "c.pth")
    name = {"family": "segmenter", "dim": DIM, "heads": HEADS, "depth": 2, "mlp_ratio": 0.75}
    (tmp_path / "mine.json").write_text(json.dumps(name))
    loaded = load_checkpoint(tmp_path / "c.pth", model=str(tmp_path / "mine.json"))
    assert loaded.card.model.layer_norm_epsilon == 1e-5  # Segmenter's own, not this package's
    assert loaded.card.name == "mine"


def test_what_contradicts_another_home_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(huggingface_state("vit", 4, SIZES), path)
    with pytest.raises(UserError, match="positions for 16 patches, and images of 224x224"):
        load_checkpoint(path, model="deit_tiny_patch16_224")
    (tmp_path / "given.json").write_text('{"dim": 192}')
    with pytest.raises(UserError, match="has dim 128, and --model says 192"):
        load_checkpoint(path, model=str(tmp_path / "given.json"))
