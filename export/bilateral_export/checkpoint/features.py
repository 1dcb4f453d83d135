"""A classifier's weights without its head: what a model gives where its features are wanted."""

from __future__ import annotations

import dataclasses

import torch
from pydantic import ValidationError

from bilateral_export.checkpoint.card import describe
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build


def with_output(checkpoint: Checkpoint, output: str) -> Checkpoint:
    """The checkpoint of a model that returns something else than its own output.

    Args:
        checkpoint: An image classifier's.
        output: Its logits, all its tokens, its class token, or what its head reads.

    Raises:
        UserError: The model has no such output.
    """
    config = checkpoint.card.model
    own = getattr(config, "output", None)
    if output == own:
        return checkpoint
    if output == "logits" and own is not None:
        raise UserError(
            f"model {checkpoint.card.name} has no classification head, and so no logits",
            "Export its features: --output tokens, cls or pooled.",
        )
    try:
        config = config.with_output(output)
    except ValueError as error:
        reason = describe(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"model {checkpoint.card.name} has no output {output!r}: {reason}",
            "Choose another --output, or leave it out.",
        ) from error
    with torch.device("meta"):
        read = build(config).state_dict()
    state = {name: tensor for name, tensor in checkpoint.state.items() if name in read}
    card = checkpoint.card.model_copy(update={"model": config, "labels": ()})
    trained = checkpoint.trained
    return dataclasses.replace(
        checkpoint,
        card=card,
        state=state,
        trained=None if trained is None else with_output(trained, output),
    )
