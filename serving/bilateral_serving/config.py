"""The model configuration (config.pbtxt): its settings, text, metadata and interface."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact
from bilateral_export.errors import UserError
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.runners.registry import DEFAULT, RUNTIMES, SERVED
from bilateral_export.tensors import TensorSpec
from bilateral_serving import raw
from bilateral_serving.datatypes import from_triton

Target = Literal["python", "onnxruntime", "tensorrt"]
Device = Literal["cpu", "gpu"]

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
VOCABULARY_FILE = "vocabulary.txt"
MODEL_FILES: dict[Target, str] = {
    "python": "model.onnx",
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
}
# What the integers of config.pbtxt hold, and those of version numbers.
_MOST = 2**31 - 1
LARGEST_VERSION = 2**63 - 1
# A parameter of one version, such as `bilateral/1`.
_OF_A_VERSION = re.compile(r"[a-z]+/[1-9]\d*")


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        max_batch_size: Largest batch Triton builds; 0 turns batching off. None: 8 if the graph's
            first axis is free, else 0. Of a stream of words: how many run at once, 8 by default.
        instances: Copies of the model that run side by side.
        threads: Threads of one instance; 0 shares the machine's cores evenly among instances.
        max_queue_delay_us: How long, in microseconds, a request may wait for others to join its
            batch. With 0 a batch forms only of what queued up while all instances were busy.
        max_queue_size: Requests that may wait; one more is refused at once. 0: no limit. A limit
            costs latency: see config_builder.py.
        versions: Which versions are served: "latest", "latest:N", "all", or numbers "1,3".
        warmup: Whether the server runs each instance on made-up inputs before it says ready.
        device: "cpu" or "gpu".
        runtime: What executes the graph inside target python.
        spinning: Whether ONNX Runtime's threads wait busily for their next piece of work while a
            request runs. It makes answers faster where the cores are the server's own, and much
            slower where other processes want them too.
        stream: Whether a language model is served as text in, words out (Triton's decoupled mode)
            instead of as tensors.
        raw: Whether the model takes files too (encoded images, texts) and gives labels, a mask or
            the likelihoods of words; tensors are taken as without it.
    """

    max_batch_size: int | None = None
    instances: int = 1
    threads: int = 0
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    versions: str = "latest"
    warmup: bool = True
    device: Device = "cpu"
    runtime: str = DEFAULT
    spinning: bool = True
    stream: bool = False
    raw: bool = False

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
            if value is not None and not minimum <= value <= _MOST:
                raise UserError(f"{name} is {value}", f"It must be from {minimum} to {_MOST}.")
        for name, known in (("device", get_args(Device)), ("runtime", SERVED)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"unknown {name} '{getattr(self, name)}'", f"Use one of {', '.join(known)}."
                )
        if self.device not in RUNTIMES[self.runtime].devices:
            raise UserError(
                f"runtime {self.runtime} runs on the CPU only",
                f"Use runtime {DEFAULT}, or device cpu.",
            )
        version_policy(self.versions)

    @classmethod
    def given(cls, **options: Any) -> Settings | None:
        """Return the settings with the options that are not None; None if there are none."""
        chosen = {name: value for name, value in options.items() if value is not None}
        return cls(**chosen) if chosen else None


def write(config: pb.ModelConfig) -> str:
    """Return the text of config.pbtxt, checked to say the same when it is parsed back."""
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


def read(path: Path) -> pb.ModelConfig:
    """Read a model's config.pbtxt.

    Raises:
        UserError: It is not a model configuration.
        OSError: It cannot be read.
    """
    return parse(path.read_text(encoding="utf-8"), path)


def set_metadata(config: pb.ModelConfig, version: int, metadata: ArtifactMetadata | None) -> None:
    """Keep a version's metadata in the configuration, where every client can read it."""
    key = f"{METADATA_KEY}/{version}"
    config.parameters.pop(key, None)
    if metadata is not None:
        config.parameters[key].string_value = served(metadata).model_dump_json()


def served(metadata: ArtifactMetadata) -> ArtifactMetadata:
    """Return the metadata as a configuration keeps it: without the vocabulary, which is a file."""
    about = metadata.preprocessing
    if not isinstance(about, TextPreprocessing):
        return metadata
    return metadata.model_copy(
        update={"preprocessing": about.model_copy(update={"vocabulary": ()})}
    )


def read_metadata(config: pb.ModelConfig, version: int) -> ArtifactMetadata | None:
    """Return the metadata of one version, or None for a model from elsewhere.

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
    """Return the versions whose metadata a configuration carries."""
    prefix = f"{METADATA_KEY}/"
    numbers = (key.removeprefix(prefix) for key in config.parameters if key.startswith(prefix))
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def copy_versions(old: pb.ModelConfig, new: pb.ModelConfig) -> None:
    """Copy everything a configuration says of single versions into the one that replaces it."""
    for key, value in old.parameters.items():
        if _OF_A_VERSION.fullmatch(key):
            new.parameters[key].CopyFrom(value)


def keep_versions(config: pb.ModelConfig, versions: Collection[int]) -> None:
    """Remove what a configuration says of all versions but these; the version policy stays."""
    for key in list(config.parameters):
        if _OF_A_VERSION.fullmatch(key) and int(key.partition("/")[2]) not in versions:
            del config.parameters[key]


def without_version(policy: pb.ModelVersionPolicy, version: int) -> pb.ModelVersionPolicy:
    """Return the policy without `version`; the default policy if it named no other."""
    kept = [number for number in policy.specific.versions if number != version]
    if not policy.HasField("specific"):
        return policy
    return version_policy(",".join(map(str, kept)) or "latest")


def wants_gpu(config: pb.ModelConfig) -> bool:
    """Return whether an instance of the model runs on a GPU."""
    return any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def runtime_of(config: pb.ModelConfig) -> str:
    """Return the name of the runtime inside target python; the default one if none is named."""
    named = config.parameters["runtime"].string_value if "runtime" in config.parameters else ""
    return named or DEFAULT


def version_directories(model: Path) -> dict[int, Path]:
    """Return a model's versions, lowest number first, and their directories."""
    found = {
        int(path.name): path
        for path in model.iterdir()
        if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name)
    }
    return dict(sorted(found.items()))


def served_versions(config: pb.ModelConfig, model: Path) -> dict[int, Path]:
    """Return the versions of a model that Triton loads under the configuration's policy."""
    versions, policy = version_directories(model), config.version_policy
    if policy.HasField("all"):
        return versions
    if policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        return {number: path for number, path in versions.items() if number in wanted}
    latest = policy.latest.num_versions if policy.HasField("latest") else 1
    return dict(list(versions.items())[-latest:] if latest else ())


def interface(config: pb.ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs as the graph has them: with the batch axis if Triton batches.

    What the raw form of a model takes and gives beside them is left out.
    """
    batch = [-1] if config.max_batch_size else []
    inputs, outputs = raw.of_graph(config)

    def spec(tensor: Any) -> TensorSpec:
        datatype = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        sizes = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        return from_triton(tensor.name, datatype, [*batch, *sizes], bool(batch))

    return tuple(map(spec, inputs)), tuple(map(spec, outputs))


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
        said = {(spec.name, spec.dtype, spec.sizes) for spec in expected}
        given = {(spec.name, spec.dtype, spec.sizes) for spec in found}
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


def check_precision(config: pb.ModelConfig, artifact: Artifact) -> None:
    """Check that what runs the model computes in the precision of the file.

    Raises:
        UserError: The file is bf16, and ONNX Runtime would run it on a CPU.
    """
    if artifact.precision != "bf16" or config.backend == "tensorrt" or wants_gpu(config):
        return
    if runtime_of(config) == "onnxruntime":
        raise UserError(
            f"{artifact.path} is bf16, and ONNX Runtime has no bfloat16 operators on a CPU",
            "Export it as fp32 or fp16, or serve it on a GPU with target tensorrt.",
        )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs))


def version_policy(text: str) -> pb.ModelVersionPolicy:
    """Return which versions are served, as Triton takes it.

    Raises:
        UserError: The text is not what `Settings.versions` describes.
    """
    if text == "all":
        return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())
    match = re.fullmatch(r"latest(?::([1-9]\d*))?", text)
    if match and int(match[1] or 1) <= _MOST:
        latest = pb.ModelVersionPolicy.Latest(num_versions=int(match[1] or 1))
        return pb.ModelVersionPolicy(latest=latest)
    numbers = (
        [int(n) for n in text.split(",")] if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text) else []
    )
    if numbers and max(numbers) <= LARGEST_VERSION:
        return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=numbers))
    raise UserError(
        f"'{text}' does not say which versions to serve",
        "Use 'latest', 'latest:2', 'all', or version numbers such as '1,3'.",
    )
