"""The search for the fastest 8-bit file that holds a stated loss."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import KEPT, Latency, Quantity, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.decision_loss import DecisionLoss, StatedLoss, decision_loss
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, to_json
from bilateral_export.lowering.gate import opened
from bilateral_export.metadata import QUANTIZATION_KEY
from bilateral_export.quantization.quantize import Recipe, Source, quantised, read_source, write
from bilateral_export.runners.base import run_in_batches
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.runners.registry import DEFAULT, lowered_runtime
from bilateral_export.tensors import FEATURES, Array
from bilateral_export.text import STEP_OUTPUTS

# Items whose activations are looked at; the others judge.
CALIBRATION = 64
_BATCH = 16
# Shares of the layers that stay float, most sensitive first, where fewer do not do.
_FLOAT_SHARES = (0.1, 0.2, 0.35, 0.5, 0.75)


class Candidate(BaseModel):
    """One 8-bit form.

    Attributes:
        smoothed: Whether activations were smoothed.
        float_layers: How many linear layers stayed float.
        changed: Decisions that differ from the float file's.
        loss: Share of decisions lost: of right ones where labels were given, else of changed ones.
        low, high: Its 95 % interval.
        holds: Whether `loss` is at most the stated one.
    """

    model_config = ConfigDict(frozen=True)

    smoothed: bool
    float_layers: int
    changed: int
    loss: float
    low: float
    high: float
    holds: bool


class Sensitivity(BaseModel):
    """What one layer in 8 bits does to the first output: its relative error."""

    model_config = ConfigDict(frozen=True)

    layer: str
    error: float


class Quantization(Result):
    """What was tried, and which form was written.

    Attributes:
        runtime: What ran the forms.
        items: How many decisions were compared.
        labelled: Whether the loss is one of accuracy.
        max_loss: The stated loss.
        candidates: In the order in which they were tried; the last one that holds was written.
        sensitivities: Per layer, most sensitive first.
        float_time, int8_time: Median of one item in the float file and the written form.
        speedup: Of the written form over the float file, both lowered; None where none was.
        speedup_low, speedup_high: Its 95 % interval, from six rounds on.
        size: Share of the float file's bytes.
    """

    kind: Literal["quantization"] = "quantization"
    subject: str
    runtime: str = DEFAULT
    layers: int
    items: int
    labelled: bool
    max_loss: float
    candidates: tuple[Candidate, ...]
    sensitivities: tuple[Sensitivity, ...]
    float_time: Percentile | None = None
    int8_time: Percentile | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    size: float | None = None
    context: Context

    @property
    def holds(self) -> bool:
        """Whether a form holds the loss, and was written."""
        return bool(self.candidates) and self.candidates[-1].holds

    def tables(self) -> list[Table]:
        """Return the candidates, and the most sensitive layers."""
        what = "accuracy lost" if self.labelled else "decisions changed"
        tried = tuple(
            (
                "smoothed" if one.smoothed else "plain",
                f"{self.layers - one.float_layers} of {self.layers}",
                f"{one.loss:.2%} ({one.low:.2%} .. {one.high:.2%})",
                str(one.changed),
                "holds" if one.holds else "too much",
            )
            for one in self.candidates
        )
        limit = f"at most {self.max_loss:.2%}"
        columns = ("activations", ">8-bit layers", f">{what}", ">changed", limit)
        notes = [f"{self.items} items."]
        if self.speedup is not None:
            ends = between(self.speedup_low, self.speedup_high)
            notes.append(
                f"{self.speedup:.2f} times as fast ({ends}), {self.size:.0%} of the bytes."
            )
        if self.float_time is not None and self.int8_time is not None:
            times = number(self.float_time.value_ms), number(self.int8_time.value_ms)
            notes.append(f"One item takes {times[0]} ms in float32 and {times[1]} ms in 8 bits.")
        layers = tuple((one.layer, number(one.error)) for one in self.sensitivities[:12])
        return [
            Table(f"Quantising {self.subject} for {self.runtime}", columns, tried, tuple(notes)),
            Table("Most sensitive layers", ("layer", ">relative error alone"), layers, ()),
        ]

    def latencies(self) -> list[Latency]:
        """Return the medians of both files."""
        return [
            Latency(f"{self.subject} in {self.runtime}, {name}", (median,), self.context)
            for name, median in (("float", self.float_time), ("int8", self.int8_time))
            if median is not None
        ]

    def quantities(self) -> list[Quantity]:
        """Return the medians, the speed over float, and what the last form keeps."""
        last, name = self.candidates[-1], f"{self.subject} in {self.runtime}, int8"
        kept = Quantity(
            name,
            KEPT,
            1 - last.loss,
            1 - last.high,
            1 - last.low,
            self.context,
            more_is_better=True,
        )
        found = [kept]
        if self.speedup is not None:
            ends = self.speedup_low, self.speedup_high
            speed = Quantity(
                name, "times float's speed", self.speedup, *ends, self.context, more_is_better=True
            )
            found.append(speed)
        return [*super().quantities(), *found]

    def plots(self) -> list[Plot]:
        """Return what each layer costs."""
        bars = [Bar(one.layer, [100 * one.error]) for one in self.sensitivities[:24]]
        return [Plot("Error of each layer alone", bar_plot(bars, [], "%"))]


def quantize(
    model: Path,
    target: Path,
    inputs: Mapping[str, Array],
    labels: Array | None = None,
    *,
    runtime: str = DEFAULT,
    max_loss: float = 0.005,
    rounds: int = 8,
    sensitivities: tuple[Sensitivity, ...] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> Quantization:
    """Write the fastest 8-bit form that holds a loss, and return what was tried.

    All layers in 8 bits come first, then with activations smoothed, then with more and more of the
    most sensitive layers left float. The loss is that of decisions: the largest of the first
    output's last axis.

    Args:
        model: An fp32 file of `bilateral export`.
        target: The file to write; left alone where no form holds.
        inputs: Real items by input name; the first `CALIBRATION` of them (at most a quarter) show
            the activations' ranges, and the others judge.
        labels: Their classes `[items]`. None: a changed decision counts as lost.
        runtime: What runs the forms, "onnxruntime" or "openvino". The file is the same for both;
            the loss and the speed are not.
        max_loss: The largest share that may be lost.
        rounds: Interleaved rounds of the speed's measurement.
        sensitivities: Those of an earlier call with this file and these inputs; empty: measured.
        on_step: Called with what is being done.

    Raises:
        UserError: The file was lowered, has no float32 linear layer, does not classify or does not
            take the inputs; these are too few, unlike in number or not finite, or the labels are
            not one whole number for each; or `max_loss` is no share.
    """
    context = Context.now()
    if not 0 <= max_loss < 1:
        raise UserError(f"a loss of {max_loss:g} is no share of decisions", "Use such as 0.005.")
    require_file(model, "model")
    lowered_runtime(runtime).require()
    items = _check_items(inputs, labels)
    seen = min(CALIBRATION, items // 4)
    calibration = [{name: array[:seen] for name, array in inputs.items()}]
    judged = {name: array[seen:] for name, array in inputs.items()}
    truth = None if labels is None else labels[seen:]
    source = read_source(model, calibration)
    on_step("the float file")
    with LoweredRunner(model, runtime) as runner:
        wanted = _decisions(runner, judged)
    if not sensitivities:
        on_step(f"{len(source.layers)} layers, one by one")
        sensitivities = _sensitivities(source)
    tried: list[Candidate] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / model.name
        for recipe in _recipes([one.layer for one in sensitivities]):
            on_step(f"form {len(tried) + 1}, {len(recipe.float_layers)} layers float")
            made = quantised(source, recipe)
            write(made, file)
            with LoweredRunner(file, runtime) as runner:
                got = _decisions(runner, judged)
            loss = decision_loss(wanted, got, truth)
            tried.append(_judged(recipe, loss, max_loss))
            if tried[-1].holds:
                break
        found = Quantization(
            subject=model.name,
            runtime=runtime,
            layers=len(source.layers),
            items=items - seen,
            labelled=labels is not None,
            max_loss=max_loss,
            candidates=tuple(tried),
            sensitivities=sensitivities,
            context=context,
        )
        if not found.holds:
            return found
        on_step("how fast it is")
        one = {name: array[:1] for name, array in inputs.items()}
        with LoweredRunner(model, runtime) as plain, LoweredRunner(file, runtime) as fast:
            calls = {"float": lambda: plain.run(one), "int8": lambda: fast.run(one)}
            blocks = interleave(calls, rounds)
        stated = StatedLoss(max_loss=max_loss, loss=loss, runtime=runtime)
        made.metadata_props.add(key=QUANTIZATION_KEY, value=to_json(stated, indent=None).strip())
        write(made, target)
    size = target.stat().st_size / model.stat().st_size
    ratio = blocks.ratio("int8", "float")
    return found.model_copy(
        update={
            "float_time": blocks.median("float"),
            "int8_time": blocks.median("int8"),
            "speedup": ratio.value,
            "speedup_low": ratio.low,
            "speedup_high": ratio.high,
            "size": size,
        }
    )


def _check_items(inputs: Mapping[str, Array], labels: Array | None) -> int:
    """Return how many items there are, which can be judged."""
    counts = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
    items = min(counts.values(), default=0)
    if items < 4 or len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise UserError(
            f"the items are {found or 'none'}", "Give at least four, better some hundreds."
        )
    for name, array in inputs.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UserError(
                f"the items of '{name}' hold NaN or infinity", "Give the inputs that a model gets."
            )
    if labels is not None and (
        labels.shape != (items,) or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise UserError(
            f"the labels are {labels.dtype}{list(labels.shape)}, for {items} items",
            "Give the number of each item's class, or none.",
        )
    return items


def _recipes(layers: Sequence[str]) -> list[Recipe]:
    """Return what to try, fastest first, given the layers, most sensitive first."""
    counts = dict.fromkeys([0, *(round(share * len(layers)) for share in _FLOAT_SHARES)])
    smoothed = [Recipe(smoothed=True, float_layers=frozenset(layers[:count])) for count in counts]
    return [Recipe(), *smoothed]


def _decisions(runner: LoweredRunner, inputs: Mapping[str, Array]) -> Array:
    output = runner.outputs[0].name
    if output in (FEATURES, STEP_OUTPUTS[0]):
        raise UserError(
            f"the model's output '{output}' decides nothing", "Quantise one that classifies."
        )
    logits = run_in_batches(runner, inputs, output, _BATCH)
    if not np.issubdtype(logits.dtype, np.floating):
        raise UserError(
            f"the model's output '{output}' is no logits", "Quantise one that classifies."
        )
    decided: Array = logits.argmax(axis=-1).reshape(len(logits), -1)
    return decided


def _judged(recipe: Recipe, loss: DecisionLoss, max_loss: float) -> Candidate:
    return Candidate(
        smoothed=recipe.smoothed,
        float_layers=len(recipe.float_layers),
        changed=loss.changed,
        loss=loss.share,
        low=loss.low,
        high=loss.high,
        holds=loss.share <= max_loss,
    )


def _sensitivities(source: Source) -> tuple[Sensitivity, ...]:
    """Return the first output's relative error with each layer alone in 8 bits, largest first."""
    (feed,) = source.feeds
    few = {name: array[:8] for name, array in feed.items()}
    with opened(source.model) as session:
        (exact, *_) = session.run(None, few)
    found = []
    for layer in source.layers:
        with opened(quantised(source, Recipe(), only=layer.name)) as session:
            (value, *_) = session.run(None, few)
        error = float(np.linalg.norm(value - exact) / np.linalg.norm(exact))
        found.append(Sensitivity(layer=layer.name, error=error))
    return tuple(sorted(found, key=lambda one: -one.error))
