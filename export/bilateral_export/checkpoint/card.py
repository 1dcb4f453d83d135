"""What a checkpoint says about itself: configuration, labels, preprocessing, licence, training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilateral_export.errors import UserError
from bilateral_export.models.family import ModelConfig
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.preprocessing import Preprocessing, TextPreprocessing

SCHEMA_VERSION = 1


class CheckpointCard(BaseModel):
    """The JSON document inside a native checkpoint's metadata, or beside it.

    Attributes:
        schema_version: Version of this document.
        name: The model's name.
        model: Its configuration; the weights must fit it.
        labels: One per class, or empty.
        preprocessing: How an input file becomes the model's input.
        license: Licence of the weights, as an SPDX identifier where there is one.
        training: Free-form facts of the training run: data, seed, epochs, accuracy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    model: ModelConfig
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    license: str = "unknown"
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> CheckpointCard:
        text, model = self.preprocessing, self.model
        if isinstance(text, TextPreprocessing) and isinstance(model, LanguageModelConfig):
            said, wanted = (len(text.vocabulary), text.context), (model.vocabulary, model.context)
            if said != wanted:
                raise ValueError(
                    f"the tokenizer has {said[0]} words and context {said[1]},"
                    f" the model {wanted[0]} and {wanted[1]}"
                )
        return self


def parse_card(text: str, source: str) -> CheckpointCard:
    """Validate a card's JSON.

    Raises:
        UserError: It is no JSON, of another schema version, or a field is wrong; names the fields.
    """
    try:
        return CheckpointCard.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"the configuration in {source} is not valid: {describe(error)}",
            f"Correct it; this version reads schema_version {SCHEMA_VERSION}.",
        ) from error


def describe(error: ValidationError) -> str:
    """A pydantic error as one line: field and reason, for each field."""
    reasons = (
        f"{'.'.join(map(str, problem['loc'])) or 'document'}: {problem['msg']}"
        for problem in error.errors()
    )
    return "; ".join(reasons)
