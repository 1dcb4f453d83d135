"""Validation rules of tritonserver for a configuration, whatever the model's files are.

The rules are those of Triton's core (src/model_config_utils.cc: ValidateModelConfig,
ValidateInstanceGroup, ValidateModelIOConfig; src/backend_model_instance.cc: GenerateWarmupData).
tests/serving/doctor/test_agreement.py asks the server itself about random edits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_serving import raw
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.doctor.findings import NOT_ANSWERED, NOT_LOADED, Finding, error

Refusal = tuple[str, str]
"""What is the matter, and what to write instead."""


def check_rules(name: str, config: pb.ModelConfig, gpus: int) -> Iterator[Finding]:
    """Yield every rule that a configuration breaks.

    Args:
        name: The model.
        config: Its configuration.
        gpus: How many GPUs the server has.
    """
    for check in (_batching, _instances, _tensors, _warmups, _others):
        for problem, fix in check(config, gpus):
            yield error(name, problem, NOT_LOADED, f"{fix} in {CONFIG_FILE}.")
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [tensor.name for tensor in tensors]
        for twice in sorted({tensor for tensor in names if names.count(tensor) > 1}):
            labelled = sum(t.name == twice and bool(t.label_filename) for t in config.output)
            why = NOT_LOADED if kind == "output" and labelled > 1 else NOT_ANSWERED
            fix = f"Leave one of them out of {CONFIG_FILE}."
            yield error(name, f"has {kind} '{twice}' more than once", why, fix)


def _batching(config: pb.ModelConfig, gpus: int) -> Iterator[Refusal]:
    largest = config.max_batch_size
    if largest < 0:
        yield f"max_batch_size is {largest}", "Write 0 (requests are no batches) or more"
        return
    batching = config.dynamic_batching
    preferred = [*batching.preferred_batch_size]
    preferred += config.sequence_batching.oldest.preferred_batch_size
    for size in preferred:
        if not 0 < size <= largest:
            yield (
                f"the preferred batch size {size} is not from 1 to max_batch_size, {largest}",
                "Leave preferred_batch_size out, or correct it",
            )
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield (
            f"default_priority_level is {batching.default_priority_level}, of {levels} levels",
            f"Write one from 1 to {levels}",
        )
    for level in batching.priority_queue_policy if levels else ():
        if not 1 <= level <= levels:
            yield f"a queue policy is for priority {level}, of {levels} levels", "Correct its key"
    if batching.preserve_ordering:
        if levels > 1:
            yield "preserve_ordering excludes more than one priority level", "Leave one of them out"
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(p.default_timeout_microseconds and p.timeout_action for p in policies):
            yield "preserve_ordering excludes the timeout action DELAY", "Leave one of them out"


def _instances(config: pb.ModelConfig, gpus: int) -> Iterator[Refusal]:
    kinds = pb.ModelInstanceGroup
    for group in config.instance_group:
        kind = group.kind
        if kind == kinds.KIND_AUTO:  # a GPU's, where all that are named are there
            there = gpus > 0 and all(0 <= gpu < gpus for gpu in group.gpus)
            kind = kinds.KIND_GPU if there else kinds.KIND_CPU
        if kind != kinds.KIND_GPU and group.gpus:
            yield (
                f"an instance group of {kinds.Kind.Name(group.kind)} names gpus {[*group.gpus]}",
                "Leave the gpus out, or write KIND_GPU on a machine that has them",
            )
        elif gpus and not all(0 <= gpu < gpus for gpu in group.gpus):
            yield (
                f"an instance group names gpus {[*group.gpus]}, and there are {gpus}",
                f"Name gpus from 0 to {gpus - 1}",
            )
        if group.profile and config.backend != "tensorrt":
            yield "an instance group names a profile, which only plans have", "Leave it out"


def _tensors(config: pb.ModelConfig, gpus: int) -> Iterator[Refusal]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            for problem in _tensor(tensor, config):
                yield f"{kind} '{tensor.name}' {problem}", "Correct it"


def _tensor(tensor: Any, config: pb.ModelConfig) -> Iterator[str]:
    if not tensor.name:
        yield "has no name"
    if tensor.data_type == pb.TYPE_INVALID:
        yield "has no data_type"
    if not tensor.dims:
        yield "has no dims"
    if any(size < 1 and size != -1 for size in (*tensor.dims, *tensor.reshape.shape)):
        yield f"has the dims {[*tensor.dims]}; each must be 1 or more, or -1"
    elif tensor.HasField("reshape"):
        if not tensor.reshape.shape and not config.max_batch_size:
            yield "is reshaped to a scalar, which only a batch may be"
        elif _parts(tensor.dims) != _parts(tensor.reshape.shape):
            yield f"cannot be reshaped from {[*tensor.dims]} to {[*tensor.reshape.shape]}"
    if getattr(tensor, "format", 0) and len(tensor.dims) != 3:
        yield "has a format of images, but not 3 dims"
    if tensor.is_shape_tensor and config.platform != "tensorrt_plan":
        yield "is declared a shape tensor, which only plans have"


def _parts(dims: Sequence[int]) -> list[int]:
    """Return the elements between free sizes, which a reshape keeps."""
    parts: list[list[int]] = [[]]
    for size in dims:
        if size == -1:
            parts.append([])
        else:
            parts[-1].append(size)
    return [math.prod(part) for part in parts]


def _warmups(config: pb.ModelConfig, gpus: int) -> Iterator[Refusal]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for warmup in config.model_warmup:
        if not warmup.batch_size:  # such a one is skipped
            continue
        said = f"the warm-up '{warmup.name}'"
        if warmup.batch_size > max(1, config.max_batch_size):
            yield (
                f"{said} has batch_size {warmup.batch_size}, above max_batch_size,"
                f" {config.max_batch_size}",
                "Write a smaller one",
            )
        for name, source in warmup.inputs.items():
            if any(size < 0 for size in source.dims):
                yield f"{said} leaves a size of input '{name}' open", "Write sizes"
            elif source.WhichOneof("input_data_type") is None:
                yield f"{said} does not say what input '{name}' holds", "Write zero_data: true"
            elif name in inputs:
                given, wanted = inputs[name], source
                if given.data_type != wanted.data_type or not _takes(given.dims, wanted.dims):
                    yield (
                        f"{said} gives input '{name}' as {_described(wanted)}, and it is"
                        f" {_described(given)}",
                        "Give what the input takes",
                    )
        required = [tensor.name for tensor in raw.required(config)]
        missing = [name for name in required if name not in warmup.inputs]
        if missing or len(required) > len(set(required)):
            listed = ", ".join(missing or required)
            yield f"{said} does not give every input once: {listed}", "Give each input"


def _takes(dims: Sequence[int], sizes: Sequence[int]) -> bool:
    return len(dims) == len(sizes) and all(
        wanted in (-1, size) for wanted, size in zip(dims, sizes, strict=True)
    )


def _described(tensor: Any) -> str:
    return f"{pb.DataType.Name(tensor.data_type).removeprefix('TYPE_')} {[*tensor.dims]}"


def _others(config: pb.ModelConfig, gpus: int) -> Iterator[Refusal]:
    if config.response_cache.enable:
        if config.model_transaction_policy.decoupled:
            yield "a response cache cannot serve a decoupled model", "Leave response_cache out"
        if config.HasField("sequence_batching"):
            yield "a response cache cannot serve sequence batching", "Leave response_cache out"
    file = config.default_model_filename
    if config.backend == "python" and file and not file.endswith(".py"):
        yield f"default_model_filename is {file}, and target python runs a .py file", "Leave it out"
    if config.HasField("ensemble_scheduling") and config.platform != "ensemble":
        yield "ensemble_scheduling is only for platform ensemble", "Leave it out"
