"""The traced program of a user's own module, and the line of it that cannot be traced."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from bilateral_export.errors import UserError
from bilateral_export.models.user_code import fault, reason, relative
from bilateral_export.models.user_model import UserModel

_WRITE = "Write the choice with tensors, as torch.where does; Python's if and while cannot be kept."
_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
# Where a choice was made, as the tracer says it: the end of a path and a line.
_CHOICE = re.compile(r"([^/\s(]+\.py):(\d+)")
_ENDLESS = 1 << 40  # sizes of no limit are larger
_LOGGER = "torch.fx.experimental.symbolic_shapes"


def traced_program(model: UserModel, tensors: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """Return a user's module traced with its named dimensions free.

    Args:
        model: The module.
        tensors: Example inputs.

    Raises:
        UserError: What it does depends on values, or on a size within the definition's `sizes`;
            with the user's line.
    """
    shapes = tuple(
        {a: torch.export.Dim.DYNAMIC for a, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in model.inputs()
    )
    try:
        with _without_dumps():
            program = torch.export.export(model, tuple(tensors), dynamic_shapes=shapes)
    except GuardOnDataDependentSymNode as error:
        raise UserError(
            f"{_at(error, model)} depends on values, which an exported model cannot",
            _WRITE,
        ) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{_at(error, model)} cannot be traced: {reason(error)}",
            "Keep to operations on tensors, of any size that the definition allows.",
        ) from error
    _check_ranges(program, model)
    return program


def conversion_error(
    error: Exception, program: torch.export.ExportedProgram, model: UserModel
) -> UserError:
    """Return the error of a program that ONNX cannot say, with the user's line."""
    texts, following = [], error.__cause__ or error.__context__
    while following is not None:
        texts.append(str(following))
        following = following.__cause__ or following.__context__
    found = _NO_FUNCTION.search("\n".join([str(error), *texts]))
    if found is None:
        first = next((text.strip().splitlines()[0] for text in reversed(texts) if text), str(error))
        return UserError(f"{_at(error, model)} cannot be written as ONNX: {first}")
    return UserError(
        f"{_caller(found[1], program, model)} calls {found[1]}, which ONNX has no operator for",
        "Write it with other operations.",
    )


def _at(error: BaseException, model: UserModel) -> str:
    return fault(error, model.source_directory) or model.config.source


def _caller(operator: str, program: torch.export.ExportedProgram, model: UserModel) -> str:
    """The user's line that calls an operator, or one that is made of it."""
    directory = model.source_directory
    with _without_dumps(), contextlib.suppress(Exception):  # the line is all that is at stake
        program = program.run_decompositions()
    last = operator.rpartition(".")[2].strip("_")
    for node in program.graph.nodes:
        if node.op == "call_function" and last in str(node.target):
            stack = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
            for file, line in reversed(stack):
                if place := relative(file, directory):
                    return f"{place}:{line}"
    return model.config.source


def _check_ranges(program: torch.export.ExportedProgram, model: UserModel) -> None:
    """Refuse a module that does something else at a size that its definition allows."""
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"]
    inputs = [value for value in values if isinstance(value, Tensor)][-len(model.inputs()) :]
    for spec, value in zip(model.inputs(), inputs, strict=True):
        for name, size in zip(spec.shape, value.shape, strict=True):
            if not isinstance(name, str) or not isinstance(size, torch.SymInt):
                continue
            low, high = model.definition.sizes.get(name, (1, None))
            symbol = size.node.expr
            allowed = program.range_constraints.get(symbol)
            if allowed is None:
                continue
            # A tracer takes 0 and 1 for constants, and then does not mean it.
            if allowed.lower > max(low, 2) or (high is not None and allowed.upper < high):
                upper = "on" if allowed.upper > _ENDLESS else f"to {allowed.upper}"
                raise UserError(
                    f"{_choice(size, model)} chooses by the size of {name}, and the exported model"
                    f" would be right from {allowed.lower} {upper} only",
                    f"Write it without a choice, or give sizes of {name} in that range.",
                )


def _choice(size: torch.SymInt, model: UserModel) -> str:
    """The user's line that chose by a size."""
    directory = model.source_directory
    environment: Any = size.node.shape_env
    for guard in environment.guards:
        if size.node.expr in guard.expr.free_symbols:
            for file, line in _CHOICE.findall(str(guard.sloc)):
                if any(directory.glob(f"**/{file}")):
                    return f"{file}:{line}"
    return model.config.source


@contextlib.contextmanager
def _without_dumps() -> Iterator[None]:
    """Keep the tracer from printing its graph where it fails."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
