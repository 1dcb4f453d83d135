"""INT8 and FP8: quantise and dequantise nodes around the products, by NVIDIA Model Optimizer.

TensorRT takes low precision from such nodes alone. Model Optimizer is not a dependency: it brings
packages (a CUDA onnxruntime, cupy, numpy 2) that do not go with a server of the Python backend.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import onnx

from bilateral_export.artifact import load_graph, require_external_files
from bilateral_export.engine.attention_path import attention_nodes
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file, require_file
from bilateral_export.tensors import Array

Mode = Literal["int8", "fp8"]


def quantize_onnx(
    model: Path, target: Path, calibration: Mapping[str, Array], mode: Mode = "int8"
) -> int:
    """Write `model` with its matrix products quantised; return how many quantise nodes it has.

    Attention itself, layer norms and everything between stay in the precision of the graph; export
    fp16 to have them there.

    Args:
        model: An exported ONNX file.
        target: The ONNX file to write.
        calibration: Typical inputs by name, some dozens of samples along the first axis.
        mode: The type of the products: INT8, or FP8 (E4M3) for GPUs from Ada on.

    Returns:
        The number of quantise nodes.

    Raises:
        UserError: Model Optimizer is not installed or refuses the model, or the calibration does
            not fit it.
    """
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise UserError(
            "quantising needs NVIDIA Model Optimizer, which is not installed",
            'In an environment of its own: pip install "nvidia-modelopt[onnx]". Then build the'
            " file it writes with `bilateral build`.",
        ) from error
    original = load_graph(model, weights=False)
    require_external_files(model, original)
    _check_calibration(original, calibration)
    with tempfile.TemporaryDirectory(prefix="bilateral-quantize-") as folder:
        # It writes intermediate files beside its input, and some where the process works.
        source, result = Path(folder) / model.name, Path(folder) / "quantised.onnx"
        for file in model.parent.glob(f"{model.name}*"):
            shutil.copy(file, folder)
        try:
            with _working_in(Path(folder)):
                quantize(
                    str(source),
                    quantize_mode=mode,
                    calibration_data=dict(calibration),
                    calibration_eps=["cpu"],
                    op_types_to_quantize=["MatMul"],
                    # Not fp16: it would turn the spatial term's float32 constants into halves.
                    high_precision_dtype="fp32",
                    output_path=str(result),
                    log_level="ERROR",
                )
        except Exception as error:
            reason = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"Model Optimizer cannot quantise {model}: {reason[0]}") from error
        quantised = load_graph(result)
    _check_attention(original, quantised, model)
    quantised.metadata_props.extend(original.metadata_props)  # it drops them
    with atomic_file(target) as temporary:
        onnx.save(quantised, temporary)
    return sum(node.op_type == "QuantizeLinear" for node in quantised.graph.node)


def read_calibration(path: Path) -> dict[str, Array]:
    """Return inputs by name from an `.npz` file.

    Raises:
        UserError: It is not such a file.
    """
    require_file(path, "calibration file")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    # A single array (.npy) is not a context manager.
    except (OSError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(
            f"{path} is not an .npz file of arrays", "Write it with numpy.savez(path, input=array)."
        ) from error


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Make `folder` the process's working directory within the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _check_calibration(model: onnx.ModelProto, calibration: Mapping[str, Array]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - weights
    if set(calibration) != inputs:
        raise UserError(
            f"the calibration has {', '.join(sorted(calibration)) or 'no arrays'},"
            f" the model takes {', '.join(sorted(inputs))}",
            "Give one array per input, under its name.",
        )


def _check_attention(before: onnx.ModelProto, after: onnx.ModelProto, path: Path) -> None:
    kept = len(attention_nodes(after)), len(after.functions)
    if kept != (len(attention_nodes(before)), len(before.functions)):
        raise UserError(
            f"quantising {path} lost attention nodes or their function bodies",
            "Use the version of nvidia-modelopt this was tested with (0.47).",
        )
