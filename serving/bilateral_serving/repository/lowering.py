"""Lowering before serving: the exported file or its lowered form for the runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact, OnnxArtifact
from bilateral_export.errors import UserError
from bilateral_export.runners.registry import DEFAULT, RUNTIMES, SERVED, Runtime
from bilateral_serving import config as configs

LOWERING_KEY = "lowering"
_SHOWN = 300


def runtime_of(config: pb.ModelConfig) -> Runtime | None:
    """Return the runtime to lower for, or None where the exported file is what is wanted."""
    if configs.wants_gpu(config) or config.backend not in ("onnxruntime", "python"):
        return None
    runtime = configs.runtime_of(config) if config.backend == "python" else DEFAULT
    return RUNTIMES[runtime if runtime in SERVED else DEFAULT]


@dataclass(frozen=True)
class Lowered:
    """The file to serve.

    Attributes:
        artifact: It, and what it takes and gives.
        done: What was done to the exported file, in a few words; None if nothing was.
        note: Why nothing was, where something went wrong; "" otherwise.
    """

    artifact: Artifact
    done: str | None = None
    note: str = ""


@contextlib.contextmanager
def lowered(artifact: Artifact, runtime: Runtime | None) -> Iterator[Lowered]:
    """Yield what to serve: the lowering for `runtime`, or the file as it is.

    A model without attention of ours, and one whose weights lie outside the file, stays as it is;
    so does one that another tool has changed so that it cannot be lowered.

    Raises:
        UserError: The file cannot be read as an ONNX model, or is for a runtime that reads only
            lowered files, and cannot be lowered.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield _lower(artifact, runtime, Path(scratch))


def _lower(artifact: Artifact, runtime: Runtime | None, scratch: Path) -> Lowered:
    own = isinstance(artifact, OnnxArtifact) and artifact.attention_nodes
    if runtime is None or artifact.external_files or not own:
        return Lowered(artifact)
    from bilateral_export.lowering.lower import lower

    try:
        result = lower(artifact.path, runtime.lowering, scratch / artifact.path.name)
    except UserError:
        raise
    except Exception as error:  # the passes take what `bilateral export` writes for granted
        reason = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        if not runtime.serves_exported:
            raise UserError(
                f"{artifact.path} cannot be lowered for {runtime.name}: {reason}",
                "Give the file as `bilateral export` wrote it.",
            ) from error
        return Lowered(artifact, note=f"it is served as it is, for it cannot be lowered: {reason}")
    done = f"{result.lowering.runtime}: {result.lowering.summary}"
    return Lowered(dataclasses.replace(artifact, path=result.path), done)


def note(config: pb.ModelConfig, version: int, done: str | None) -> None:
    """Keep in a configuration what was done to a version."""
    if done is not None:
        config.parameters[f"{LOWERING_KEY}/{version}"].string_value = done


def notes(config: pb.ModelConfig) -> tuple[str, ...]:
    """Return what was done to the versions of a configuration that were lowered."""
    parameters = config.parameters.items()
    return tuple(v.string_value for key, v in parameters if key.startswith(f"{LOWERING_KEY}/"))
