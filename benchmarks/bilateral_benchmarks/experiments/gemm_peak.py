"""The GEMM peak: operations a second of the fastest library's square matrix product."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.statistics.interleave import Blocks, interleave

Library = Literal["torch", "numpy", "onnxruntime", "openvino"]
Matrix = NDArray[np.float32]

# From what fits into the second-level cache to what does not; libraries differ in what suits them.
SIZES = (512, 1024, 2048)
_PREFIX = "GEMM:"
_ROUNDS, _BLOCK_S = 3, 0.06


class Rate(BaseModel):
    """What one library reached with one size.

    Attributes:
        library: Whose product.
        size: Side of the square float32 matrices.
        gflops: 2 size^3 over the median time.
    """

    model_config = ConfigDict(frozen=True)

    library: Library
    size: int
    gflops: float

    def __str__(self) -> str:
        return f"{self.library} {self.size}"


class Goal(BaseModel):
    """A share of the GEMM peak that a row should reach."""

    model_config = ConfigDict(frozen=True)

    row: str
    share: float


@dataclass(frozen=True)
class Product:
    """One product, ready to be timed.

    Attributes:
        library: Whose product.
        size: Side of the matrices.
        call: Multiplies once, into memory that is there already.
    """

    library: Library
    size: int
    call: Callable[[], object]

    @property
    def name(self) -> str:
        """Its name among contenders."""
        return f"{_PREFIX}{self.library} {self.size}"

    @property
    def flops(self) -> int:
        """Operations of one call."""
        return 2 * self.size**3

    def rate(self, blocks: Blocks) -> Rate:
        """Return the rate that it reached."""
        gflops = self.flops / blocks.seconds(self.name) / 1e9
        return Rate(library=self.library, size=self.size, gflops=gflops)


def qualify() -> list[Product]:
    """Return each installed library's product in its best size, by a few rounds of warm-up."""
    products = [product for size in SIZES for product in _products(size)]
    blocks = interleave({p.name: p.call for p in products}, _ROUNDS, block_s=_BLOCK_S)
    best: dict[Library, Product] = {}
    for product in products:
        known = best.get(product.library)
        if known is None or product.rate(blocks).gflops > known.rate(blocks).gflops:
            best[product.library] = product
    return list(best.values())


def fastest(products: list[Product], blocks: Blocks) -> Product:
    """Return the product that sets the GEMM peak, by the contenders' rounds."""
    return max(products, key=lambda product: product.rate(blocks).gflops)


def _products(size: int) -> Iterator[Product]:
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    makers: Mapping[Library, Callable[[Matrix, Matrix], Callable[[], object]]] = {
        "torch": _torch,
        "numpy": _numpy,
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
    }
    for library, make in makers.items():
        if importlib.util.find_spec(library) is not None:
            with contextlib.suppress(ImportError):
                yield Product(library, size, make(left, right))


def _torch(left: Matrix, right: Matrix) -> Callable[[], object]:
    import torch

    one, other, out = torch.from_numpy(left), torch.from_numpy(right), torch.empty(left.shape)
    return lambda: torch.mm(one, other, out=out)


def _numpy(left: Matrix, right: Matrix) -> Callable[[], object]:
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def _onnxruntime(left: Matrix, right: Matrix) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _matmul(right), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    given = onnxruntime.OrtValue.ortvalue_from_numpy(left)
    out = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(left))
    binding.bind_ortvalue_input("left", given)
    binding.bind_ortvalue_output("out", out)
    return lambda: session.run_with_iobinding(binding)


def _openvino(left: Matrix, right: Matrix) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(_matmul(right)), "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(left, shared_memory=True))
    return lambda: request.infer()


def _matmul(right: Matrix) -> bytes:
    """Return a model of one product with a constant on the right, as a linear layer has."""
    shape = list(right.shape)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["out"])],
        "product",
        [value("left", onnx.TensorProto.FLOAT, shape)],
        [value("out", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right, "right")],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
