"""config.pbtxt from a model's interface and the settings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, get_args

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.tensors import TensorSpec
from bilateral_serving.config import (
    LABELS_FILE,
    MODEL_FILES,
    Settings,
    Target,
    version_policy,
)
from bilateral_serving.datatypes import triton_name
from bilateral_serving.repository.raw_form import add_raw

DEFAULT_BATCH = 8
# The size that warm-up requests take for a free axis other than the batch.
WARMUP_LENGTH = 8


def build(name: str, artifact: Artifact, target: Target, settings: Settings) -> pb.ModelConfig:
    """Return the configuration under which Triton serves `artifact` as `name`.

    Raises:
        UserError: The settings ask for what the graph or the target cannot do.
    """
    if target not in get_args(Target):
        raise UserError(f"unknown target '{target}'", f"Use one of {', '.join(get_args(Target))}.")
    fix = "Leave it out, or use target python."
    _refuse(settings, _NOT_HONOURED[target], f"target {target}", fix)
    if target == "tensorrt" and settings.device == "cpu":
        settings = dataclasses.replace(settings, device="gpu")
    if settings.stream:
        return _build_stream(name, artifact, target, settings)
    _check_datatypes(artifact, target)
    batch = _max_batch_size(artifact, settings.max_batch_size)
    if not batch:
        _refuse(settings, _OF_BATCHING, "a model without batching", "Leave it out.")

    config = pb.ModelConfig(
        name=name,
        backend=target,
        max_batch_size=batch,
        version_policy=version_policy(settings.versions),
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
        if labels and spec.sizes[-1:] == (len(labels),):
            output.label_filename = LABELS_FILE
    if batch:
        config.dynamic_batching.CopyFrom(_dynamic_batching(settings))
    for key, value in _parameters(target, settings).items():
        config.parameters[key].string_value = value
    if settings.warmup:
        config.model_warmup.extend(_warmup(artifact, batch))
    if settings.raw:
        add_raw(config, artifact)
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


def stream_interface() -> pb.ModelConfig:
    """Return the inputs and outputs of every stream of words, and nothing else."""
    config = pb.ModelConfig()
    for key, (kind, size) in _STREAM_INPUTS.items():
        config.input.add(name=key, data_type=f"TYPE_{kind}", dims=[size], optional=key != "text")
    for key, kind in _STREAM_OUTPUTS.items():
        config.output.add(name=key, data_type=f"TYPE_{kind}", dims=[-1])
    return config


def _build_stream(
    name: str, artifact: Artifact, target: Target, settings: Settings
) -> pb.ModelConfig:
    about = artifact.metadata.preprocessing if artifact.metadata else None
    if target != "python" or not isinstance(about, TextPreprocessing) or not about.vocabulary:
        raise UserError(
            f"{artifact.path} cannot be served as a stream of words by target {target}",
            "Give a language model that was exported with its vocabulary, and target python.",
        )
    if settings.raw:
        raise UserError(
            "a stream of words takes its text as it is, and was to be raw too", "Leave raw out."
        )
    streams = DEFAULT_BATCH if settings.max_batch_size is None else settings.max_batch_size
    if not streams:
        raise UserError(
            "a stream of words was given max_batch_size 0: it is how many streams run at once",
            "Give 1 or more, or leave it out.",
        )
    if settings.instances != 1:
        raise UserError(
            f"a stream of words is served by one instance, not {settings.instances}: the message"
            " that ends a stream has to reach the process that writes it",
            "Leave the instances out; max_batch_size is how many streams one answers at once.",
        )
    _refuse(
        settings, _OF_BATCHING, "a stream of words", "Leave it out; no stream waits for others."
    )
    config = pb.ModelConfig(
        name=name,
        backend=target,
        version_policy=version_policy(settings.versions),
        instance_group=[pb.ModelInstanceGroup(kind=f"KIND_{settings.device.upper()}", count=1)],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
    )
    config.MergeFrom(stream_interface())
    for key, value in (_parameters(target, settings) | {"streams": str(streams)}).items():
        config.parameters[key].string_value = value
    return config


# What only the Python backend reads; TensorRT has no threads of its own either.
_NOT_HONOURED: dict[Target, tuple[str, ...]] = {
    "python": (),
    "onnxruntime": ("runtime", "spinning"),
    "tensorrt": ("runtime", "spinning", "threads"),
}
# Triton keeps both in dynamic_batching, which a model without a batch cannot have.
_OF_BATCHING = ("max_queue_delay_us", "max_queue_size")


def _refuse(settings: Settings, names: tuple[str, ...], what: str, fix: str) -> None:
    default = Settings()
    for name in names:
        if getattr(settings, name) != getattr(default, name):
            raise UserError(f"{what} cannot honour {name} {getattr(settings, name)}", fix)


def _describe(tensor: Any, spec: TensorSpec, batch: int) -> None:
    tensor.name = spec.name
    tensor.data_type = pb.DataType.Value(f"TYPE_{triton_name(spec)}")
    tensor.dims.extend(_dims(spec, batch))
    if batch and len(spec.shape) == 1:
        tensor.reshape.SetInParent()


def _dims(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Return the sizes that config.pbtxt lists: without the batch, but at least one.

    A tensor with the batch as its only axis is `[batch, 1]` to clients; Triton reshapes it.
    """
    return (spec.sizes[1:] or (1,)) if batch else spec.sizes


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
    if target == "onnxruntime" and (settings.threads or settings.device == "cpu"):
        # Its own default gives every instance all cores.
        shared = max(1, len(os.sched_getaffinity(0)) // settings.instances)
        return {"intra_op_thread_count": str(settings.threads or shared)}
    return {}


def _warmup(artifact: Artifact, batch: int) -> list[pb.ModelWarmup]:
    """Return requests at batch 1 and the largest batch: runtimes plan memory per shape."""
    sizes = sorted({1, batch}) if batch else [0]
    about = artifact.metadata.image_sizes if artifact.metadata else {}
    usual = {name: size for name, (_, size, _) in about.items()}
    return [
        pb.ModelWarmup(
            name=f"batch {size}" if size else "one request",
            batch_size=size,
            inputs={spec.name: _warmup_input(spec, batch, usual) for spec in artifact.inputs},
        )
        for size in sizes
    ]


def _warmup_input(spec: TensorSpec, batch: int, usual: Mapping[str, int]) -> pb.ModelWarmup.Input:
    named = [
        usual.get(size, WARMUP_LENGTH) if isinstance(size, str) else size for size in spec.shape
    ]
    sizes = (named[1:] or [1]) if batch else named
    # Zeros: random bits would be indices out of range, and floats that overflow within the model.
    return pb.ModelWarmup.Input(data_type=f"TYPE_{triton_name(spec)}", dims=sizes, zero_data=True)
