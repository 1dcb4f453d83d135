"""Validation rules of tritonserver for an ensemble, a model made of steps through others.

The rules are those of Triton's core (src/model_config_utils.cc: ValidateEnsembleSchedulingConfig;
src/ensemble_scheduler/ensemble_utils.cc), tested like those in rules.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.doctor.findings import NOT_ANSWERED, NOT_LOADED, Finding, error

_NAMES_OF_A_BACKEND = ("model.onnx", "model.plan", "model.py", "model.pt", "model.xml")


def check_ensemble(
    name: str,
    config: pb.ModelConfig,
    models: Mapping[str, pb.ModelConfig],
    versions: Mapping[str, Collection[int]],
) -> Iterator[Finding]:
    """Yield every rule that an ensemble breaks.

    Args:
        name: The ensemble.
        config: Its configuration.
        models: The configurations of the repository's models, by name.
        versions: The versions of them that are served, by name.
    """
    for problem in (*_alone(config), *_flow(config), *_steps(config, models, versions)):
        yield error(name, problem, NOT_LOADED, f"Correct {CONFIG_FILE}.")
    for problem in _open_sizes(config, models):
        yield error(name, problem, NOT_ANSWERED, f"Write the size in {CONFIG_FILE}.")


def _open_sizes(config: pb.ModelConfig, models: Mapping[str, pb.ModelConfig]) -> Iterator[str]:
    inputs = {tensor.name: tensor.dims for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name, pb.ModelConfig())
        for tensor in model.input:
            outer = step.input_map.get(tensor.name, "")
            pairs = zip(inputs.get(outer, ()), tensor.dims, strict=False)
            if any(said == -1 != taken for said, taken in pairs):
                yield f"leaves a size of '{outer}' open that model '{step.model_name}' fixes"


def _alone(config: pb.ModelConfig) -> Iterator[str]:
    if config.backend:
        yield f"is an ensemble, and names the backend {config.backend}"
    for part in ("instance_group", "optimization", "model_warmup"):
        if any(field.name == part for field, _ in config.ListFields()):
            yield f"is an ensemble, which has no {part}"
    if config.default_model_filename in _NAMES_OF_A_BACKEND:
        yield f"is an ensemble, and {config.default_model_filename} is the name of a backend's file"
    if not config.ensemble_scheduling.step:
        yield "is an ensemble without steps"
    for number, step in enumerate(config.ensemble_scheduling.step):
        if not (step.model_name and step.input_map and step.output_map):
            yield f"step {number} needs a model_name, an input_map and an output_map"


def _flow(config: pb.ModelConfig) -> Iterator[str]:
    """Yield tensors that are not written once and read, or that no input leads to."""
    steps = config.ensemble_scheduling.step
    written = [tensor for step in steps for tensor in step.output_map.values()]
    read = {tensor for step in steps for tensor in step.input_map.values()}
    for tensor in sorted({tensor for tensor in written if written.count(tensor) > 1}):
        yield f"tensor '{tensor}' is written by more than one output"
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for tensor in sorted((inputs | outputs) - read - {*written}):
        yield f"tensor '{tensor}' of the ensemble is used by no step"
    ready, before = set(inputs), -1
    while len(ready) > before:
        before = len(ready)
        for step in steps:
            if ready.issuperset(step.input_map.values()):
                ready.update(step.output_map.values())
    for tensor in sorted((read | {*written}) - ready):
        yield f"tensor '{tensor}' cannot be computed from the inputs"
    for tensor in sorted({*written} - read - outputs):
        yield f"tensor '{tensor}' is written and never used"


def _steps(
    config: pb.ModelConfig,
    models: Mapping[str, pb.ModelConfig],
    versions: Mapping[str, Collection[int]],
) -> Iterator[str]:
    known: dict[str, tuple[Any, pb.ModelConfig]] = {}
    for tensor in (*config.input, *config.output):
        known.setdefault(tensor.name, (tensor, config))
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            yield f"model '{step.model_name}' of a step is not in the repository"
            continue
        if step.model_version != -1 and step.model_version not in versions[step.model_name]:
            yield (
                f"version {step.model_version} of model '{step.model_name}' is not served; -1 is"
                " the newest"
            )
        if 0 < model.max_batch_size < config.max_batch_size:
            yield (
                f"max_batch_size is {config.max_batch_size}, and that of model"
                f" '{step.model_name}' is {model.max_batch_size}"
            )
        for tensor in model.input:
            if tensor.name not in step.input_map and not tensor.optional:
                yield f"input '{tensor.name}' of model '{step.model_name}' is given nothing"
        for kind, tensors, mapped in (
            ("input", model.input, step.input_map),
            ("output", model.output, step.output_map),
        ):
            there = {tensor.name: tensor for tensor in tensors}
            for inner, outer in sorted(mapped.items()):
                if inner not in there:
                    yield f"model '{step.model_name}' has no {kind} '{inner}'"
                elif not _agree(
                    known.setdefault(outer, (there[inner], model)), there[inner], model
                ):
                    yield (
                        f"tensor '{outer}' and {kind} '{inner}' of model '{step.model_name}'"
                        " differ in data_type or dims"
                    )


def _agree(known: tuple[Any, pb.ModelConfig], tensor: Any, model: pb.ModelConfig) -> bool:
    """Return whether types are the same and shapes can be, with or without the batch."""
    other, owner = known
    # An ensemble's own tensors have the shape that a step sees.
    reshaped = owner.platform == "ensemble" and other.HasField("reshape")
    dims = other.reshape.shape if reshaped else other.dims
    batches = [[-1] if config.max_batch_size else [] for config in (owner, model)]
    return other.data_type == tensor.data_type and (
        _can_be_equal(dims, tensor.dims)
        or _can_be_equal([*batches[0], *dims], [*batches[1], *tensor.dims])
    )


def _can_be_equal(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )
