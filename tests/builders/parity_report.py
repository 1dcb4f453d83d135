"""Reports of parity with one check, for what reads them."""

from __future__ import annotations

from pathlib import Path

from bilateral_export.files import write_text
from bilateral_export.parity.report.document import Check, ParityReport


def written(path: Path, *, judged: str, ok: bool = True) -> Path:
    """Write a report of parity with one check."""
    report = ParityReport(
        model="m",
        family="vit",
        checkpoint_sha256="0" * 64,
        judged=(judged,) if judged else (),
        factor=4,
        typical_budget=2,
        ulp_edges=(),
        samples=(),
        rows=(),
        checks=(Check(stage="the file", name="opens", detail="", passed=ok),),
    )
    write_text(path, report.model_dump_json())
    return path
