"""The same weights for images of several sizes: one model that finds positions for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pydantic import ValidationError

from bilateral_export.checkpoint.card import describe
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.checkpoint.resolution import resampling_of
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.preprocessing import ImagePreprocessing, ImageSizes


def for_sizes(checkpoint: Checkpoint, sizes: Sequence[tuple[int, int]]) -> Checkpoint:
    """Return an image classifier's checkpoint for images of several sizes.

    At each size it computes what `at_resolution` makes of the same checkpoint there: coordinates in
    units of the trained grid's patch, and what was learned per position interpolated once, from
    the grid it was learned on, by the rule of the library whose weights they are.

    Args:
        checkpoint: At the size that images have where none is asked for.
        sizes: Heights and widths. The model takes every height from the smallest to the largest,
            and every width, that patches tile; the checkpoint's own size is one of them.

    Raises:
        UserError: The model is not an image classifier, patches do not tile a size, or there is no
            other size than its own.
    """
    config = checkpoint.card.model
    if not isinstance(config, ImageClassifierConfig):
        what = "cuts its windows of one size" if config.family == "segmenter" else "has no sizes"
        raise UserError(
            f"model {checkpoint.card.name} is a {config.family}, which {what}",
            "Leave --sizes out.",
        )
    trained = checkpoint.trained or checkpoint
    learned = trained.card.model
    assert isinstance(learned, ImageClassifierConfig)
    unit = learned.position_grid or learned.grid
    changes = {
        "sizes": tuple(dict.fromkeys([*sizes, (config.height, config.width)])),
        "position_grid": unit,
        "table_grid": learned.grid,
        "resampling": resampling_of(checkpoint),
    }
    try:
        model = config.model_validate(config.model_dump(exclude_unset=True) | changes)
    except ValidationError as error:
        raise UserError(
            f"model {checkpoint.card.name} cannot be exported for these sizes: {describe(error)}",
            "Give --sizes multiples of its patch size, such as 224,384,512x384.",
        ) from error
    how = checkpoint.card.preprocessing
    if isinstance(how, ImagePreprocessing):
        taken = ImageSizes(
            multiple=model.patch_size, smallest=model.smallest, largest=model.largest
        )
        how = how.model_copy(update={"sizes": taken})
    card = checkpoint.card.model_copy(update={"model": model, "preprocessing": how})
    return dataclasses.replace(checkpoint, card=card, state=trained.state)
