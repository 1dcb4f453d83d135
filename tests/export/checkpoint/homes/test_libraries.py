"""The plain forward passes of `tests/builders/homes.py` are those of the libraries they describe.

In FP64, on the same small random weights; positions at other sizes, and what the names of timm's
models tell, are compared too. `make references` installs the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders.homes import (
    DEPTH,
    DIM,
    HEADS,
    HIDDEN,
    Sizes,
    State,
    Timm,
    huggingface_config,
    huggingface_forward,
    huggingface_state,
    timm_forward,
    timm_state,
    torchvision_forward,
    torchvision_state,
)
from tests.export.checkpoint.homes.test_homes import KINDS, TIMM, double, images

from bilateral_export.checkpoint.homes.conversion import Source
from bilateral_export.checkpoint.homes.timm import convert
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.models.classifier import ImageClassifierConfig

SIZES = Sizes()
TOLERANCE = 1e-12

# Operators of torchvision's C++ library, which does not load beside another build of torch.
# Importing torchvision asks for their schemas; no model here calls them.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[torch.library.Library] = []  # its operators exist as long as it is referenced


def library(name: str) -> Any:
    """Import a library; skip the test where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make references")
    if importlib.util.find_spec("torchvision") is not None:  # the other two import it
        _import_torchvision()
    return importlib.import_module(name)


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        definitions = torch.library.Library("torchvision", "DEF")
        for schema in _OPERATORS:
            definitions.define(schema)
        _defined.append(definitions)
        importlib.import_module("torchvision")


def agree(model: torch.nn.Module, state: State, wanted: torch.Tensor) -> None:
    """Load the weights, every one of them and no other, and compare the answers."""
    model.double().eval().load_state_dict(double(state), strict=True)
    with torch.no_grad():
        got = model(images(SIZES))
    if not isinstance(got, torch.Tensor):
        got = got.logits if "logits" in got else got.last_hidden_state
    assert got.shape == wanted.shape
    assert float((got - wanted).norm() / wanted.norm()) < TOLERANCE


_CLASSES = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}


def huggingface_model(kind: str, ending: str, **arguments: Any) -> torch.nn.Module:
    """A model of transformers; its eager attention takes the softmax in float32, this one not."""
    transformers = library("transformers")
    document = huggingface_config(kind, SIZES, attn_implementation="sdpa")
    config = getattr(transformers, f"{_CLASSES[kind]}Config")(**document)
    if kind.startswith("dinov2"):
        # Whole numbers only, says its check; its model takes any.
        object.__setattr__(config, "mlp_ratio", HIDDEN / DIM)
    model: torch.nn.Module = getattr(transformers, f"{_CLASSES[kind]}{ending}")(config, **arguments)
    return model


def huggingface_version() -> int:
    """Of the transformers installed, the first number."""
    return int(library("transformers").__version__.partition(".")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_classifier(kind: str) -> None:
    state = huggingface_state(kind, huggingface_version(), SIZES)
    model = huggingface_model(kind, "ForImageClassification")
    agree(model, state, huggingface_forward(double(state), images(SIZES)))


def test_a_hugging_face_deit_with_both_heads() -> None:
    state = huggingface_state("deit", huggingface_version(), SIZES, head="both")
    model = huggingface_model("deit", "ForImageClassificationWithTeacher")
    agree(model, state, huggingface_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_body(kind: str) -> None:
    state = huggingface_state(kind, huggingface_version(), SIZES, head="", prefix=False)
    pools = not kind.startswith("dinov2")
    if not pools:  # DINOv2 has no pooler
        state = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    model = huggingface_model(kind, "Model")
    agree(model, state, huggingface_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model(name: str) -> None:
    kind = TIMM[name]
    state = timm_state(kind, SIZES)
    if kind.layer_scale == "gamma_{}":  # DeiT III's repository; timm renames on loading
        for index in range(DEPTH):
            for number in (1, 2):
                scale = state.pop(f"blocks.{index}.gamma_{number}")
                state[f"blocks.{index}.ls{number}.gamma"] = scale
    agree(timm_model(kind), state, timm_forward(double(state), images(SIZES), kind))


def timm_model(kind: Timm, **more: Any) -> torch.nn.Module:
    """timm's VisionTransformer with those arguments."""
    library("timm")
    module = importlib.import_module(
        "timm.models.deit" if kind.distilled else "timm.models.vision_transformer"
    )
    build = module.VisionTransformerDistilled if kind.distilled else module.VisionTransformer
    model: torch.nn.Module = build(
        img_size=(SIZES.height, SIZES.width),
        patch_size=SIZES.patch,
        in_chans=SIZES.channels,
        num_classes=SIZES.classes,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / DIM,
        class_token=kind.class_token,
        reg_tokens=kind.registers,
        no_embed_class=not kind.embed_prefix,
        init_values=1.0 if kind.layer_scale else None,
        pre_norm=kind.pre_norm,
        qk_norm=kind.qk_norm,
        qkv_bias=kind.qkv_bias,
        final_norm=kind.final_norm,
        fc_norm=kind.fc_norm,
        global_pool=kind.pool,
        norm_layer=partial(torch.nn.LayerNorm, eps=kind.epsilon),
        **more,
    )
    return model


def test_a_torchvision_model() -> None:
    library("torchvision")
    transformer = importlib.import_module("torchvision.models.vision_transformer")
    model = transformer.VisionTransformer(
        image_size=SIZES.height,
        patch_size=SIZES.patch,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=DIM,
        mlp_dim=HIDDEN,
        num_classes=SIZES.classes,
    )
    state = torchvision_state(SIZES)
    agree(model, state, torchvision_forward(double(state), images(SIZES)))


@pytest.mark.parametrize("size", [(16, 24), (48, 48)])
def test_positions_at_another_size_are_timms(tmp_path: Path, size: tuple[int, int]) -> None:
    kind = Timm(registers=2)
    state = timm_state(kind, SIZES)
    theirs = timm_model(kind, dynamic_img_size=True).double().eval()
    theirs.load_state_dict(double(state))
    torch.save(state, tmp_path / "c.pth")
    ours = at_resolution(load_checkpoint(tmp_path / "c.pth"), size).build_model().double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = theirs(image), ours(image)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6  # interpolated in float32


@pytest.mark.parametrize("size", [(16, 24), (32, 32), (48, 64)])
def test_one_model_of_several_sizes_is_timms_at_each(tmp_path: Path, size: tuple[int, int]) -> None:
    kind = Timm(registers=2)
    state = timm_state(kind, SIZES)
    theirs = timm_model(kind, dynamic_img_size=True).double().eval()
    theirs.load_state_dict(double(state))
    torch.save(state, tmp_path / "c.pth")
    several = for_sizes(load_checkpoint(tmp_path / "c.pth"), [(16, 16), (64, 64)])
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = theirs(image), several.build_model().double()(image)
    # timm interpolates in float32 (resample_abs_pos_embed).
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_one_model_of_several_sizes_is_hugging_faces_at_each(tmp_path: Path, kind: str) -> None:
    state = huggingface_state(kind, huggingface_version(), SIZES)
    theirs = huggingface_model(kind, "ForImageClassification").double().eval()
    theirs.load_state_dict(double(state))
    torch.save(state, tmp_path / "c.pth")
    several = for_sizes(load_checkpoint(tmp_path / "c.pth"), [(16, 16), (64, 64)])
    image = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted, got = theirs(image).logits, several.build_model().double()(image)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6  # interpolated in float32


def test_positions_at_another_size_are_torchvisions(tmp_path: Path) -> None:
    library("torchvision")
    module = importlib.import_module("torchvision.models.vision_transformer")
    state = torchvision_state(SIZES)
    torch.save(state, tmp_path / "c.pth")
    ours = at_resolution(load_checkpoint(tmp_path / "c.pth"), 48).state["pos_embed"]
    theirs = module.interpolate_embeddings(48, SIZES.patch, dict(state))["encoder.pos_embedding"]
    assert float((ours - theirs).abs().max()) < 1e-6


# Of timm's architectures, those that are none of a plain ViT's: refused by their names.
_OTHERS = ("siglip_224", "siglip_256", "siglip_384", "siglip_512", "18x2", "xp_", "rpn", "radio")
_OTHERS += ("vit_dlittle", "vit_dwee", "vit_dpwee")  # differential attention
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def test_the_names_of_timms_models_bring_what_their_weights_do_not_show(tmp_path: Path) -> None:
    timm = library("timm")
    names = [n for m in ("vision_transformer", "deit") for n in timm.list_models(module=m)]
    checked = 0
    for name in names:
        known = name.startswith(("vit_tiny", "vit_small", "vit_base", "deit")) or "_gap_" in name
        if not known or any(part in name for part in _OTHERS):
            continue
        with torch.device("meta"):
            model = timm.create_model(name)
        block = model.blocks[0]
        if not hasattr(block, "attn"):
            continue  # parallel blocks
        state = {n: torch.empty(1).expand(t.shape) for n, t in model.state_dict().items()}
        found = convert(Source(tmp_path, state, architecture=name)).config
        assert isinstance(found, ImageClassifierConfig)
        norm = model.norm if hasattr(model.norm, "eps") else model.fc_norm
        assert (name, found.heads, found.layer_norm_epsilon, found.activation, found.pooling) == (
            name,
            block.attn.num_heads,
            norm.eps,
            _ACTIVATIONS[type(block.mlp.act).__name__],
            "cls" if model.global_pool == "token" else "mean",
        )
        checked += 1
    assert checked > 60
