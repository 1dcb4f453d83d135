"""Whether an ONNX file says it is what the checkpoint is: weights, labels, preprocessing."""

from __future__ import annotations

from pathlib import Path

import onnx
from pydantic import ValidationError

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.parity.report import Check

STAGE = "file"


def read_metadata(path: Path) -> ArtifactMetadata:
    """What an exported file says of itself.

    Raises:
        UserError: It is no ONNX file, or was not made by `bilateral export`.
    """
    try:
        model = onnx.load(require_file(path, "model"), load_external_data=False)
    except UserError:
        raise
    except Exception as error:  # protobuf's DecodeError has no public name
        raise UserError(
            f"{path} is no ONNX model", "Export it again with `bilateral export`."
        ) from error
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                return ArtifactMetadata.model_validate_json(item.value)
            except ValidationError as error:
                raise UserError(
                    f"the metadata of {path} is damaged", "Export it again with `bilateral export`."
                ) from error
    raise UserError(f"{path} does not say what it was exported from", "Use `bilateral export`.")


def identity_checks(checkpoint: Checkpoint, metadata: ArtifactMetadata) -> list[Check]:
    """Compare what file and checkpoint say. Numbers cannot show swapped labels; this does."""
    card = checkpoint.card
    pairs = {
        "weights": (metadata.checkpoint_sha256, checkpoint.sha256),
        "configuration": (metadata.model, card.model.model_dump(mode="json")),
        "labels": (metadata.labels, card.labels),
        "preprocessing": (metadata.preprocessing, card.preprocessing),
    }
    return [
        Check(
            stage=STAGE,
            name=name,
            detail="as in the checkpoint" if said == true else "not those of the checkpoint",
            passed=said == true,
        )
        for name, (said, true) in pairs.items()
    ]
