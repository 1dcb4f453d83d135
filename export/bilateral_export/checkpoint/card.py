"""What a checkpoint says about itself: configuration, labels, preprocessing, licence, training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilateral_export.checkpoint.formats.text import has_control_character, listed, printable
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import ModelConfig
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.preprocessing import (
    BytesPreprocessing,
    ImagePreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)

SCHEMA_VERSION = 1
BYTE_ORDER_MARK = "\ufeff"
_LARGEST_RESIZE = 100  # times the crop that is kept


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
        classes = getattr(self.model, "num_classes", 0)
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
        match self.preprocessing, self.model:
            case ImagePreprocessing() as how, ImageClassifierConfig() as model:
                said = [how.channels, how.height, how.width]
                wanted = [model.channels, model.height, model.width]
                if said != wanted:
                    raise ValueError(
                        f"the preprocessing makes images {said}, the model takes {wanted}"
                    )
                if _largest(how.resize) > _LARGEST_RESIZE * how.height:
                    raise ValueError(
                        f"the preprocessing resizes to {how.resize} pixels to keep {how.height}"
                    )
            case TextPreprocessing() as how, LanguageModelConfig() as model:
                if (len(how.vocabulary), how.context) != (model.vocabulary, model.context):
                    raise ValueError(
                        f"the tokenizer has {len(how.vocabulary)} words and context {how.context},"
                        f" the model {model.vocabulary} and {model.context}"
                    )
            case SegmentationPreprocessing() as how, SegmenterConfig() as model:
                if how.window != model.image_size:
                    raise ValueError(
                        f"the preprocessing cuts windows of {how.window} pixels, the model takes"
                        f" {model.image_size}"
                    )
                if how.stride > how.window:
                    raise ValueError(
                        f"windows of {how.window} pixels every {how.stride} leave gaps"
                    )
                if len(how.palette) < model.num_classes:
                    raise ValueError(
                        f"the preprocessing has {len(how.palette)} colours, the model"
                        f" {model.num_classes} classes"
                    )
            case (
                BytesPreprocessing() | ListOpsPreprocessing() as how,
                SequenceClassifierConfig(grid=None) as model,
            ):
                if how.length > model.length:
                    raise ValueError(
                        f"the preprocessing gives up to {how.length} tokens, the model takes"
                        f" {model.length}"
                    )
                documents = how.documents if isinstance(how, BytesPreprocessing) else 1
                if documents != model.documents:
                    raise ValueError(
                        f"the preprocessing gives {documents} documents, the model takes"
                        f" {model.documents}"
                    )
            case PixelsPreprocessing() as how, SequenceClassifierConfig() as model:
                if (how.height, how.width) != model.grid:
                    raise ValueError(
                        f"the preprocessing gives {(how.height, how.width)} pixels, the model takes"
                        f" {model.grid}"
                    )
            case None, _:
                pass
            case how, model:
                raise ValueError(
                    f"preprocessing of the kind {how.kind!r} is not for the family {model.family!r}"
                )
        return self


def _largest(resize: int | tuple[int, int]) -> int:
    return resize if isinstance(resize, int) else max(resize)


def parse_card(text: str, source: str) -> CheckpointCard:
    """Validate a card's JSON.

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
    """A pydantic error as one line: field and reason, for at most five fields."""
    reasons = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        # Of a field that is one number or a pair, pydantic names the alternative, with a space.
        parts = [str(part) for part in problem["loc"] if " " not in str(part)]
        where = printable(".".join(parts) or "document", longest=50)
        reasons.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return listed(reasons, separator="; ", longest=160)
