"""Pathfinder (Linsley et al., 2018) with the Long Range Arena's 32-pixel parameters.

Two dashed paths and shorter distractors wind through an image without touching; two discs mark ends
of paths. The class says whether both discs lie on one path. Parameters are those the benchmark
documents for Pathfinder32's hard split (google-research/long-range-arena,
lra_benchmarks/data/pathfinder.py); the turning law, a density cos^2 of the angle times
`continuity`, and the placing of the second path's start on a circle around the first's follow the
generator it names (drewlinsley/pathfinder). Paths are kept apart by distance instead of by dilated
bitmaps, and Pillow draws: the images are of the same kind, not the same pixels.

Needs numpy and Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float64]

LABELS = ("not connected", "connected")
_SCALE = 4  # drawn so many times larger, then averaged
_POINTS = 4  # a dash is checked for distance at so many points
_TRIALS = 30


@dataclass(frozen=True)
class PathfinderConfig:
    """Sizes in pixels. The defaults are the benchmark's Pathfinder32, hard.

    Attributes:
        size: Height and width of the image.
        padding: Nothing is nearer to the edge.
        dash: Length of a dash.
        margin: Half the gap between two dashes of a path, and the least distance between paths
            beyond a dash's width.
        thickness: Half the width of a dash.
        contour: Dashes of each of the two paths.
        distractor: Dashes of a distractor.
        distractors: How many of them, where there is room.
        seed_distance: Between the starts of the two paths.
        marker_radius: Of the discs.
        continuity: How straight paths are; the angle between dashes times this follows cos^2.
    """

    size: int = 32
    padding: int = 1
    dash: float = 2.0
    margin: float = 1.0
    thickness: float = 0.5
    contour: int = 14
    distractor: int = 4
    distractors: int = 5
    seed_distance: float = 7.0
    marker_radius: float = 1.5
    continuity: float = 1.0


class _Path:
    """A chain of dashes under construction."""

    def __init__(self, start: Floats, angle: float, config: PathfinderConfig) -> None:
        self.config = config
        self.angle = angle
        self.dashes = [_dash(start, angle, config)]

    @property
    def start(self) -> Floats:
        first: Floats = self.dashes[0][0]
        return first

    @property
    def end(self) -> Floats:
        last: Floats = self.dashes[-1][-1]
        return last

    def grow(self, others: list[Floats], generator: np.random.Generator) -> bool:
        """Append a dash that keeps its distance from everything but the one before."""
        taken = others + self.dashes[:-1]
        for _ in range(_TRIALS):
            angle = self.angle + _turn(self.config, generator)
            gap = self.config.margin * (_direction(self.angle) + _direction(angle))
            dash = _dash(self.end + gap, angle, self.config)
            if _fits(dash, taken, self.config):
                self.angle = angle
                self.dashes.append(dash)
                return True
        return False


def generate(
    config: PathfinderConfig, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    """One image `[size, size]` of grey levels and its class: 1 where the discs are connected."""
    pair = None
    while pair is None:
        pair = _two_paths(config, generator)
    dashes = pair[0].dashes + pair[1].dashes
    for _ in range(config.distractors):
        dashes += _distractor(dashes, config, generator)
    label = int(generator.integers(2))
    first = int(generator.integers(2))
    last = first if label else 1 - first
    return _draw(dashes, [pair[first].start, pair[last].end], config), label


def batch(
    config: PathfinderConfig, size: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random images as token ids `[size, pixels]`, row by row, and their classes."""
    drawn = [generate(config, generator) for _ in range(size)]
    tokens = np.stack([image.reshape(-1) for image, _ in drawn]).astype(np.int64)
    return tokens, np.array([label for _, label in drawn])


def _two_paths(
    config: PathfinderConfig, generator: np.random.Generator
) -> tuple[_Path, _Path] | None:
    first = _Path(_point(config, generator), _angle(generator), config)
    start = first.start + config.seed_distance * _direction(_angle(generator))
    second = _Path(start, _angle(generator), config)
    if not (_fits(first.dashes[0], [], config) and _fits(second.dashes[0], first.dashes, config)):
        return None
    for _ in range(config.contour - 1):
        if not first.grow(second.dashes, generator) or not second.grow(first.dashes, generator):
            return None
    return first, second


def _distractor(
    taken: list[Floats], config: PathfinderConfig, generator: np.random.Generator
) -> list[Floats]:
    """A short path, or nothing where no room was found."""
    for _ in range(_TRIALS):
        path = _Path(_point(config, generator), _angle(generator), config)
        if _fits(path.dashes[0], taken, config) and all(
            path.grow(taken, generator) for _ in range(config.distractor - 1)
        ):
            return path.dashes
    return []


def _dash(start: Floats, angle: float, config: PathfinderConfig) -> Floats:
    """Points `[_POINTS, 2]` (row, column) along a dash."""
    return start + np.linspace(0, config.dash, _POINTS)[:, None] * _direction(angle)


def _fits(dash: Floats, taken: list[Floats], config: PathfinderConfig) -> bool:
    low = config.padding + config.thickness
    if dash.min() < low or dash.max() > config.size - 1 - low:
        return False
    if not taken:
        return True
    distances = np.linalg.norm(np.concatenate(taken)[:, None] - dash[None], axis=-1)
    return bool(distances.min() >= config.margin + 2 * config.thickness)


def _turn(config: PathfinderConfig, generator: np.random.Generator) -> float:
    """An angle from the density cos^2(continuity * angle), by rejection."""
    while True:
        turn = float(generator.uniform(-np.pi / 2, np.pi / 2)) / config.continuity
        if generator.random() < np.cos(config.continuity * turn) ** 2:
            return turn


def _direction(angle: float) -> Floats:
    return np.array([np.sin(angle), np.cos(angle)])


def _angle(generator: np.random.Generator) -> float:
    return float(generator.uniform(-np.pi, np.pi))


def _point(config: PathfinderConfig, generator: np.random.Generator) -> Floats:
    return generator.uniform(config.padding, config.size - 1 - config.padding, size=2)


def _draw(
    dashes: list[Floats], markers: list[Floats], config: PathfinderConfig
) -> NDArray[np.uint8]:
    canvas = Image.new("L", (config.size * _SCALE,) * 2)
    pen = ImageDraw.Draw(canvas)

    def at(point: Floats) -> tuple[float, float]:
        row, column = (point + 0.5) * _SCALE
        return float(column), float(row)

    for dash in dashes:
        width = round(2 * config.thickness * _SCALE)
        pen.line([at(dash[0]), at(dash[-1])], fill=255, width=width)
    for marker in markers:
        (x, y), radius = at(marker), config.marker_radius * _SCALE
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return np.asarray(canvas.resize((config.size,) * 2, Image.Resampling.BOX), dtype=np.uint8)
