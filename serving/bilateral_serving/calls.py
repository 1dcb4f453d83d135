"""What the synchronous and the asyncio client share: checks, conversions, errors. No network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_export.tensors import Array, TensorSpec, check_arrays
from bilateral_serving.config import read_metadata
from bilateral_serving.datatypes import from_triton, triton_name
from bilateral_serving.inputs import Source, prepare

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 2
START_A_SERVER = "Start one with `bilateral serve`, or give its address with --url."

# Seconds before the first retry; each further one waits twice as long.
_FIRST_PAUSE_S = 0.1

# How gRPC words an UNAVAILABLE of its own; Triton uses the same status for other things.
_NOT_REACHED = ("failed to connect", "resolving", "resolution", "lookup failed")
_BROKEN = ("socket closed", "goaway", "reset", "broken pipe", "recvmsg", "connection")


@dataclass(frozen=True)
class ModelInfo:
    """What a server says of one version of a model.

    Attributes:
        name: The model.
        version: The version that this describes.
        versions: All versions that are served, lowest first.
        inputs: Inputs, batch axis included.
        outputs: Outputs, batch axis included.
        max_batch_size: Largest batch of one request; 0 if Triton does not batch the model.
        metadata: What the artifact says of itself, or None for a model from elsewhere.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    metadata: ArtifactMetadata | None


@dataclass(frozen=True)
class Prediction:
    """One class of an input, with its probability (softmax of the logits)."""

    label: str
    index: int
    probability: float


class Deadline:
    """The end of one call, shared by everything the call has to do."""

    def __init__(self, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise UserError(f"timeout {timeout_s:g} s", "It must be above 0.")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left; at least a millisecond, so that gRPC reports the deadline itself."""
        return max(0.001, self._end - time.monotonic())


def check_url(url: str) -> str:
    """Return `url` if it reads "host:port".

    Raises:
        UserError: It does not; a scheme such as http:// does not belong there either.
    """
    host, colon, port = url.rpartition(":")
    if not (host and colon and port.isdecimal()) or "//" in url:
        raise UserError(
            f"'{url}' is not the address of a server", "Give host:port, such as localhost:8001."
        )
    return url


def pause_before_retry(
    error: InferenceServerException, attempt: int, retries: int, deadline: Deadline
) -> float | None:
    """Seconds to wait before trying again, or None if the call must not be repeated.

    The rule: only a call that never reached a server is repeated, that is, one for which no
    connection could be made. Whatever may have run once is not run twice.
    """
    unsent = _status(error) == "UNAVAILABLE" and "failed to connect" in _message(error).lower()
    pause = _FIRST_PAUSE_S * 2.0**attempt
    return pause if unsent and attempt < retries and pause < deadline.left_s else None


def explain(error: InferenceServerException, url: str, deadline: Deadline, what: str) -> UserError:
    """Say in one line what went wrong.

    Args:
        error: What tritonclient raised.
        url: The server's address.
        deadline: The call's deadline.
        what: What was asked, such as "model 'digits'".
    """
    status, message = _status(error), _message(error)
    lower = message.lower()
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in lower:
        return UserError(
            f"{what}: no answer from {url} within {deadline.timeout_s:g} s",
            "Raise the timeout, send smaller batches, or look at the server's load.",
        )
    if status == "UNAVAILABLE" and any(sign in lower for sign in _NOT_REACHED):
        return UserError(f"no Triton server answers at {url}", START_A_SERVER)
    if status == "UNAVAILABLE" and any(sign in lower for sign in _BROKEN):
        return UserError(
            f"{what}: the connection to {url} broke before the answer came",
            "Look whether the server still runs; the request may or may not have been executed.",
        )
    if status == "NOT_FOUND" or "unknown model" in lower or "is not found" in lower:
        return UserError(
            f"{what} is not served at {url}",
            "Add it to the server's repository, or use a name from `bilateral repository list`.",
        )
    if "exceeds maximum queue size" in lower:
        return UserError(
            f"{what}: the server at {url} has too many requests waiting",
            "Send fewer at once, or add instances.",
        )
    if status == "UNIMPLEMENTED":
        return UserError(f"what answers at {url} is not a Triton server", START_A_SERVER)
    return UserError(f"{what}: {message}")


def model_info(metadata: Any, config: Any, version: int | None) -> ModelInfo:
    """Join Triton's answers ModelMetadata and ModelConfig into one description."""
    versions = tuple(sorted(int(number) for number in metadata.versions))
    described = version or versions[-1]
    batched = config.max_batch_size > 0
    return ModelInfo(
        name=metadata.name,
        version=described,
        versions=versions,
        inputs=tuple(_spec(tensor, batched) for tensor in metadata.inputs),
        outputs=tuple(_spec(tensor, batched) for tensor in metadata.outputs),
        max_batch_size=config.max_batch_size,
        metadata=read_metadata(config, described),
    )


def check_inputs(info: ModelInfo, inputs: Mapping[str, Array]) -> None:
    """Check names, element types and shapes before anything is sent.

    Raises:
        UserError: It names the model, the input and the shape expected.
    """
    check_arrays(info.inputs, inputs, info.name)
    for spec in info.inputs if info.max_batch_size else ():
        batch = len(inputs[spec.name])
        if batch > info.max_batch_size:
            raise UserError(
                f"input {spec.name} of model {info.name} has a batch of {batch}",
                f"Expected at most {info.max_batch_size}: send it in pieces, or add the model with "
                "a larger --max-batch-size.",
            )


def to_request(
    info: ModelInfo, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[list[InferInput], list[InferRequestedOutput]]:
    """The arrays as tritonclient's inputs, and the names as its requested outputs."""
    known = [spec.name for spec in info.outputs]
    for name in outputs:
        if name not in known:
            raise UserError(
                f"model '{info.name}' has no output '{name}'", f"It gives {', '.join(known)}."
            )
    tensors = []
    for spec in info.inputs:
        array = np.ascontiguousarray(inputs[spec.name])
        if spec.dtype == "bfloat16":  # tritonclient takes float32 and rounds it
            array = array.astype(np.float32)
        tensor = InferInput(spec.name, list(array.shape), triton_name(spec))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors, [InferRequestedOutput(name) for name in (outputs or known)]


def to_arrays(result: Any, requested: Sequence[InferRequestedOutput]) -> dict[str, Array]:
    """The answer's arrays by name."""
    return {output.name(): result.as_numpy(output.name()) for output in requested}


def pieces(info: ModelInfo, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Cut inputs of any number of rows into requests of at most the model's largest batch."""
    check_arrays(info.inputs, inputs, info.name)
    size = info.max_batch_size
    if not size:
        return [dict(inputs)]
    rows = min(len(array) for array in inputs.values())
    return [
        {name: array[start : start + size] for name, array in inputs.items()}
        for start in range(0, rows, size)
    ]


def input_batch(info: ModelInfo, inputs: Sequence[Source]) -> Array:
    """Read inputs and prepare them as the model's metadata says: one batch of any size."""
    assert info.metadata is not None
    how = info.metadata.preprocessing
    assert how is not None
    return prepare(inputs, how, info.name)


def segmenter_preprocessing(info: ModelInfo) -> SegmentationPreprocessing:
    """How images become a segmenter's windows.

    Raises:
        UserError: The model is no segmenter.
    """
    how = info.metadata.preprocessing if info.metadata else None
    if not isinstance(how, SegmentationPreprocessing):
        raise UserError(
            f"model '{info.name}' is no segmenter", "Classify with it, or send tensors with infer."
        )
    return how


def named(model: str, version: int | None) -> str:
    """How an error calls a model."""
    return f"model '{model}'" + (f" version {version}" if version else "")


def version_text(version: int | None) -> str:
    """A version as Triton takes it: empty for the newest."""
    return str(version) if version else ""


def classifier_input(info: ModelInfo) -> str:
    """The name of the one input of a classifier.

    Raises:
        UserError: The model has several inputs, no preprocessing or no labels.
    """
    if len(info.inputs) != 1 or info.metadata is None or info.metadata.preprocessing is None:
        raise UserError(
            f"model '{info.name}' does not say how a file becomes its input",
            "Serve a classifier that `bilateral export` wrote, or send tensors with infer.",
        )
    return info.inputs[0].name


def classifier_output(info: ModelInfo) -> str:
    """The output with one logit per class: the only one, or the one named "logits"."""
    names = [spec.name for spec in info.outputs]
    if len(names) == 1:
        return names[0]
    if "logits" in names:
        return "logits"
    raise UserError(
        f"model '{info.name}' has outputs {', '.join(names)}, and none is named 'logits'",
        "Send tensors with infer and choose the output.",
    )


def predictions(info: ModelInfo, logits: Array, k: int) -> list[tuple[Prediction, ...]]:
    """The `k` most probable classes of each row of `logits` `[N, classes]`, best first."""
    if k < 1:
        raise UserError(f"top-k {k}", "It must be at least 1.")
    labels = info.metadata.labels if info.metadata else ()
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    return [
        tuple(
            Prediction(labels[i] if i < len(labels) else str(i), int(i), float(row[i]))
            for i in order
        )
        for row, order in zip(probabilities, best, strict=True)
    ]


def _spec(tensor: Any, batched: bool) -> TensorSpec:
    return from_triton(tensor.name, tensor.datatype, tensor.shape, batched)


def _status(error: InferenceServerException) -> str:
    return str(error.status() or "").removeprefix("StatusCode.")


def _message(error: InferenceServerException) -> str:
    return str(error.message() or error)
