"""A classifier's weights without its head: what a model gives where its features are wanted."""

from __future__ import annotations

import dataclasses

from pydantic import ValidationError

from bilateral_export.checkpoint.card import describe
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import ImageClassifierConfig, Output


def with_output(checkpoint: Checkpoint, output: Output) -> Checkpoint:
    """The checkpoint of a model that returns something else than its own output.

    Args:
        checkpoint: An image classifier's.
        output: Its logits, all its tokens, its class token, or what its head reads.

    Raises:
        UserError: The model is no image classifier, or has no such output.
    """
    config = checkpoint.card.model
    if not isinstance(config, ImageClassifierConfig):
        raise UserError(
            f"model {checkpoint.card.name} is of the family {config.family}, which has one output",
            "Leave --output out.",
        )
    if output == config.output:
        return checkpoint
    if output == "logits":
        raise UserError(
            f"model {checkpoint.card.name} has no classification head, and so no logits",
            "Export its features: --output tokens, cls or pooled.",
        )
    changed = config.model_dump(exclude_unset=True) | {"output": output, "num_classes": 0}
    try:
        config = ImageClassifierConfig.model_validate(changed)
    except ValidationError as error:
        raise UserError(
            f"model {checkpoint.card.name} has no output {output!r}: {describe(error)}",
            "Choose another --output.",
        ) from error
    unread = ["head.", "head_dist."] + ([] if output == "pooled" else ["fc_norm."])
    state = {
        name: tensor
        for name, tensor in checkpoint.state.items()
        if not name.startswith(tuple(unread))
    }
    card = checkpoint.card.model_copy(update={"model": config, "labels": ()})
    trained = checkpoint.trained
    return dataclasses.replace(
        checkpoint,
        card=card,
        state=state,
        trained=None if trained is None else with_output(trained, output),
    )
