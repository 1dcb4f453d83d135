"""8-bit forms of a model in every runtime for CPUs: the loss and the speed of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bilateral_benchmarks.experiments.contenders import checkpoint_of
from bilateral_benchmarks.experiments.digits_head import digits_classifier
from bilateral_benchmarks.experiments.quantization import Quantization, quantize
from bilateral_export.graph.export import export_onnx
from bilateral_export.runners.registry import LOWERED, RUNTIMES
from bilateral_export.tensors import Array

# Random inputs, of which a quarter calibrates.
_ITEMS = 80
# Random weights decide nothing that could be lost: all layers are in 8 bits.
_ANY_LOSS = 0.5


def measure_eight_bits(
    source: str,
    *,
    max_loss: float = 0.005,
    rounds: int = 12,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Quantization]:
    """Return what `quantize` finds for each runtime that is installed.

    Args:
        source: A checkpoint, or a known model's name for random weights. To features without a head
            one is fitted for scikit-learn's digits, whose accuracy is then what is lost; otherwise
            decisions on random inputs are.
        max_loss: The largest share that may be lost; random weights may lose any.
        rounds: Interleaved rounds of each runtime's measurement.
        on_step: Called with what is being done.

    Raises:
        UserError: The checkpoint cannot be read, or quantised.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        on_step("the model")
        checkpoint, labels = checkpoint_of(source, folder), None
        inputs: Mapping[str, Array]
        if not Path(source).exists():
            max_loss = _ANY_LOSS
        if getattr(checkpoint.card.model, "output", None) == "cls":
            made = digits_classifier(checkpoint, folder)
            checkpoint, labels = made.checkpoint, made.labels
            inputs = {"image": made.images}
        else:
            inputs = checkpoint.build_model().example(_ITEMS, np.random.default_rng(0))
        model = folder / f"{checkpoint.card.name}.onnx"
        export_onnx(checkpoint, model)
        found: list[Quantization] = []
        for runtime in (name for name in LOWERED if RUNTIMES[name].installed):
            found.append(
                quantize(
                    model,
                    folder / "int8.onnx",
                    inputs,
                    labels,
                    runtime=runtime,
                    max_loss=max_loss,
                    rounds=rounds,
                    sensitivities=found[0].sensitivities if found else (),
                    on_step=lambda what, runtime=runtime: on_step(f"{runtime}: {what}"),  # type: ignore[misc]
                )
            )
        return found
