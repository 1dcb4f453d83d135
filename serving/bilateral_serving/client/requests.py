"""Requests and answers of one call: checks and conversions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tritonclient.grpc import InferResult
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import ImagePreprocessing, SegmentationPreprocessing
from bilateral_export.tensors import FEATURES, Array, TensorSpec, check_arrays
from bilateral_serving import raw
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.inputs.files import Source, check_count, documents, prepare
from bilateral_serving.client.inputs.images import read_image
from bilateral_serving.client.shared_memory import Region, layout
from bilateral_serving.config import read_metadata
from bilateral_serving.datatypes import from_triton, triton_name
from bilateral_serving.values import utf8

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 2
# Of images, for a model of several sizes.
Size = int | tuple[int, int] | Literal["aspect"]


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
        raw: How it takes files as they are, if it does; the inputs and outputs are its graph's.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    metadata: ArtifactMetadata | None
    raw: RawForm | None = None

    def taking(self, names: Collection[str]) -> ModelInfo:
        """Return what the model takes and gives where these are the inputs: files or tensors."""
        if self.raw is None or set(names) != {self.raw.input.name}:
            return self
        outputs = (*self.outputs, *self.raw.outputs)
        return dataclasses.replace(self, inputs=(self.raw.input,), outputs=outputs, raw=None)


@dataclass(frozen=True)
class RawForm:
    """How a model takes files as they are: an input of bytes, and outputs beside its graph's."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Prediction:
    """One class of an input, with its probability (softmax of the logits)."""

    label: str
    index: int
    probability: float


def model_info(metadata: Any, config: Any, version: int | None) -> ModelInfo:
    """Join Triton's answers ModelMetadata and ModelConfig into one description."""
    versions = tuple(sorted(int(number) for number in metadata.versions))
    described = version or versions[-1]
    batched = config.max_batch_size > 0
    file, graph = raw.input_name(config), raw.of_graph(config)
    here, there = ({tensor.name for tensor in tensors} for tensors in graph)
    specs = {tensor.name: _spec(tensor, batched) for tensor in metadata.inputs}
    given = tuple(_spec(tensor, batched) for tensor in metadata.outputs)
    added = tuple(spec for spec in given if spec.name not in there)
    return ModelInfo(
        name=metadata.name,
        version=described,
        versions=versions,
        inputs=tuple(spec for name, spec in specs.items() if name in here),
        outputs=tuple(spec for spec in given if spec.name in there),
        max_batch_size=config.max_batch_size,
        metadata=read_metadata(config, described),
        raw=RawForm(specs[file], added) if file else None,
    )


def check_inputs(info: ModelInfo, inputs: Mapping[str, Array]) -> None:
    """Check names, element types and shapes before anything is sent.

    Raises:
        UserError: It names the model, the input and the shape expected.
    """
    check_arrays(info.inputs, inputs, info.name)
    _check_image(info, inputs)
    for spec in info.inputs if info.max_batch_size else ():
        batch = len(inputs[spec.name])
        if batch > info.max_batch_size:
            raise UserError(
                f"input {spec.name} of model {info.name} has a batch of {batch}",
                f"Expected at most {info.max_batch_size}: send it in pieces, or add the model with "
                "a larger --max-batch-size.",
            )


def _check_image(info: ModelInfo, inputs: Mapping[str, Array]) -> None:
    """Refuse an image that is larger or smaller than a model of several sizes takes."""
    how = info.metadata.preprocessing if info.metadata else None
    if not isinstance(how, ImagePreprocessing) or how.sizes is None:
        return
    for spec in info.inputs:
        if len(spec.shape) == 4 and (why := how.sizes.refused(*inputs[spec.name].shape[2:])):
            raise UserError(f"input {spec.name} of model {info.name} does not fit", f"{why}.")


def to_request(
    info: ModelInfo,
    inputs: Mapping[str, Array],
    version: int | None,
    outputs: Sequence[str],
    deadline: Deadline,
    region: Region | None = None,
) -> pb.ModelInferRequest:
    """Return the message that asks for an inference.

    Args:
        info: The model.
        inputs: An array per input, checked.
        version: The model's version; None: the newest.
        outputs: The outputs wanted; empty: all.
        deadline: Until when the request may wait in the server's queue.
        region: Shared memory for what `shared_memory.layout` puts there; None: all in the message.

    Raises:
        UserError: The model has no such output.
    """
    known = [spec.name for spec in info.outputs]
    every = known + [spec.name for spec in (info.raw.outputs if info.raw else ())]
    for name in outputs:
        if name not in every:
            raise UserError(
                f"model '{info.name}' has no output '{name}'", f"It gives {', '.join(every)}."
            )
    request = pb.ModelInferRequest(model_name=info.name, model_version=version_text(version))
    set_timeout(request, deadline)
    offsets = layout(info.inputs, inputs)[0] if region else {}
    for spec in info.inputs:
        array = inputs[spec.name]
        tensor = request.inputs.add(name=spec.name, datatype=triton_name(spec), shape=array.shape)
        if region and spec.name in offsets:
            region.write(offsets[spec.name], array)
            tensor.parameters["shared_memory_region"].string_param = region.name
            tensor.parameters["shared_memory_offset"].int64_param = offsets[spec.name]
            tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes
        else:
            request.raw_input_contents.append(_encoded(spec, array))
    for name in outputs or known:
        request.outputs.add(name=name)
    return request


def set_timeout(request: pb.ModelInferRequest, deadline: Deadline) -> None:
    """Set how long a request may wait in the server's queue."""
    request.parameters["timeout"].int64_param = round(deadline.left_s * 1e6)


def to_arrays(answer: pb.ModelInferResponse) -> dict[str, Array]:
    """Return the answer's arrays by name."""
    result = InferResult(answer)
    return {output.name: result.as_numpy(output.name) for output in answer.outputs}


def _encoded(spec: TensorSpec, array: Array) -> bytes:
    """Return an array of any memory layout as Triton takes it inside a message."""
    if spec.dtype == "object" and array.size:
        return bytes(serialize_byte_tensor(array).item())
    return array.tobytes()


def pieces(info: ModelInfo, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Cut inputs of any number of rows into requests of at most the model's largest batch."""
    check_arrays(info.taking(inputs).inputs, inputs, info.name)
    size = info.max_batch_size
    if not size:
        return [dict(inputs)]
    rows = min(len(array) for array in inputs.values())
    return [
        {name: array[start : start + size] for name, array in inputs.items()}
        for start in range(0, rows, size)
    ]


def at_size(info: ModelInfo, size: Size | None, inputs: Sequence[Source] = ()) -> ModelInfo:
    """Return a model that prepares images at another size, here and not on the server.

    Args:
        info: The model.
        size: Side of a square, height and width, or "aspect", which keeps the one input's aspect
            ratio as far as the model's sizes go. None: the model as it is.
        inputs: The images; looked at for "aspect" only.

    Raises:
        UserError: The model takes images of one size, or not of this one; or "aspect" was asked for
            several inputs, which are one batch.
    """
    if size is None:
        return info
    how = info.metadata.preprocessing if info.metadata else None
    if info.metadata is None or not isinstance(how, ImagePreprocessing) or how.sizes is None:
        raise UserError(
            f"model '{info.name}' takes inputs of one size",
            "Leave the size out, or export it with --sizes.",
        )
    sizes = how.sizes
    if size == "aspect":
        if len(inputs) != 1:
            raise UserError(
                f"{len(inputs)} images were to keep their aspect ratios", "Send one at a time."
            )
        image = read_image(inputs[0])
        how = how.keeping_aspect(image.height, image.width)
    else:
        height, width = (size, size) if isinstance(size, int) else size
        if why := sizes.refused(int(height), int(width)):
            raise UserError(f"model '{info.name}' does not take this size", f"{why}.")
        how = how.at(int(height), int(width))
    metadata = info.metadata.model_copy(update={"preprocessing": how})
    return dataclasses.replace(info, metadata=metadata, raw=None)


def input_batch(info: ModelInfo, inputs: Sequence[Source]) -> Array:
    """Read inputs and prepare them as the model's metadata says: one batch of any size."""
    assert info.metadata is not None
    how = info.metadata.preprocessing
    assert how is not None
    return prepare(inputs, how, info.name)


def file_batch(info: ModelInfo, inputs: Sequence[Source]) -> dict[str, Array]:
    """Return files as the raw form of a model takes them: one batch of any size.

    Raises:
        UserError: There is no input, one is missing or empty, or they make no whole pairs.
    """
    assert info.raw is not None
    assert info.metadata is not None
    assert info.metadata.preprocessing is not None
    check_count(inputs, info.metadata.preprocessing, info.name)
    files = np.empty(len(inputs), dtype=object)
    for number, one in enumerate(inputs):
        content = one if isinstance(one, bytes) else require_file(one, "input").read_bytes()
        files[number] = content
    return {info.raw.input.name: files.reshape(-1, documents(info.metadata.preprocessing))}


def segmenter_preprocessing(info: ModelInfo) -> SegmentationPreprocessing:
    """Return how images become a segmenter's windows.

    Raises:
        UserError: The model is not a segmenter.
    """
    how = info.metadata.preprocessing if info.metadata else None
    if not isinstance(how, SegmentationPreprocessing):
        raise UserError(
            f"model '{info.name}' is not a segmenter",
            "Classify with it, or send tensors with infer.",
        )
    return how


def named(model: str, version: int | None) -> str:
    """Return how an error calls a model.

    Raises:
        UserError: The name is not UTF-8, so no server can have the model.
    """
    utf8("the model's name", model)
    return f"model '{model}'" + (f" version {version}" if version else "")


def version_text(version: int | None) -> str:
    """Return a version as Triton takes it: empty for the newest."""
    return str(version) if version else ""


def classifier_input(info: ModelInfo) -> str:
    """Return the name of the one input of a classifier.

    Raises:
        UserError: The model has several inputs, no preprocessing or no labels.
    """
    if info.metadata is not None and info.metadata.preprocessing is None:
        raise UserError(
            f"model '{info.name}' was exported without preprocessing",
            "Export it again with --model CARD.json, a card that has one, or send tensors with"
            " infer.",
        )
    if len(info.inputs) != 1 or info.metadata is None:
        raise UserError(
            f"model '{info.name}' does not say how a file becomes its input",
            "Serve a classifier that `bilateral export` wrote, or send tensors with infer.",
        )
    return info.inputs[0].name


def classifier_output(info: ModelInfo) -> str:
    """Return the output with one logit per class: the only one, or the one named "logits"."""
    names = [spec.name for spec in info.outputs]
    if FEATURES in names:
        raise UserError(
            f"model '{info.name}' returns features, which are no classes",
            "Ask for them: Client.features, or `bilateral infer`.",
        )
    if len(names) == 1:
        return names[0]
    if "logits" in names:
        return "logits"
    raise UserError(
        f"model '{info.name}' has outputs {', '.join(names)}, and none is named 'logits'",
        "Send tensors with infer and choose the output.",
    )


def features_output(info: ModelInfo) -> str:
    """The output with the features of a model without a head.

    Raises:
        UserError: It has none.
    """
    if FEATURES in [spec.name for spec in info.outputs]:
        return FEATURES
    raise UserError(
        f"model '{info.name}' returns {', '.join(spec.name for spec in info.outputs)}, no features",
        "Export the checkpoint with --output tokens, cls or pooled.",
    )


def predictions(info: ModelInfo, logits: Array, k: int) -> list[tuple[Prediction, ...]]:
    """Return the `k` most probable classes of each row of `logits` `[N, classes]`, best first."""
    labels = info.metadata.labels if info.metadata else ()
    probabilities = raw.probabilities_of(logits)
    best = raw.best(probabilities, raw.check_top_k(k))
    return [
        tuple(
            Prediction(labels[i] if i < len(labels) else str(i), int(i), float(row[i]))
            for i in order
        )
        for row, order in zip(probabilities, best, strict=True)
    ]


def _spec(tensor: Any, batched: bool) -> TensorSpec:
    return from_triton(tensor.name, tensor.datatype, tensor.shape, batched)
