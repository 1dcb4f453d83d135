"""The file that is served: the exported one, or its lowering for the runtime that will run it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_serving.artifact import Artifact

LOWERING_KEY = "lowering"


def runtime_of(config: pb.ModelConfig) -> str | None:
    """The runtime to lower for, or None where the exported file is what is wanted."""
    if any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
        return None
    if config.backend == "onnxruntime":
        return "onnxruntime-cpu"
    if config.backend != "python":
        return None
    runtime = config.parameters["runtime"].string_value
    return "openvino" if runtime == "openvino" else "onnxruntime-cpu"


@contextlib.contextmanager
def lowered(artifact: Artifact, runtime: str | None) -> Iterator[tuple[Artifact, str | None]]:
    """Yield the artifact to serve, and what was done to it in a few words.

    A model without attention of ours, and one whose weights lie outside the file, stays as it is.

    Raises:
        UserError: The file cannot be read as an ONNX model.
    """
    if runtime is None or artifact.companions:
        yield artifact, None
        return
    from bilateral_export.lowering.lower import has_attention, lower

    if not has_attention(artifact.path):
        yield artifact, None
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = lower(artifact.path, runtime, Path(scratch) / artifact.path.name)
        done = f"{result.lowering.runtime}: {result.lowering.summary}"
        yield dataclasses.replace(artifact, path=result.path), done


def note(config: pb.ModelConfig, version: int, done: str | None) -> None:
    """Keep in a configuration what was done to a version."""
    if done is not None:
        config.parameters[f"{LOWERING_KEY}/{version}"].string_value = done


def notes(config: pb.ModelConfig) -> tuple[str, ...]:
    """What was done to the versions of a configuration that were lowered."""
    parameters = config.parameters.items()
    return tuple(v.string_value for key, v in parameters if key.startswith(f"{LOWERING_KEY}/"))
