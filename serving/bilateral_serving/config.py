"""config.pbtxt: built from a model's interface, written, parsed back and checked."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.tensors import TensorSpec
from bilateral_serving.artifact import Artifact
from bilateral_serving.datatypes import dims, from_triton, triton_name

Target = Literal["python", "onnxruntime", "tensorrt"]
Runtime = Literal["onnxruntime", "openvino"]

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
VOCABULARY_FILE = "vocabulary.txt"
DEFAULT_BATCH = 8
MODEL_FILES: dict[Target, str] = {
    "python": "model.onnx",
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
}
# The size that warm-up requests take for a free axis other than the batch.
WARMUP_LENGTH = 8


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        max_batch_size: Largest batch Triton builds; 0 turns batching off. None: 8 if the graph's
            first axis is free, else 0.
        instances: Copies of the model that run side by side.
        threads: Threads of one instance; 0 shares the machine's cores evenly among instances.
        max_queue_delay_us: How long, in microseconds, a request may wait for others to join its
            batch. With 0 a batch forms only of what queued up while all instances were busy.
        max_queue_size: Requests that may wait; one more is refused at once. 0: no limit. A limit
            costs latency: see `_dynamic_batching`.
        versions: Which versions are served: "latest", "latest:N", "all", or numbers "1,3".
        warmup: Whether the server runs each instance on made-up inputs before it says ready.
        device: "cpu" or "gpu".
        runtime: What executes the graph inside target python.
        spinning: Whether ONNX Runtime's threads wait busily for their next piece of work while a
            request runs. It makes answers faster where the cores are the server's own, and much
            slower where other processes want them too.
        stream: Whether a language model is served as text in, words out (Triton's decoupled mode)
            instead of as tensors.
    """

    max_batch_size: int | None = None
    instances: int = 1
    threads: int = 0
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    versions: str = "latest"
    warmup: bool = True
    device: Literal["cpu", "gpu"] = "cpu"
    runtime: Runtime = "onnxruntime"
    spinning: bool = True
    stream: bool = False

    def __post_init__(self) -> None:
        least = {
            "max_batch_size": 0,
            "instances": 1,
            "threads": 0,
            "max_queue_delay_us": 0,
            "max_queue_size": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}", f"It must be at least {minimum}.")
        _version_policy(self.versions)


def build(name: str, artifact: Artifact, target: Target, settings: Settings) -> pb.ModelConfig:
    """The configuration under which Triton serves `artifact` as `name`.

    Raises:
        UserError: The settings ask for what the graph or the target cannot do.
    """
    if target not in get_args(Target):
        raise UserError(f"unknown target '{target}'", f"Use one of {', '.join(get_args(Target))}.")
    if target == "tensorrt" and settings.device == "cpu":
        settings = dataclasses.replace(settings, device="gpu")
    if settings.stream:
        return _build_stream(name, artifact, target, settings)
    _check_datatypes(artifact, target)
    batch = _max_batch_size(artifact, settings.max_batch_size)

    config = pb.ModelConfig(
        name=name,
        backend=target,
        max_batch_size=batch,
        version_policy=_version_policy(settings.versions),
        instance_group=[
            pb.ModelInstanceGroup(kind=f"KIND_{settings.device.upper()}", count=settings.instances)
        ],
    )
    if target != "python":
        config.default_model_filename = MODEL_FILES[target]
    labels = artifact.metadata.labels if artifact.metadata else ()
    for spec in artifact.inputs:
        _describe(config.input.add(), spec, batch)
    for spec in artifact.outputs:
        output = config.output.add()
        _describe(output, spec, batch)
        if labels and dims(spec)[-1:] == (len(labels),):
            output.label_filename = LABELS_FILE
    if batch:
        config.dynamic_batching.CopyFrom(_dynamic_batching(settings))
    for key, value in _parameters(target, settings).items():
        config.parameters[key].string_value = value
    if settings.warmup:
        config.model_warmup.extend(_warmup(artifact, batch))
    return config


# What a stream of words takes and gives; the options in the middle may be left out.
_STREAM_INPUTS = {
    "text": ("STRING", 1),
    "max_tokens": ("INT32", 1),
    "temperature": ("FP32", 1),
    "top_k": ("INT32", 1),
    "top_p": ("FP32", 1),
    "seed": ("INT64", 1),
    "stop": ("STRING", -1),
}
_STREAM_OUTPUTS = {"text": "STRING", "token": "INT64", "log_likelihood": "FP32"}


def _build_stream(
    name: str, artifact: Artifact, target: Target, settings: Settings
) -> pb.ModelConfig:
    about = artifact.metadata.preprocessing if artifact.metadata else None
    if target != "python" or not isinstance(about, TextPreprocessing) or not about.vocabulary:
        raise UserError(
            f"{artifact.path} cannot be served as a stream of words by target {target}",
            "Give a language model that was exported with its vocabulary, and target python.",
        )
    config = pb.ModelConfig(
        name=name,
        backend=target,
        version_policy=_version_policy(settings.versions),
        instance_group=[
            pb.ModelInstanceGroup(kind=f"KIND_{settings.device.upper()}", count=settings.instances)
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
    )
    for key, (kind, size) in _STREAM_INPUTS.items():
        config.input.add(name=key, data_type=f"TYPE_{kind}", dims=[size], optional=key != "text")
    for key, kind in _STREAM_OUTPUTS.items():
        config.output.add(name=key, data_type=f"TYPE_{kind}", dims=[-1])
    for key, value in _parameters(target, settings).items():
        config.parameters[key].string_value = value
    return config


def write(config: pb.ModelConfig) -> str:
    """The text of config.pbtxt, checked to say the same when it is parsed back."""
    text = str(text_format.MessageToString(config))
    if parse(text, CONFIG_FILE) != config:
        raise AssertionError(f"config.pbtxt of {config.name} does not survive being written")
    return text


def parse(text: str, where: str | Path) -> pb.ModelConfig:
    """Parse config.pbtxt.

    Raises:
        UserError: The text is not a model configuration; `where` is named.
    """
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(
            f"{where} is not a valid model configuration: {error}",
            "Correct that line, or remove the model and add it again.",
        ) from error


def set_metadata(config: pb.ModelConfig, version: int, metadata: ArtifactMetadata | None) -> None:
    """Keep a version's metadata in the configuration, where every client can read it."""
    key = f"{METADATA_KEY}/{version}"
    config.parameters.pop(key, None)
    if metadata is not None:
        config.parameters[key].string_value = served(metadata).model_dump_json()


def served(metadata: ArtifactMetadata) -> ArtifactMetadata:
    """The metadata as a configuration keeps it: a vocabulary lies in its own file instead."""
    about = metadata.preprocessing
    if not isinstance(about, TextPreprocessing):
        return metadata
    return metadata.model_copy(
        update={"preprocessing": about.model_copy(update={"vocabulary": ()})}
    )


def read_metadata(config: pb.ModelConfig, version: int) -> ArtifactMetadata | None:
    """The metadata of one version, or None for a model from elsewhere.

    Raises:
        UserError: The document is not one that this version of the project understands.
    """
    key = f"{METADATA_KEY}/{version}"
    if key not in config.parameters:
        return None
    try:
        return ArtifactMetadata.model_validate_json(config.parameters[key].string_value)
    except ValidationError as error:
        raise UserError(
            f"the metadata of model '{config.name}' version {version} is not understood here",
            "Use the same version of bilateral-serve everywhere, or add the model again.",
        ) from error


def described_versions(config: pb.ModelConfig) -> tuple[int, ...]:
    """The versions whose metadata a configuration carries."""
    prefix = f"{METADATA_KEY}/"
    numbers = (key.removeprefix(prefix) for key in config.parameters if key.startswith(prefix))
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def interface(config: pb.ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the graph sees them: with the batch axis, where Triton batches."""
    batch = [-1] if config.max_batch_size else []

    def spec(tensor: Any) -> TensorSpec:
        datatype = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        sizes = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        return from_triton(tensor.name, datatype, [*batch, *sizes], bool(batch))

    return tuple(map(spec, config.input)), tuple(map(spec, config.output))


def check_interface(config: pb.ModelConfig, artifact: Artifact) -> None:
    """Check that a model file takes and gives what the configuration says.

    A stream of words has an interface of its own, the same for every language model.

    Raises:
        UserError: An input or output differs, in name, element type or shape.
    """
    if config.model_transaction_policy.decoupled:
        return
    for kind, expected, found in zip(
        ("input", "output"), interface(config), (artifact.inputs, artifact.outputs), strict=True
    ):
        said = {(spec.name, spec.dtype, dims(spec)) for spec in expected}
        given = {(spec.name, spec.dtype, dims(spec)) for spec in found}
        if said != given:
            raise UserError(
                f"model '{config.name}' has {kind} {_listed(expected)}, "
                f"but {artifact.path} has {_listed(found)}",
                "Versions of one model must agree; add it under another name.",
            )


def check_batch(config: pb.ModelConfig, artifact: Artifact) -> None:
    """Check that a model file accepts the batches that Triton will build.

    Raises:
        UserError: max_batch_size is above the largest batch the file accepts.
    """
    if artifact.max_batch is not None and config.max_batch_size > artifact.max_batch:
        raise UserError(
            f"model '{config.name}' has max_batch_size {config.max_batch_size}, but the profiles of"
            f" {artifact.path} go up to a batch of {artifact.max_batch}",
            f"Use --max-batch-size {artifact.max_batch}, or build the plan for larger batches.",
        )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs))


def _describe(tensor: Any, spec: TensorSpec, batch: int) -> None:
    tensor.name = spec.name
    tensor.data_type = pb.DataType.Value(f"TYPE_{triton_name(spec)}")
    tensor.dims.extend(_dims(spec, batch))
    if batch and len(spec.shape) == 1:
        tensor.reshape.SetInParent()


def _dims(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The sizes that config.pbtxt lists: without the batch, but at least one.

    A tensor with the batch as its only axis is `[batch, 1]` to clients; Triton reshapes it.
    """
    return (dims(spec)[1:] or (1,)) if batch else dims(spec)


def _check_datatypes(artifact: Artifact, target: Target) -> None:
    for spec in artifact.tensors:
        if spec.dtype == "bfloat16" and target == "python":
            raise UserError(
                f"tensor '{spec.name}' of {artifact.path} is bfloat16, which numpy lacks and "
                "target python cannot pass on",
                "Export the model with float32 inputs and outputs.",
            )


def _max_batch_size(artifact: Artifact, wanted: int | None) -> int:
    if artifact.has_free_batch:
        limit = DEFAULT_BATCH if artifact.max_batch is None else artifact.max_batch
        return min(DEFAULT_BATCH, limit) if wanted is None else wanted
    if wanted:
        fixed = next(
            (spec for spec in artifact.tensors if not isinstance((*spec.shape, 0)[0], str)),
            artifact.outputs[0],
        )
        raise UserError(
            f"max_batch_size {wanted} needs a graph whose first axis is the batch in every tensor, "
            f"but '{fixed.name}' of {artifact.path} has shape {list(fixed.shape)}",
            "Export it with a dynamic batch, or use max_batch_size 0.",
        )
    return 0


def _version_policy(text: str) -> pb.ModelVersionPolicy:
    if text == "all":
        return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())
    if match := re.fullmatch(r"latest(?::([1-9]\d*))?", text):
        latest = pb.ModelVersionPolicy.Latest(num_versions=int(match[1] or 1))
        return pb.ModelVersionPolicy(latest=latest)
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        numbers = pb.ModelVersionPolicy.Specific(versions=[int(n) for n in text.split(",")])
        return pb.ModelVersionPolicy(specific=numbers)
    raise UserError(
        f"'{text}' does not say which versions to serve",
        "Use 'latest', 'latest:2', 'all', or version numbers such as '1,3'.",
    )


def _dynamic_batching(settings: Settings) -> pb.ModelDynamicBatching:
    batching = pb.ModelDynamicBatching(max_queue_delay_microseconds=settings.max_queue_delay_us)
    # No policy unless one is asked for. With one, tritonserver 2.51 does not hand the next batch to
    # an instance ahead of time, and now and then a request then waits 0.5 s for nothing (measured;
    # more often on a busy machine). A client's deadline drops what waits without it too: gRPC
    # cancels the call.
    if settings.max_queue_size:
        policy = batching.default_queue_policy
        policy.max_queue_size = settings.max_queue_size
        policy.allow_timeout_override = True
    return batching


def _parameters(target: Target, settings: Settings) -> dict[str, str]:
    if target == "python":
        return {
            "runtime": settings.runtime,
            "threads": str(settings.threads),
            "spinning": str(int(settings.spinning)),
        }
    if target == "onnxruntime" and settings.threads:
        return {"intra_op_thread_count": str(settings.threads)}
    return {}


def _warmup(artifact: Artifact, batch: int) -> list[pb.ModelWarmup]:
    """One request at batch 1 and one at the largest batch: runtimes plan memory per shape."""
    sizes = sorted({1, batch}) if batch else [0]
    return [
        pb.ModelWarmup(
            name=f"batch {size}" if size else "one request",
            batch_size=size,
            inputs={spec.name: _warmup_input(spec, batch) for spec in artifact.inputs},
        )
        for size in sizes
    ]


def _warmup_input(spec: TensorSpec, batch: int) -> pb.ModelWarmup.Input:
    sizes = [WARMUP_LENGTH if size < 0 else size for size in _dims(spec, batch)]
    source = pb.ModelWarmup.Input(data_type=f"TYPE_{triton_name(spec)}", dims=sizes)
    # Zeros for integers: random bits would be indices out of range.
    if spec.dtype.startswith("float"):
        source.random_data = True
    else:
        source.zero_data = True
    return source
