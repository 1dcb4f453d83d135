"""`bilateral evaluate`: how often answers about labelled files are right, of several models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import (
    DEFAULT_URL,
    JsonOption,
    ServersOption,
    out,
    print_json,
    progress,
    styled,
    table,
)

if TYPE_CHECKING:
    from bilateral_benchmarks.evaluation import Evaluation
    from bilateral_benchmarks.evaluation.result import Interval, Pair, Score

SHOWN = 20  # changed items of two models, and items that could not be answered


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Checkpoints, .onnx files and names of served models; every two are compared.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="A folder for each class (ImageFolder), `images` beside `masks`, or a .tsv or"
            " .jsonl file of files or texts and their labels."
        ),
    ],
    url: ServersOption = DEFAULT_URL,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="How much worse than the first model the others may be: 0.01 is a percentage"
            " point of accuracy or mIoU, or one percent of the perplexity."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Items at once.")] = 32,
    record: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl file for the answer to each item; if it is there, the evaluation goes on"
            " from it."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Lines of name<TAB>label, for names in the data that are not labels."),
    ] = None,
    ignore_zero: Annotated[
        bool, typer.Option(help="In masks, 0 does not count and 1 is the first class (ADE20K).")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="As in `bilateral export`, where a checkpoint needs it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score models on the same labelled files, from their bytes to the name of the answer.

    Each model prepares the files as it says itself and answers by its own labels, so that a wrong
    resize, colour order or order of labels shows, which no comparison of logits can see. Exit code
    1 if another model is worse than the first by more than --max-drop.

    Example: bilateral evaluate digits.safetensors digits.onnx digits --data photos --max-drop 0.01
    """
    from bilateral_benchmarks.evaluation import evaluate as run

    with progress() as bar:
        task = bar.add_task("Reading the models", total=None)
        found = run(
            models,
            data,
            url=url,
            max_drop=max_drop,
            batch=batch,
            record=record,
            classes=classes,
            ignore_zero=ignore_zero,
            model=model,
            on_progress=lambda done, total: bar.update(
                task, description=f"{done} of {total} items", completed=done, total=total
            ),
        )
    if json:
        print_json(found)
    else:
        _show(found)
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


def _show(found: Evaluation) -> None:
    names = list(dict.fromkeys(name for score in found.scores for name in score.metrics))
    rows = [
        (
            score.name,
            score.kind,
            *(_number(name, score.metrics.get(name)) for name in names),
            _interval(found.metric, score.interval),
            len(score.unread),
        )
        for score in found.scores
    ]
    columns = ["model", "runs in", *(f">{name}" for name in names), ">95 % interval", ">unread"]
    out.print(table(columns, rows, title=f"{found.data}: {found.items} items"))
    for score in found.scores:
        _show_remarks(score)
    for pair in found.pairs:
        _show_pair(found, pair)


def _show_remarks(score: Score) -> None:
    for finding in score.findings:
        out.print(styled(f"{score.name}: {finding}", "yellow"), soft_wrap=True)
    for unread in score.unread[:SHOWN]:
        out.print(f"{score.name}: {unread.item} counts as wrong: {unread.reason}", soft_wrap=True)


def _show_pair(found: Evaluation, pair: Pair) -> None:
    low, high = pair.interval or (None, None)
    text = f"{pair.first} -> {pair.second}: drop {_points(found.metric, pair.drop)}"
    if low is not None and high is not None:
        text += f" (95 %: {_points(found.metric, low)} to {_points(found.metric, high)})"
    if pair.p_value is not None:
        text += (
            f"; right: only the first {pair.first_only}, only the second {pair.second_only}"
            f" (McNemar p = {pair.p_value:.2g})"
        )
    out.print(styled(text, "" if pair.passed else "bold red"), soft_wrap=True)
    if not pair.passed:
        out.print(styled(f"  more than --max-drop {found.max_drop}", "bold red"))
    for difference in pair.differences:
        out.print(f"  differs: {difference}", soft_wrap=True)
    if not pair.changed:
        out.print("  every answer is the same")
        return
    rows = [(one.item, one.truth, one.first, one.second) for one in pair.changed[:SHOWN]]
    title = f"{len(pair.changed)} answers changed"
    if len(pair.changed) > SHOWN:
        title += f"; the first {SHOWN}, --json has all"
    out.print(table(["item", "truth", "first", "second"], rows, title=title))


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in ("perplexity", "words"):
        return f"{value:,.0f}" if metric == "words" else f"{value:.3f}"
    return f"{value:.2%}"


def _interval(metric: str, interval: Interval | None) -> str:
    return " to ".join(_number(metric, end) for end in interval) if interval else "one item"


def _points(metric: str, drop: float) -> str:
    return f"{drop:+.2%}" if metric == "perplexity" else f"{100 * drop:+.2f} points"
