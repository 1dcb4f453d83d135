"""The parity report as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from bilateral_export.files import write_text
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.parity.report.plots import layer_plot, ulp_bars
from bilateral_export.tensors import Array

_SHOWN = 4
_PIXELS = 128


@dataclass(frozen=True)
class _Worst:
    """One of the worst inputs: of which row, and what it looks like."""

    title: str
    error: float
    picture: str
    text: str


def write_html(path: Path, report: ParityReport, samples: Sequence[Sample]) -> None:
    """Write the page.

    Args:
        path: The file to write.
        report: What was found.
        samples: The inputs it was found on, for the pictures of the worst.

    Raises:
        UserError: The file cannot be written.
    """
    write_text(path, render_html(report, samples))


def render_html(report: ParityReport, samples: Sequence[Sample]) -> str:
    """Return the page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        worst=_worst(report, samples),
        layer_plot=layer_plot,
        ulp_bars=ulp_bars,
    )


def _worst(report: ParityReport, samples: Sequence[Sample]) -> list[_Worst]:
    """Return the worst input of each row that reads the file, by share of its budget."""
    by_name = {sample.origin: sample for sample in samples}
    rows = [row for row in report.rows if not row.stage.startswith("torch")]
    rows.sort(key=lambda row: -row.error / row.budget)
    found = []
    for row in rows[:_SHOWN]:
        sample = by_name[row.worst.sample]
        array = next(iter(sample.arrays.values()))[row.worst.item]
        image = array.dtype.kind == "f" and array.ndim == 3 and len(array) in (1, 3)
        found.append(
            _Worst(
                title=f"{row.stage}, {row.output}: {row.worst.sample}, item {row.worst.item}",
                error=row.worst.error,
                picture=_png(array) if image else "",
                text="" if image else np.array2string(array.ravel(), threshold=64),
            )
        )
    return found


def _png(image: Array) -> str:
    """Return an image `[C, H, W]`, stretched to its own range, as a data URL."""
    wide = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = wide.min(), wide.max()
    scaled = (255 * (wide - low) / ((high - low) or 1.0)).astype(np.uint8)
    pixels = scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0)
    picture = Image.fromarray(pixels).resize((_PIXELS, _PIXELS), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
