"""`bilateral top`: a running server, live."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json, styled, table
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_serving.watching import View


@app.command()
def top(
    metrics_url: Annotated[
        str, typer.Option(metavar="URL", help="The server's metrics page.")
    ] = "http://127.0.0.1:8002/metrics",
    interval: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look for one interval, print, end.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write it to this HTML file instead, which needs no other.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a running server: rates, waiting, percentiles, failures, and what is served.

    Each line is a version of a model between the last two looks. p50 and p99 are what callers
    waited, at the front door, of all versions of the model together. While nothing
    answers it says so and looks again. Ctrl-C ends it.

    Example: bilateral top --metrics-url http://10.0.0.7:8002/metrics
    """
    from bilateral_export.files import write_text
    from bilateral_serving import watching

    def look() -> View:
        before = watching.scrape(metrics_url)
        time.sleep(interval)
        return watching.view(before, watching.scrape(metrics_url))

    if json:
        print_json(look())
        return
    if page is not None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_text(page, watching.page(look(), metrics_url, now))
        notes.print(f"Wrote {page}", markup=False)
        return
    if once or not out.is_terminal:
        out.print(_table(look()))
        return
    _live(metrics_url, interval)


def _live(metrics_url: str, interval: float) -> None:
    from rich.live import Live

    from bilateral_serving import watching

    before = watching.scrape(metrics_url)
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                after = watching.scrape(metrics_url)
            except UserError as error:  # it is started again, or gone: the next look tells
                live.update(styled(error.problem, "bold red"), refresh=True)
                continue
            live.update(_table(watching.view(before, after)), refresh=True)
            before = after


def _table(found: View) -> Any:
    from bilateral_serving.watching.page import COLUMNS, cells, headline

    left = ("model", "SHA-256", "parity")
    columns = tuple(name if name in left else f">{name}" for name in COLUMNS)
    return table(columns, [cells(row) for row in found.rows], title=headline(found))
