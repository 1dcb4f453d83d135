"""`bilateral bench compare`, `report` and `schema`: reports that are already written."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.bench.app import bench
from bilateral_cli.bench.options import writable
from bilateral_cli.bench.output import show_pages
from bilateral_cli.console import JsonOption, notes, out, print_json, styled, table


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(help="The older report (JSON).")],
    after: Annotated[Path, typer.Argument(help="The newer report (JSON).")],
    json: JsonOption = False,
) -> None:
    """Say what became faster, slower, or cannot be distinguished.

    Exit code 1 if anything is slower or worse, or a run that is compared is invalid.

    What has an interval is compared: latencies, rates and words a second, growth, crossover,
    breakdown, files of several sizes, tiles, cold starts, the cost of serving, and of 8-bit files
    the decisions that they keep. Where the two were measured on different machines, or one is
    invalid or unstable, it is said.

    Example: bilateral bench compare main.json branch.json
    """
    from bilateral_benchmarks.experiments.document import load_document
    from bilateral_benchmarks.report.compare_reports import WORSE, compare_documents
    from bilateral_benchmarks.report.tables import between

    verdicts = compare_documents(load_document(before), load_document(after))
    if json:
        print_json([vars(verdict) for verdict in verdicts])
    else:
        colours = {"indistinguishable": "dim"} | dict.fromkeys(WORSE, "bold red")
        rows = [
            (
                v.what,
                v.measure,
                f"{v.ratio:.3f}",
                between(v.low, v.high),
                styled(v.judgement, colours.get(v.judgement, "green")),
            )
            for v in verdicts
        ]
        columns = ["measurement", "", ">after / before", ">interval", ""]
        out.print(table(columns, rows))
        by_measurement = {v.what: v.doubts for v in verdicts}
        doubted = Counter(doubt for doubts in by_measurement.values() for doubt in doubts)
        for doubt, count in doubted.items():
            text = f"{doubt} ({count} of {len(by_measurement)} measurements)"
            notes.print(text, soft_wrap=True)
    if any(verdict.judgement in WORSE or not verdict.valid for verdict in verdicts):
        raise typer.Exit(EXIT_FAILED)


@bench.command()
def report(
    results: Annotated[Path, typer.Argument(help="A report (JSON).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Name of the .md and .html files.", callback=writable),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Put the table of runtimes into this page instead."),
    ] = None,
) -> None:
    """Turn a report into Markdown and a self-contained HTML page.

    With --into, the table of runtimes goes between the marks of a page, such as README.md.

    Example: bilateral bench report out/bench.json
    """
    from bilateral_benchmarks.experiments.document import load_document
    from bilateral_benchmarks.experiments.summary import write_summary

    document = load_document(results)
    if into is None:
        show_pages(document, output or results)
    else:
        write_summary(document, into)
        notes.print(f"Wrote {into}")


@bench.command()
def schema() -> None:
    """Print the JSON schema of the reports."""
    from bilateral_benchmarks.experiments.document import schema as text

    sys.stdout.write(text())
