"""The checkpoint card: configuration, labels, preprocessing, licence and training facts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilateral_export.checkpoint.formats.text import has_control_character, listed, printable
from bilateral_export.errors import UserError
from bilateral_export.models.registry import ModelConfig
from bilateral_export.preprocessing import Preprocessing

SCHEMA_VERSION = 1
BYTE_ORDER_MARK = "\ufeff"


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
    name: str = Field(min_length=1, max_length=200)
    model: ModelConfig
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    license: str = "unknown"
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _name_can_be_shown(self) -> CheckpointCard:
        if has_control_character(self.name) or not self.name.strip():
            raise ValueError(f"name '{printable(self.name)}' cannot be shown in one line")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> CheckpointCard:
        classes = self.model.classes
        if self.labels and len(self.labels) != classes:
            raise ValueError(
                f"there are {len(self.labels)} labels, the model has {classes} classes"
            )
        for label in self.labels:
            if len(label.splitlines()) != 1 or has_control_character(label):
                raise ValueError(f"label '{printable(label)}' is not one line")
            if label.startswith(BYTE_ORDER_MARK):
                raise ValueError(f"label '{printable(label)}' begins with a byte-order mark")
        return self

    @model_validator(mode="after")
    def _preprocessing_fits(self) -> CheckpointCard:
        if self.preprocessing is not None:
            self.model.check_preprocessing(self.preprocessing)
        return self


def parse_card(text: str, source: str) -> CheckpointCard:
    """Return the card in a JSON document.

    Raises:
        UserError: It is not JSON, of another schema version, or a field is wrong; names the fields.
    """
    try:
        return CheckpointCard.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"the configuration in {source} is not valid: {describe(error)}",
            f"Correct it; this version reads schema_version {SCHEMA_VERSION}.",
        ) from error


def describe(error: ValidationError) -> str:
    """Return a pydantic error as one line: field and reason, for at most five fields."""
    reasons = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        # Of a field that is one number or a pair, pydantic names the alternative, with a space.
        parts = [str(part) for part in problem["loc"] if " " not in str(part)]
        where = printable(".".join(parts) or "document", longest=50)
        reasons.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return listed(reasons, separator="; ", longest=160)
