"""What cannot be exported is refused in one line, which names the user's own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from bilateral_export import ModelDefinition, TensorSpec, export_onnx, load_checkpoint
from bilateral_export.errors import UserError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class If(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        if x.sum() > 0:  # FAULT
            x = x * 2
        return x


class While(Base):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:  # FAULT
            x = x / 2
        return x * self.scale


class Item(Base):
    def forward(self, x: Tensor) -> Tensor:
        times = int(x.abs().max().item())  # FAULT
        return x * self.scale * times


class Numpy(Base):
    def forward(self, x: Tensor) -> Tensor:
        wide = np.exp(x.detach().numpy())  # FAULT
        return torch.from_numpy(wide) * self.scale


class NoOperator(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return torch.special.bessel_j0(x)  # FAULT


class OneLength(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 4:  # FAULT
            x = x.flip(1)
        return x * self.scale


class Reshaped(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 5, 4) * self.scale  # FAULT


class Fine(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.sum((1, 2), keepdim=True) > 0, x * 2, x) * self.scale


def define(module: nn.Module, low: int = 2) -> ModelDefinition:
    spec = TensorSpec("x", "float32", ("batch", "n", 4))
    return ModelDefinition(module=module, inputs=[spec], outputs=["y"], sizes={"n": (low, 8)})


def export(definition: ModelDefinition, folder: Path) -> Any:
    torch.save(definition.module.state_dict(), folder / "a.pt")
    checkpoint = load_checkpoint(folder / "a.pt", model=definition)
    return export_onnx(checkpoint, folder / "a.onnx")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (If, "depends on values"),
        (While, "depends on values"),
        (Item, "depends on values"),
        (Numpy, "cannot be traced"),
        (NoOperator, "bessel_j0, which ONNX has no operator for"),
        (OneLength, "chooses by the size of n, and the exported model would be right from 5 on"),
        (Reshaped, "is invalid for input of size"),
    ],
)
def test_it_names_the_line(
    kind: type[Base], complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, first = inspect.getsourcelines(kind)
    line = first + next(n for n, text in enumerate(lines) if "FAULT" in text)
    with pytest.raises(UserError, match=complaint) as refused:
        export(define(kind()), tmp_path)
    assert f"{Path(__file__).name}:{line}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a.onnx").exists()
    assert "def forward" not in "".join(capfd.readouterr()), "torch's dump is not for the user"


def test_the_same_choice_is_kept_where_it_can_be(tmp_path: Path) -> None:
    export(define(Fine()), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for sign in (1, -1):
        x = np.full((1, 3, 4), sign, np.float32)
        (y,) = session.run(None, {"x": x})
        np.testing.assert_array_equal(y, x * 2 if sign > 0 else x)


def test_a_choice_beyond_the_sizes_is_no_choice(tmp_path: Path) -> None:
    assert export(define(OneLength(), low=5), tmp_path).inputs[0].shape == ("batch", "n", 4)
