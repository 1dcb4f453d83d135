"""Pathfinder: two discs, paths that do not touch, and a class that says whether they are one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bilateral_export.tasks import pathfinder
from bilateral_export.tasks.pathfinder import PathfinderConfig, batch, generate


@pytest.fixture(scope="module")
def images() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return batch(PathfinderConfig(), 12, np.random.default_rng(0))


def test_images_are_tokens_of_grey_levels(
    images: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    tokens, labels = images
    assert tokens.shape == (12, 1024)
    assert (tokens.min(), tokens.max()) == (0, 255)
    assert set(labels) == {0, 1}


def test_images_are_bright_lines_on_black(
    images: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    for image in images[0].reshape(-1, 32, 32):
        assert 0.5 < (image < 32).mean() < 0.95
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edge < 128).all() or (edge == 255).sum() < 8  # at most a disc reaches the edge


class Drawing(NamedTuple):
    dashes: list[NDArray[np.float64]]
    markers: list[NDArray[np.float64]]
    label: int


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    """What was drawn, before it became pixels."""
    drawn, random, draw = [], np.random.default_rng(1), pathfinder._draw
    config = PathfinderConfig()
    for _ in range(10):
        with pytest.MonkeyPatch.context() as patch:
            seen: list[tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]] = []

            def record(dashes, markers, config, seen=seen):  # type: ignore[no-untyped-def]
                seen.append((dashes, markers))
                return draw(dashes, markers, config)

            patch.setattr(pathfinder, "_draw", record)
            _, label = generate(config, random)
        drawn.append(Drawing(*seen[0], label))
    return drawn


def test_the_class_says_whether_both_discs_mark_one_path(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        paths = np.array(drawing.dashes[:14]), np.array(drawing.dashes[14:28])
        first, last = (
            next(i for i, path in enumerate(paths) if (path == marker).all(-1).any())
            for marker in drawing.markers
        )
        assert drawing.label == int(first == last)
    assert {drawing.label for drawing in drawings} == {0, 1}


def test_paths_keep_their_distance_and_their_dashes_follow_each_other(
    drawings: list[Drawing],
) -> None:
    config = PathfinderConfig()
    for drawing in drawings:
        first, second = np.array(drawing.dashes[:14]), np.array(drawing.dashes[14:28])
        apart = np.linalg.norm(first.reshape(-1, 1, 2) - second.reshape(1, -1, 2), axis=-1)
        assert apart.min() >= config.margin + 2 * config.thickness
        for path in (first, second):
            lengths = np.linalg.norm(path[:, -1] - path[:, 0], axis=-1)
            np.testing.assert_allclose(lengths, config.dash)
            gaps = np.linalg.norm(path[1:, 0] - path[:-1, -1], axis=-1)
            assert gaps.max() <= 2 * config.margin + 1e-9


def test_the_same_seed_gives_the_same_image() -> None:
    first, second = (generate(PathfinderConfig(), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
