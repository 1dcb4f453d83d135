"""The heat map page: PNG overlays and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from bilateral_export.explain.maps import KERNELS, AttentionMaps, Kernel, Weights, rollout
from bilateral_export.explain.overlay import colour_bar, outlined, overlay, seen_image
from bilateral_export.files import atomic_directory
from bilateral_export.metadata import ImagePreprocessing

# Grids finer than this are drawn blended: single patches say little there.
COARSE_GRID = 8
_COLUMNS: dict[Kernel, str] = {
    "attention": "attention",
    "range": "range kernel alone",
    "spatial": "spatial kernel alone",
}


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        model: The model's name.
        runtime: What computed the maps.
        image_name: The file's name.
        tensor: The model's input `[C, H, W]`.
        preprocessing: How the tensor was made of the image.
        labels: Class names, or empty.
        maps: Its attention.
    """

    model: str
    runtime: str
    image_name: str
    tensor: Weights
    preprocessing: ImagePreprocessing | None
    labels: Sequence[str]
    maps: AttentionMaps


@dataclass(frozen=True)
class View:
    """Which part of the attention is shown.

    Attributes:
        layer: The layer's index, from 0; negative ones count from the last.
        patch: Row and column of the patch that looks; None for the class token.
        heads: Whether each head is shown beside their average.
    """

    layer: int = -1
    patch: tuple[int, int] | None = None
    heads: bool = True


@dataclass(frozen=True)
class Cell:
    """One heat map: `picture` over the image, the highest weight, the share that is on patches."""

    alt: str
    picture: Image.Image
    highest: float
    share: float

    @property
    def image(self) -> str:
        """The picture as a data URL."""
        return data_url(self.picture)


@dataclass(frozen=True)
class Row:
    """A line of the table: one head, or an average."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """A heading, what to know, and a table of heat maps."""

    title: str
    paragraphs: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """What the template shows."""

    title: str
    subtitle: str
    image: str
    bar: str
    classes: tuple[tuple[str, float], ...]
    sections: tuple[Section, ...]


def write_explanation(subject: Subject, view: View, directory: Path) -> None:
    """Write `index.html` and PNG overlays into a new directory, whole or not at all.

    The pictures are `layer_<kernel>.png` (heads averaged), `layer_<kernel>_head<n>.png` and
    `rollout_<kernel>.png`.

    Raises:
        UserError: The layer or patch does not exist, or the directory does.
    """
    sections = {"layer": _one_layer(subject, view), "rollout": _all_layers(subject, view)}
    page = Page(
        title=f"Where {subject.model} looks in {subject.image_name}",
        subtitle=f"Computed by {subject.runtime}.",
        image=data_url(_backdrop(subject).resize((224, 224), Image.Resampling.NEAREST)),
        bar=data_url(colour_bar()),
        classes=_classes(subject),
        sections=tuple(sections.values()),
    )
    template = files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(page=page)
    with atomic_directory(directory) as temporary:
        (temporary / "index.html").write_text(html, "utf-8", "backslashreplace")
        for part, section in sections.items():
            for number, row in enumerate(section.rows):
                suffix = f"_head{number - 1}" if number else ""
                for kernel, cell in zip(KERNELS, row.cells, strict=True):
                    cell.picture.save(temporary / f"{part}_{kernel}{suffix}.png")


def data_url(picture: Image.Image) -> str:
    """Return a picture as a `data:` URL of a PNG."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _one_layer(subject: Subject, view: View) -> Section:
    maps = subject.maps
    layer, token = maps.check_layer(view.layer), maps.token(view.patch)
    lines = {kernel: maps.weights(kernel)[layer, :, token] for kernel in KERNELS}  # [H, N]
    rows = [
        Row("all heads, averaged", _cells(subject, view, {k: w.mean(0) for k, w in lines.items()}))
    ]
    if view.heads:
        rows += [
            Row(f"head {head}", _cells(subject, view, {k: w[head] for k, w in lines.items()}))
            for head in range(maps.heads)
        ]
    paragraphs = [
        "The weights with which this token averages the others. Attention is the product of the two"
        " kernels, normalised; beside it, each kernel as if the other were constant."
    ]
    if view.patch is None:
        paragraphs.append(
            "The class token has no position, so within one layer the spatial kernel gives every"
            " patch the same weight; what it does between patches shows in the second table."
        )
    return Section(
        title=f"Layer {layer} of 0 to {maps.layers - 1}: where {_who(view)} looks",
        paragraphs=tuple(paragraphs),
        columns=tuple(_COLUMNS[kernel] for kernel in KERNELS),
        rows=tuple(rows),
    )


def _all_layers(subject: Subject, view: View) -> Section:
    token = subject.maps.token(view.patch)
    lines = {kernel: rollout(subject.maps.weights(kernel))[token] for kernel in KERNELS}
    return Section(
        title=f"Through all {subject.maps.layers} layers: what reaches {_who(view)}",
        paragraphs=(
            "Attention rollout (Abnar and Zuidema, 2020): heads averaged, half of every layer its"
            " residual connection, layers multiplied. Learned residual coefficients do not enter.",
        ),
        columns=tuple(_COLUMNS[kernel] for kernel in KERNELS),
        rows=(Row("rollout", _cells(subject, view, lines)),),
    )


def _cells(subject: Subject, view: View, lines: dict[Kernel, Weights]) -> tuple[Cell, ...]:
    cells = []
    backdrop = _backdrop(subject)
    for kernel, line in lines.items():
        grid = subject.maps.on_grid(line)
        smooth = min(grid.shape) >= COARSE_GRID
        picture = overlay(backdrop, grid, side=224, smooth=smooth)
        if view.patch is not None:
            picture = outlined(picture, subject.maps.grid, view.patch)
        cells.append(Cell(_COLUMNS[kernel], picture, float(grid.max()), float(grid.sum())))
    return tuple(cells)


def _backdrop(subject: Subject) -> Image.Image:
    return seen_image(subject.tensor, subject.preprocessing)


def _classes(subject: Subject) -> tuple[tuple[str, float], ...]:
    shifted = np.exp(subject.maps.logits - subject.maps.logits.max())
    probabilities = shifted / shifted.sum()
    best = probabilities.argsort()[::-1][:5]
    names = subject.labels or [f"class {index}" for index in range(len(probabilities))]
    return tuple((names[index], float(probabilities[index])) for index in best)


def _who(view: View) -> str:
    return "the class token" if view.patch is None else "patch {},{}".format(*view.patch)
