"""A user's own module as a family: its interface, its weights, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bilateral_export import ModelDefinition, TensorSpec, load_checkpoint
from bilateral_export.checkpoint.user_model import defined_model
from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.models.examples import decoder, monitor
from bilateral_export.models.registry import build, parse_config
from bilateral_export.preprocessing import BytesPreprocessing, ImagePreprocessing

GOOD = monitor.build()
HALF = ImagePreprocessing(height=4, width=4, resize=4, channels=1, mean=(0.5,), std=(0.5,))


class Outputs(nn.Module):
    """Gives back what a function makes of its one input, through one weight."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x * self.weight)


def one(make: Callable[[Tensor], Any], *shape: int | str, **more: Any) -> ModelDefinition:
    spec = TensorSpec("x", "float32", ("batch", *shape))
    return ModelDefinition(module=Outputs(make), inputs=[spec], **more)


def test_outputs_are_found_by_running_the_module() -> None:
    model = defined_model(
        one(
            lambda x: {
                "same": x,
                "pooled": x.mean(1),
                "doubled": torch.cat([x, x], 1),
                "place": x.argmax(1),
                "absent": None,
            },
            "length",
            4,
            sizes={"length": (1, 9)},
        )
    )
    assert list(map(str, model.outputs())) == [
        "same float32[batch, length, 4]",
        "pooled float32[batch, 4]",
        "doubled float32[batch, doubled.1, 4]",
        "place int64[batch, 4]",
    ]
    assert model.corners() == ({"length": 1}, {"length": 9}, {"length": 5})
    drawn = model.example(3, np.random.default_rng(0), length=2)
    assert drawn["x"].shape == (3, 2, 4)


def test_the_reference_is_wide_and_the_rest_is_float32() -> None:
    model = defined_model(one(lambda x: x, 4))
    x = torch.ones(1, 4)
    assert model.half()(x).dtype == torch.float32
    assert model.double()(x.double()).dtype == torch.float64
    words = defined_model(decoder.build())
    assert words.double()(torch.zeros(1, 2, dtype=torch.int64)).dtype == torch.float64


def test_decisions_are_taken_in_the_graph() -> None:
    definition = one(lambda x: torch.cat([x, -x], 1), 1, 4, 4, decide=lambda s: s.argmax(1))
    model = defined_model(definition)
    assert model.decides
    assert model.config.classes == 2
    assert list(map(str, model.outputs())) == ["output int32[batch, 4, 4]"]
    np.testing.assert_array_equal(model(-torch.ones(1, 1, 4, 4)), np.ones((1, 4, 4)))


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        (replace(GOOD, module=monitor.Monitor), "module is a type"),
        (replace(GOOD, inputs=[]), "has no inputs"),
        (replace(GOOD, sizes={}), "dynamic dimension time has no sizes"),
        (replace(GOOD, sizes={"time": (8, 8)}), "Give two that rise"),
        (
            replace(GOOD, inputs=[TensorSpec("x", "float32", (1, 3))]),
            "does not begin with the batch",
        ),
        (replace(GOOD, inputs=[TensorSpec("x", "float16", ("batch",))]), "Use float32"),
        (replace(GOOD, outputs=["risk"]), "names 1 outputs, and its module returns 2"),
        (replace(GOOD, decide=torch.argmax), "one input"),
        (replace(GOOD, example=lambda *_, **__: {}), "has no signal"),
        (replace(decoder.build(), values={}), r"Give values=\{\"tokens\": \(low, high\)\}"),
        (one(lambda x: x.sum(), 4), "does not begin with the batch"),
        (one(lambda x: "yes", 4), "output is a str|is a str"),
        (one(lambda x: x.reshape(2, 4), 4), "test_user_model.py:"),
        (one(lambda x: x, 4, decide=lambda s: s), "It turns scores"),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(
    definition: ModelDefinition, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        defined_model(definition)


def save(path: Path, module: nn.Module, **extra: Any) -> Path:
    torch.save(module.state_dict() | extra, path)
    return path


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_loaded_in_every_format_and_stay_tied(
    precision: torch.dtype, tmp_path: Path
) -> None:
    definition = decoder.build()
    state = {k: v.to(precision) for k, v in decoder.Decoder().state_dict().items()}
    untied = {k: v for k, v in state.items() if k != "score.weight"}
    safetensors.torch.save_file(untied, tmp_path / "a.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        model = load_checkpoint(tmp_path / name, model=definition).build_model()
        assert model.module.score.weight is model.module.embed.weight
        got = model.module.state_dict()
        wide = torch.float64 if precision == torch.float64 else torch.float32
        assert all(torch.equal(got[k], v.to(wide)) for k, v in state.items())


def test_names_that_look_like_a_wrappers_are_the_modules_own(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    trained = Outer()
    nn.init.normal_(trained.model[0].weight)
    definition = replace(one(lambda x: x, 4), module=Outer())
    loaded = load_checkpoint(save(tmp_path / "a.pt", trained), model=definition).build_model()
    assert torch.equal(loaded.module.model[0].weight, trained.model[0].weight)


def test_models_of_one_checkpoint_do_not_share_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", GOOD.module)
    checkpoint = load_checkpoint(path, model=monitor.build())
    first, second = checkpoint.build_model(), checkpoint.build_model()
    first.half()
    assert {p.dtype for p in second.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"more": torch.ones(2)}, r"1 unexpected: more \[2\]"),
        ({"risk.bias": torch.ones(3)}, r"risk.bias \[3\], the module has \[2\]"),
        ({"risk.bias": torch.ones(2, dtype=torch.int32)}, "risk.bias is int32"),
        ({"risk.bias": torch.full((2,), torch.nan)}, "NaN or infinite in risk.bias"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    change: dict[str, Tensor], complaint: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.pt", GOOD.module, **change)
    with pytest.raises(UserError, match=complaint) as refused:
        load_checkpoint(path, model=monitor.build())
    assert "\n" not in str(refused.value)
    missing = {k: v for k, v in GOOD.module.state_dict().items() if k != "norm.bias"}
    torch.save(missing, path)
    with pytest.raises(UserError, match=r"1 missing: norm.bias \[32\]"):
        load_checkpoint(path, model=monitor.build())


def test_labels_and_preprocessing_must_fit(tmp_path: Path) -> None:
    image = one(lambda x: x.flatten(1)[:, :2], 1, 4, 4, preprocessing=HALF, labels=("a", "b"))
    path = save(tmp_path / "a.pt", image.module)
    card = load_checkpoint(path, model=image).card
    assert (card.labels, card.preprocessing, card.model.classes) == (("a", "b"), HALF, 2)
    for wrong in (
        replace(image, labels=("a",)),
        replace(image, preprocessing=HALF.model_copy(update={"width": 5})),
        replace(image, preprocessing=BytesPreprocessing(length=3)),
    ):
        with pytest.raises(UserError, match="does not fit its module"):
            load_checkpoint(path, model=wrong)


def test_a_file_alone_runs_no_code(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", GOOD.module)
    card = load_checkpoint(path, model=monitor.build()).card
    config = parse_config(card.model.model_dump(mode="json"))
    assert config == card.model
    assert "attention" not in config.model_dump()
    with pytest.raises(UserError, match="model of your own"):
        build(config)
    with pytest.raises(UserError, match="does not say which model"):
        load_checkpoint(path)
    assert ArtifactMetadata.model_fields["model"].annotation == dict[str, Any]
