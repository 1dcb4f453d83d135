"""Image boosting with the bilateral filter: the signal-to-noise ratio of each residual scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from sklearn.datasets import load_sample_image
from torch import Tensor

from bilateral_export.models.attention import grid_positions
from bilateral_export.models.residual import PRESETS, Coefficients, Preset
from bilateral_export.op.attention import attention

SIDE = 48
NOISE = 0.1
SPATIAL_BANDWIDTH = 2.0
RANGE_BANDWIDTH = 0.25
ITERATIONS = 12
# x' = f(x): no residual connection at all.
FILTER_ONLY = Coefficients(0, 1, 1, 0, 0)


class Boosting(BaseModel):
    """SNR in dB after each application of one scheme, mean over noise draws.

    Attributes:
        scheme: A preset of the generalized residual connection, or "filter only".
        snr: Of the noisy image, of the filtered one, and of each iteration after it.
    """

    model_config = ConfigDict(frozen=True)

    scheme: str
    snr: tuple[float, ...]

    @property
    def best(self) -> float:
        """The highest SNR on the way."""
        return max(self.snr)

    @property
    def last(self) -> float:
        """The SNR after the last iteration."""
        return self.snr[-1]


def photograph(side: int = SIDE) -> Tensor:
    """Return a photograph of scikit-learn's, grey, `[side * side]`, values in 0..1."""
    picture = Image.fromarray(load_sample_image("china.jpg")).convert("L")
    picture = picture.crop((60, 60, 300, 300)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture, dtype=np.float64) / 255).reshape(-1)


def boosting(
    *,
    side: int = SIDE,
    noise: float = NOISE,
    iterations: int = ITERATIONS,
    seeds: Sequence[int] = (0, 1, 2),
) -> tuple[Boosting, ...]:
    """Denoise a photograph by every scheme, starting from the filtered image.

    The filter is the project's attention with both kernels Gaussian and identity projections, its
    weights fixed by the noisy image (a data-dependent but then linear filter, as in Milanfar,
    2013). The noisy image x0 is filtered once; then each step is `a x + b f(c x + d x0) + e x0`.

    Args:
        side: Pixels along the picture's side.
        noise: Standard deviation of the noise; pixels are in 0..1.
        iterations: Steps after the first filtering.
        seeds: Noise draws to average over.
    """
    clean = photograph(side)
    schemes: dict[str, Coefficients] = {"filter only": FILTER_ONLY}
    schemes |= {name: PRESETS[name] for name in cast(tuple[Preset, ...], get_args(Preset))}
    curves: dict[str, list[list[float]]] = {name: [] for name in schemes}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noisy = clean + noise * torch.randn(len(clean), generator=generator, dtype=torch.float64)
        weights = filter_weights(noisy, side)
        for name, scheme in schemes.items():
            curves[name].append(_run(scheme, weights, noisy, clean, iterations))
    return tuple(
        Boosting(scheme=name, snr=tuple(float(v) for v in np.mean(runs, axis=0)))
        for name, runs in curves.items()
    )


def filter_weights(image: Tensor, side: int) -> Tensor:
    """Return the bilateral filter that an image makes for itself, `[N, N]`, rows summing to 1."""
    tokens = image.reshape(1, 1, -1, 1)
    places = grid_positions(side, side, prefix=0).double()
    identity = torch.eye(len(image), dtype=torch.float64)
    return attention(
        tokens,
        tokens,
        identity.reshape(1, 1, len(image), len(image)),
        places,
        places,
        torch.tensor([SPATIAL_BANDWIDTH], dtype=torch.float64),
        scale=1 / RANGE_BANDWIDTH**2,
        range_kernel="gaussian",
        spatial_kernel="gaussian",
    )[0, 0]


def snr(image: Tensor, clean: Tensor) -> float:
    """Return the SNR in dB of an image up to gain and offset, which layer norm removes.

    With correlation r between the two, `r^2 / (1 - r^2)` is the power of what is proportional to
    the clean image over the power of the rest.
    """
    pair = torch.stack([image, clean])
    correlation = float(torch.corrcoef(pair)[0, 1])
    return 10 * float(np.log10(correlation**2 / max(1 - correlation**2, 1e-30)))


def _run(
    scheme: Coefficients, weights: Tensor, noisy: Tensor, clean: Tensor, iterations: int
) -> list[float]:
    a, b, c, d, e = scheme
    x = weights @ noisy
    ratios = [snr(noisy, clean), snr(x, clean)]
    for _ in range(iterations):
        x = a * x + b * (weights @ (c * x + d * noisy)) + e * noisy
        ratios.append(snr(x, clean))
    return ratios
