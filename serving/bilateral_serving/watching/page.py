"""A view as one HTML page that needs nothing else."""

from __future__ import annotations

import html

from bilateral_serving.watching.view import Row, View

COLUMNS = (
    "model",
    "version",
    "requests/s",
    "failed/s",
    "waiting",
    "queue ms",
    "p50 ms",
    "p99 ms",
    "batch",
    "SHA-256",
    "parity",
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: CanvasText; background: Canvas; color-scheme: light dark }
h1 { font-size: 1.4rem } p { opacity: .75 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { padding: .45rem .55rem; text-align: right; border-bottom: 1px solid #8884;
  font-variant-numeric: tabular-nums; white-space: nowrap }
th { font-weight: 600 }
th:first-child, td:first-child { text-align: left; min-width: 8rem; white-space: normal;
  overflow-wrap: anywhere }
td.bad { color: light-dark(#c62828, #ff8a80); font-weight: 600 }
"""


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, in the order of `COLUMNS`."""
    return (
        row.model,
        row.version,
        _number(row.rate),
        _number(row.failed),
        f"{row.waiting:.0f}",
        _number(row.queue_ms),
        _number(row.p50_ms),
        _number(row.p99_ms),
        _number(row.batch),
        row.sha256[:12] or "-",
        row.parity or "-",
    )


def headline(found: View) -> str:
    """Return the server in one line."""
    state = {True: "up", False: "tritonserver is away", None: "without a front door"}[found.is_up]
    return f"{state}; {found.under_way:.0f} calls under way; over {found.seconds:.1f} s" + (
        f"; server {found.server}" if found.server else ""
    )


def page(found: View, url: str, when: str) -> str:
    """Return the page.

    Args:
        found: What is shown.
        url: Where it was read.
        when: The time, as text.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="bad">{html.escape(cell)}</td>'
            if COLUMNS[place] == "failed/s" and row.failed
            else f"<td>{html.escape(cell)}</td>"
            for place, cell in enumerate(cells(row))
        )
        + "</tr>"
        for row in found.rows
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(url)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(url)}</h1><p>{html.escape(when)}: {html.escape(headline(found))}</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div></body></html>\n"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
