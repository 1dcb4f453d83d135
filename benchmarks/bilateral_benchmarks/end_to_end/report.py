"""The report of the pipeline: what was made of each model, what was said, seconds and memory."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bilateral_benchmarks.end_to_end.model_report import ModelReport
from bilateral_benchmarks.end_to_end.run_model import ITEMS, ITEMS_LARGE, LARGE
from bilateral_benchmarks.report.machine import Machine
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.parity.report.document import ParityRow


class Pipeline(Result):
    """What came of all models; `pipeline.json`.

    Attributes:
        machine: Where it ran last.
        journeys: One per model that arrived, in the order of `bilateral models`.
        failures: Why the others did not, by name.
    """

    page_title: ClassVar[str] = "Every model from checkpoint to gRPC"
    page_text: ClassVar[str] = f"""\
`bilateral bench pipeline --output benchmarks/results`: each model at its real size, in float32, in
a process of its own. Weights are random where no trained ones are committed: parity and agreement
then say that the pipeline computes the model, not that the model is any good. Error is the largest
relative error against FP64 PyTorch, and beside it its budget (4 times eager PyTorch's own error),
of the output that comes closest to it; a segmenter's are shares of pixels. They are judged on
{ITEMS} random inputs or more, and on {ITEMS_LARGE} or more above {LARGE:,} parameters. Plans were
built, not run: that needs a GPU."""

    kind: Literal["pipeline"] = "pipeline"
    machine: Machine
    journeys: tuple[ModelReport, ...] = ()
    failures: dict[str, str] = Field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every model arrived, and is served as it was trained."""
        return not self.failures and all(report.passed for report in self.journeys)

    def facts(self) -> list[str]:
        """Return the machine, and what the plans were built with."""
        machine = self.machine
        plans = {f"{one.plan.library} for {', '.join(one.plan.targets)}" for one in self.journeys}
        return [
            f"{machine.summary}, {machine.memory_gib} GiB, {machine.system}",
            f"plans: {'; '.join(sorted(plans))}",
        ]

    def tables(self) -> list[Table]:
        """Return a table of what was made, one of what was said, one of seconds and memory."""
        return [self._made(), self._said(), self._spent()]

    def _made(self) -> Table:
        columns = (
            "model",
            "weights",
            ">parameters",
            ">plain-attention counterpart",
            ">ONNX, MB",
            ">ONNX Runtime: error / budget",
            ">served: error / budget",
            ">plan, MB",
            ">built in, s",
            "verdict",
        )
        rows = [
            (
                one.name,
                one.weights,
                f"{one.parameters:,}",
                f"{one.plain_parameters:,}" if one.plain_parameters else "",
                f"{one.onnx_mb:.1f}",
                _worst(one, served=False),
                _worst(one, served=True),
                f"{one.plan.mb:.1f}",
                f"{one.plan.seconds:.1f}",
                _verdict(one),
            )
            for one in self.journeys
        ]
        failed = [
            (name, *[""] * 8, f"FAILED {_line(reason)}") for name, reason in self.failures.items()
        ]
        return Table("What was made", columns, (*rows, *failed))

    def _said(self) -> Table:
        rows = tuple(
            (
                one.name,
                answer.asked,
                _line(answer.said),
                f"{answer.agreement:.4%}",
                "" if answer.difference is None else f"{answer.difference:.1e}",
            )
            for one in self.journeys
            for answer in one.answers
        )
        note = (
            "What agrees: the classes of each input in their order, the class of each pixel, each"
            " word. The largest difference is that of a probability or of a log-likelihood."
        )
        columns = ("model", "asked", "said", ">agrees with PyTorch", ">largest difference")
        return Table("What the served models said to real inputs", columns, rows, (note,))

    def _spent(self) -> Table:
        steps = list(self.journeys[0].seconds) if self.journeys else []
        rows = tuple(
            (
                one.name,
                *(f"{one.seconds[step]:.1f}" for step in steps),
                f"{one.peak_mib:.0f}",
                f"{one.server_mib:.0f}",
                one.revision or "unknown",
            )
            for one in self.journeys
        )
        note = (
            "The peak here is mostly the FP64 reference's. The machine's load at the end was"
            f" {self.machine.load_average}: well above its cores, it did other things meanwhile."
        )
        memory = (">peak here, MiB", ">peak of the server, MiB", "source")
        columns = ("model", *(f">{step}" for step in steps), *memory)
        return Table("Seconds of each step, and memory", columns, rows, (note,))


def _verdict(report: ModelReport) -> str:
    """Return the comparison's verdict, and whether it took a second try to get there."""
    word = "pass" if report.passed else "FAIL"
    if report.first_failure is None:
        return word
    return f"{word} at the second try; the first: {_line(report.first_failure)}"


def _line(text: str) -> str:
    """Return text of any kind on one line."""
    return " ".join(text.split())


def _worst(report: ModelReport, *, served: bool) -> str:
    """Return the output that comes closest to its budget."""
    rows = [row for row in report.parity.rows if row.stage.startswith("triton") == served]

    def part(row: ParityRow) -> float:
        return row.error / row.budget

    worst = max(rows, key=part)
    return f"{worst.error:.1e} / {worst.budget:.1e}"
