"""Adversarial images of a classifier, made by the Adversarial Robustness Toolbox (ART)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.metadata import ImagePreprocessing

Attack = Literal["fgsm", "pgd"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)

PGD_STEPS = 20
# Madry et al. (2018) choose the step so that the steps together can cross the ball 2.5 times.
PGD_STEP_FACTOR = 2.5

Images = NDArray[np.float32]


def attack(
    checkpoint: Checkpoint,
    pixels: Images,
    classes: NDArray[np.int64],
    kind: Attack,
    budget: float,
    *,
    steps: int = PGD_STEPS,
    seed: int = 0,
) -> Images:
    """Return images within `budget` of the given ones on which the torch model errs.

    FGSM (Goodfellow et al., 2015) takes one signed gradient step; PGD (Madry et al., 2018) starts
    at a random point of the ball and takes `steps` smaller ones. White box: gradients are those of
    the model itself, the true classes are known.

    Args:
        checkpoint: An image classifier with its preprocessing.
        pixels: `[B, C, H, W]` in 0..1, not normalised.
        classes: `[B]`, the true classes.
        kind: The attack.
        budget: Largest change of any pixel (l-infinity), in units of the full range.
        steps: PGD's steps.
        seed: Of PGD's starting points.

    Returns:
        Adversarial `pixels`, still in 0..1.
    """
    estimator = _estimator(checkpoint, pixels.shape[1:])
    if kind == "fgsm":
        method = FastGradientMethod(estimator, norm=np.inf, eps=budget, batch_size=len(pixels))
    else:
        method = ProjectedGradientDescentPyTorch(
            estimator,
            norm=np.inf,
            eps=budget,
            eps_step=PGD_STEP_FACTOR * budget / steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=len(pixels),
            verbose=False,
        )
    np.random.seed(seed)
    torch.manual_seed(seed)
    adversarial = method.generate(pixels, y=classes)
    return np.asarray(adversarial, dtype=np.float32)


def normalise(pixels: Images, how: ImagePreprocessing) -> Images:
    """Return the pixels `[B, C, H, W]` in 0..1 as the model's input."""
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (how.mean, how.std))
    normalised: Images = (pixels - mean) / std
    return normalised


def preprocessing_of(checkpoint: Checkpoint) -> ImagePreprocessing:
    """Return the checkpoint's preprocessing.

    Raises:
        UserError: It has none, so budgets would have no unit.
    """
    how = checkpoint.card.preprocessing
    if not isinstance(how, ImagePreprocessing):
        raise UserError(
            f"checkpoint {checkpoint.path} does not say how images become its input",
            "Write its preprocessing into the card: budgets are fractions of the pixels' range.",
        )
    return how


class _OnPixels(nn.Module):
    """The model with its normalisation inside, so that budgets are in units of pixels."""

    def __init__(self, model: nn.Module, how: ImagePreprocessing) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(how.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(how.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def _estimator(checkpoint: Checkpoint, shape: tuple[int, ...]) -> PyTorchClassifier:
    model = _OnPixels(checkpoint.build_model(), preprocessing_of(checkpoint))
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=checkpoint.card.model.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
