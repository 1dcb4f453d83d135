"""Contenders: the runtimes and forms of a model on this machine, or why one is absent."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bilateral_benchmarks.experiments.gemm_peak import Goal
from bilateral_export.artifact import load_graph
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.known import card_of
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.options import AttentionChoice, BuildOptions
from bilateral_export.errors import UserError
from bilateral_export.lowering.attention_forms import Form
from bilateral_export.lowering.lower import PASSES, lower
from bilateral_export.metadata import Precision
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.models.registry import build, named
from bilateral_export.models.residual import GeneralizedResidual
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.quantization.quantize import Recipe, read_source, write
from bilateral_export.quantization.quantize import quantised as eight_bit
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_export.runners.registry import DEFAULT, LOWERED, RUNTIMES
from bilateral_export.runners.tensorrt_runner import TensorRTRunner
from bilateral_export.runners.torch_compiled import CompiledRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.text import END, UNKNOWN, Tokenizer

ORT_LOWERED, OPENVINO_F32 = "onnxruntime, lowered", "openvino f32"
# Random items that 8-bit activations are calibrated on.
_CALIBRATION = 16


@dataclass(frozen=True)
class Contender:
    """One way to run a model.

    Attributes:
        name: For tables.
        runner: Not open yet.
        precision: Whose eager error is its parity budget.
        model: The ONNX file it runs, for memory measured in a process of its own; None for torch.
        runtime: The runtime that runs that file.
    """

    name: str
    runner: Runner
    precision: Precision
    model: Path | None = None
    runtime: str = DEFAULT


# Shares of the GEMM peak that the forms for a CPU aim at, by model and contender.
GOALS = {
    "deit_bilateral_tiny_patch16_224": {ORT_LOWERED: 0.60},
    "deit_bilateral_small_patch16_224": {ORT_LOWERED: 0.70, OPENVINO_F32: 0.80},
    "deit_bilateral_small_patch16_224 at 512": {ORT_LOWERED: 0.70},
}


def goals_of(name: str) -> list[Goal]:
    """Return the goals of the usual contenders for one model at batch 1."""
    return [Goal(row=row, share=share) for row, share in GOALS.get(name, {}).items()]


@dataclass(frozen=True)
class Absent:
    """A contender that cannot be here, and why."""

    name: str
    reason: str


def checkpoint_of(source: str, folder: Path, image_size: int | None = None) -> Checkpoint:
    """Return a checkpoint file, or a known model's name with random weights.

    Latency does not depend on the values of weights; parity is judged on them all the same.

    Args:
        source: Path of a checkpoint, or a name from `bilateral models`.
        folder: Where random weights are written.
        image_size: Another image size than the named model's.

    Raises:
        UserError: There is neither such a file nor such a model.
    """
    if Path(source).exists() or "/" in source or source.endswith(".safetensors"):
        return load_checkpoint(Path(source))
    config = named(source)
    if image_size is not None:
        config = config.model_copy(update={"image_size": image_size})
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.trunc_normal_(module.weight, std=0.05)
            if isinstance(module, GeneralizedResidual):
                coefficients = module.coefficients
                # Trained ones are not 0 and 1, and those two would cost nothing.
                if isinstance(coefficients, torch.nn.Parameter):
                    coefficients.add_(0.02 * torch.randn(5))
    name = source if image_size is None else f"{source} at {image_size}"
    path = folder / f"{source}.safetensors"
    save_checkpoint(path, model.state_dict(), card_of(name, config))
    return load_checkpoint(path)


def checkpoint_for(name: str, checkpoints: Path, folder: Path) -> Checkpoint:
    """Return the committed checkpoint of a model, or one with random weights.

    A language model's words, which are not known without its checkpoint, are those of the committed
    one, and numbers up to the size of the vocabulary.
    """
    trained = checkpoints / f"{name}.safetensors"
    if trained.is_file():
        return load_checkpoint(trained)
    checkpoint = checkpoint_of(name, folder)
    config = checkpoint.card.model
    if not isinstance(config, LanguageModelConfig):
        return checkpoint
    known = load_checkpoint(checkpoints / "pydoc_bilateral.safetensors").card.preprocessing
    assert isinstance(known, TextPreprocessing)
    words = dict.fromkeys((END, UNKNOWN, *known.vocabulary))
    words |= dict.fromkeys(f"word{number}" for number in range(config.vocabulary))
    tokenizer = Tokenizer(list(words)[: config.vocabulary])
    preprocessing = TextPreprocessing(
        vocabulary=tokenizer.words, vocabulary_sha256=tokenizer.sha256, context=config.context
    )
    card = checkpoint.card.model_copy(update={"preprocessing": preprocessing})
    return dataclasses.replace(checkpoint, card=card)


def usual_contenders(
    checkpoint: Checkpoint, exported: Path, folder: Path, *, compiled: bool = True
) -> Iterator[Contender | Absent]:
    """Yield what a user would pick instead, and ours: torch, ONNX Runtime, OpenVINO, TensorRT.

    Args:
        checkpoint: The trained weights.
        exported: The canonical file of it, float32.
        folder: Where lowered and quantised files are written.
        compiled: Whether torch.compile takes part; it compiles for up to a minute.
    """
    yield Contender("torch eager", TorchRunner(checkpoint), "fp32")
    if not compiled:
        yield Absent("torch.compile", "left out")
    elif any(map(shutil.which, ("g++", "c++", "clang++"))):
        yield Contender("torch.compile", CompiledRunner(checkpoint), "fp32")
    else:
        yield Absent("torch.compile", "needs a C++ compiler")
    as_it_comes = OnnxRuntimeRunner(exported, flush_subnormals=False)
    yield Contender("onnxruntime, exported", as_it_comes, "fp32", exported)
    lowered = lower(exported, "onnxruntime-cpu", folder / "ort.onnx").path
    yield Contender(ORT_LOWERED, OnnxRuntimeRunner(lowered), "fp32", lowered)
    yield from quantised(checkpoint, exported, folder)
    if not RUNTIMES["openvino"].installed:
        yield Absent("openvino", "not installed")
    else:
        for_openvino = lower(exported, "openvino", folder / "openvino.onnx").path
        for compute, precision in (("f32", "fp32"), ("bf16", "bf16")):
            if compute == "bf16" and not _has_bf16():
                # OpenVINO would compute in float32 and say nothing.
                yield Absent("openvino bf16", "this CPU has no bf16")
                continue
            runner = OpenVinoRunner(for_openvino, compute=compute)  # type: ignore[arg-type]
            name = f"openvino {compute}"
            yield Contender(name, runner, precision, for_openvino, "openvino")  # type: ignore[arg-type]
    yield tensorrt("tensorrt", exported, folder, "auto")


def quantised(checkpoint: Checkpoint, exported: Path, folder: Path) -> Iterator[Contender | Absent]:
    """Yield the model with all linear layers in 8 bits, as `bilateral quantize` tries it first.

    It is calibrated on random inputs, and held to the error of bf16.
    """
    feed = checkpoint.build_model().example(_CALIBRATION, np.random.default_rng(1))
    plain = folder / "int8.onnx"
    try:
        write(eight_bit(read_source(exported, [feed]), Recipe()), plain)
    except UserError as error:
        yield Absent("int8", error.problem)
        return
    for name in LOWERED:
        row = f"{name} int8"
        if not RUNTIMES[name].installed:
            yield Absent(row, "not installed")
            continue
        target = lower(plain, RUNTIMES[name].lowering, folder / f"int8.{name}.onnx").path
        yield Contender(row, RUNTIMES[name].load(target), "bf16", target, name)


def tensorrt(
    name: str, exported: Path, folder: Path, attention: AttentionChoice
) -> Contender | Absent:
    """Return a plan of the exported file, built and loaded once, or why this machine has none."""
    if not torch.cuda.is_available():
        return Absent(name, "no GPU")
    plan = folder / f"{name.replace(' ', '_')}.plan"
    try:
        build_plan(exported, plan, BuildOptions(attention=attention))
        runner = TensorRTRunner(plan)
        with runner:
            return Contender(name, runner, "fp32")
    except UserError as error:
        return Absent(name, error.problem)


def _has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def attention_forms(
    checkpoint: Checkpoint, exported: Path, folder: Path
) -> Iterator[Contender | Absent]:
    """Yield the same model with its attention in every form, for the ablation."""
    yield Contender("torch eager", TorchRunner(checkpoint), "fp32")
    yield Contender("custom op through its body", OnnxRuntimeRunner(exported), "fp32", exported)
    forms: tuple[tuple[Form, str], ...] = (
        ("decomposed", "body inlined"),
        ("mask", "materialised bias folded"),
        ("augmented", "augmented, flash"),
        ("tiles", "augmented, flash in tiles"),
    )
    for form, name in forms:
        result = lower(exported, "onnxruntime-cpu", folder / f"{form}.onnx", form=form)
        if {site.form for site in result.lowering.sites} != {form}:
            reasons = {reason for site in result.lowering.sites for reason in site.refused}
            yield Absent(name, "; ".join(sorted(reasons)))
            continue
        yield Contender(name, OnnxRuntimeRunner(result.path), "fp32", result.path)
    # What the rewrites beside attention gain, each taken away from the best form of all.
    everywhere = {one.name for one in PASSES["openvino"]}
    kernels = {one.name for one in PASSES["onnxruntime-cpu"]} - everywhere
    for name, without in (
        ("lowered", set()),
        ("lowered, residual stream as exported", {"residual_stream"}),
        ("lowered, tokens that nothing reads too", {"push_down_gather"}),
        ("lowered, ONNX Runtime's kernels as it picks them", kernels),
    ):
        target = folder / f"{name.replace(' ', '_')}.onnx"
        path = lower(exported, "onnxruntime-cpu", target, without=without).path
        yield Contender(name, OnnxRuntimeRunner(path), "fp32", path)
        if name == "lowered":
            kept = OnnxRuntimeRunner(path, flush_subnormals=False)
            yield Contender("lowered, subnormal numbers kept", kept, "fp32", path)
    plain = without_spatial(exported, folder / "plain.onnx")
    lowered = lower(plain, "onnxruntime-cpu", folder / "plain_lowered.onnx").path
    yield Contender("no spatial term (another model)", OnnxRuntimeRunner(lowered), "fp32", lowered)
    if RUNTIMES["openvino"].installed:
        path = lower(exported, "openvino", folder / "openvino.onnx").path
        yield Contender("openvino, body inlined", OpenVinoRunner(path), "fp32", path, "openvino")
    yield tensorrt("tensorrt plugin", exported, folder, "plugin")


def without_spatial(exported: Path, target: Path) -> Path:
    """Return the same weights with plain dot-product attention: what the spatial term costs.

    It computes something else, so its parity fails by design.
    """
    import onnx

    from bilateral_export.op import contract
    from bilateral_export.op.contract import OperatorVariant
    from bilateral_export.op.onnx_body import function_body

    model = load_graph(exported)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    for node in model.graph.node:
        if node.domain != contract.DOMAIN:
            continue
        del node.input[3:]
        node.overload = ""
        for attribute in node.attribute:
            if attribute.name == contract.RANGE_KERNEL:
                attribute.s = b"dot"
            if attribute.name == contract.SPATIAL_KERNEL:
                attribute.s = b"none"
    others = [function for function in model.functions if function.domain != contract.DOMAIN]
    del model.functions[:]
    model.functions.extend([*others, function_body(OperatorVariant(), opset)])
    onnx.save(model, target)
    return target
