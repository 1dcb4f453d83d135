"""The journeys as Markdown: a table of what was made, one of what was said, one of seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bilateral_benchmarks.end_to_end.run_model import ITEMS, ITEMS_LARGE, LARGE, Journey
from bilateral_benchmarks.report.machine import Machine
from bilateral_export.parity.report.document import ParityRow

_HEAD = f"""# Every model from checkpoint to gRPC

`bilateral bench pipeline --output benchmarks/results`: each model at its real size, in float32, in
a process of its own. Weights are random where no trained ones are committed: parity and agreement
then say that the pipeline computes the model, not that the model is any good. Error is the largest
relative error against FP64 PyTorch, and beside it its budget (4 times eager PyTorch's own error),
of the output that comes closest to it; a segmenter's are shares of pixels. They are judged on
{ITEMS} random inputs or more, and on {ITEMS_LARGE} or more above {LARGE:,} parameters. Plans were
built, not run: that needs a GPU."""


def markdown(machine: Machine, journeys: Sequence[Journey], failures: Mapping[str, str]) -> str:
    """The page `pipeline.md`."""
    made = _table(
        (
            "model",
            "weights",
            "parameters",
            "plain twin",
            "ONNX, MB",
            "ONNX Runtime: error / budget",
            "served: error / budget",
            "plan, MB",
            "built in, s",
            "verdict",
        ),
        [
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
            for one in journeys
        ]
        + [(name, *[""] * 8, f"FAILED {_cell(reason)}") for name, reason in failures.items()],
    )
    said = _table(
        ("model", "asked", "said", "agrees with PyTorch", "largest difference"),
        (
            (
                one.name,
                answer.asked,
                _cell(answer.said),
                f"{answer.agreement:.4%}",
                "" if answer.difference is None else f"{answer.difference:.1e}",
            )
            for one in journeys
            for answer in one.answers
        ),
    )
    steps = list(journeys[0].seconds) if journeys else []
    spent = _table(
        ("model", *steps, "peak here, MiB", "peak of the server, MiB", "source"),
        (
            (
                one.name,
                *(f"{one.seconds[step]:.1f}" for step in steps),
                f"{one.peak_mib:.0f}",
                f"{one.server_mib:.0f}",
                one.revision or "unknown",
            )
            for one in journeys
        ),
    )
    plans = {f"{one.plan.library} for {', '.join(one.plan.targets)}" for one in journeys}
    parts = [
        _HEAD,
        f"- {machine.summary}, {machine.memory_gib} GiB, {machine.system}\n"
        f"- plans: {'; '.join(sorted(plans))}",
        "## What was made",
        made,
        "## What the served models said to real inputs",
        "What agrees: the classes of each input in their order, the class of each pixel, each word."
        "\nThe largest difference is that of a probability or of a log-likelihood.",
        said,
        "## Seconds of each step, and memory",
        "The peak here is mostly the FP64 reference's. The machine's load at the end was"
        f" {machine.load_average}:\nwell above its cores, it did other things meanwhile.",
        spent,
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(journey: Journey) -> str:
    """Of the comparison with PyTorch, and whether it took a second try to get there."""
    word = "pass" if journey.passed else "FAIL"
    if journey.first_failure is None:
        return word
    return f"{word} at the second try; the first: {_cell(journey.first_failure)}"


def _cell(text: str) -> str:
    """Text of any kind on one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def _worst(journey: Journey, *, served: bool) -> str:
    """The output that comes closest to its budget."""
    rows = [row for row in journey.parity.rows if row.stage.startswith("triton") == served]

    def part(row: ParityRow) -> float:
        return row.error / row.budget

    worst = max(rows, key=part)
    return f"{worst.error:.1e} / {worst.budget:.1e}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
