"""The chain of hashes from a checkpoint to an answer, kept per version in config.pbtxt.

The exported file's metadata has the checkpoint's SHA-256. The parameter `provenance/<version>` has
that of the exported file and of every model file of the version. The Python backend compares what
it opens with it and refuses another file; the doctor does for every target; a client reads it with
the configuration.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError
from tritonclient.grpc import model_config_pb2 as pb

PROVENANCE_KEY = "provenance"


class Provenance(BaseModel):
    """Which files a version is.

    Attributes:
        source_sha256: `Artifact.sha256` of the file that was given to `add`.
        files: Name -> SHA-256 of the files that are served: the source itself or its lowering,
            and its external data.
        precision: The types of the weights, as the file has them: "fp32", "int8, fp32".
        parity: The verdict that it was added with: "passed"; "" where there was none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    source_sha256: str
    files: dict[str, str]
    precision: str = ""
    parity: str = ""


def set_provenance(config: pb.ModelConfig, version: int, provenance: Provenance) -> None:
    """Keep a version's provenance in the configuration."""
    key = f"{PROVENANCE_KEY}/{version}"
    config.parameters[key].string_value = provenance.model_dump_json()


def read_provenance(config: pb.ModelConfig, version: int) -> Provenance | None:
    """Return a version's provenance; None if it has none that can be read."""
    key = f"{PROVENANCE_KEY}/{version}"
    if key not in config.parameters:
        return None
    try:
        return Provenance.model_validate_json(config.parameters[key].string_value)
    except ValidationError:
        return None
