"""The kernels that a plan of TensorRT for RTX launches, read from the plan without a GPU.

Such a plan carries its launch sequence as text, one step a line, with the ONNX nodes each step
came from. The format is not documented (seen with 1.7), so what is read here only informs: nothing
refuses a plan because of it, and a plan without such text gives None.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(
    rb'^ *(?P<kind>function|fully_connected|plugin\w*)=\{ name="?(?P<name>[^\s"]+)"?'
    rb'[^\n]*? layers="(?P<layers>[^"\n]*)"',
    re.MULTILINE,
)
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FUSED_ATTENTION = "mha"


@dataclass(frozen=True)
class Kernel:
    """One step of the launch sequence.

    Attributes:
        name: The kernel's name; a fused attention kernel's contains "mha".
        nodes: The ONNX nodes it computes, a node inside a function followed by the function's node:
            "node_of_output | attention_0 (BilateralAttention)".
    """

    name: str
    nodes: tuple[str, ...]

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is a multi-head attention kernel: product, softmax and product in one."""
        return _FUSED_ATTENTION in self.name


def launched_kernels(plan: Path) -> tuple[Kernel, ...] | None:
    """Return a plan's kernels in launch order, or None where the plan does not say."""
    if plan.stat().st_size == 0:
        return None
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = tuple(
            Kernel(
                match["name"].decode("utf-8", "replace"),
                tuple(_LAYER.findall(match["layers"].decode("utf-8", "replace"))),
            )
            for match in _STEP.finditer(data)
        )
    return found or None


def fused_attention(kernels: tuple[Kernel, ...], attention_nodes: tuple[str, ...]) -> int:
    """Return how many of the named attention nodes became one fused attention kernel.

    Args:
        kernels: Of `launched_kernels`.
        attention_nodes: Names of the BilateralAttention nodes.
    """
    fused = {
        name
        for kernel in kernels
        if kernel.is_fused_attention
        for node in kernel.nodes
        for name in attention_nodes
        if f"| {name} (" in node
    }
    return len(fused)
