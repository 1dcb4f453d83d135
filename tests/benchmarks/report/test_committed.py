"""Committed results, written by earlier versions, are still read, and their fields stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bilateral_benchmarks.end_to_end.report import Pipeline
from bilateral_benchmarks.experiments.document import BenchDocument, load_document
from bilateral_benchmarks.kernel.build_report import BuildReport
from bilateral_benchmarks.report.compare_reports import compare_documents
from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.files import page
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.studies.build_matrix import BuildMatrix
from bilateral_benchmarks.studies.robustness.report import RobustnessReport
from bilateral_benchmarks.studies.theory.report import TheoryReport
from bilateral_benchmarks.studies.tile_skipping import TileSkipping

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
TYPES: dict[str, type[Document] | type[Result]] = {
    "int8": BenchDocument,
    "cold_start": BenchDocument,
    "cpu": BenchDocument,
    "growth": BenchDocument,
    "kernel_build": BuildReport,
    "kernel_skipping": TileSkipping,
    "language": BenchDocument,
    "sizes": BenchDocument,
    "pipeline": Pipeline,
    "robustness": RobustnessReport,
    "score_files": BenchDocument,
    "serving_cost": BenchDocument,
    "tensorrt-build-matrix": BuildMatrix,
    "theory": TheoryReport,
    "tiles": BenchDocument,
}


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """What the second document has not, or has otherwise, of the first."""
    if isinstance(before, dict):
        pairs = [(key, before[key], after.get(key, KeyError)) for key in before]
    elif isinstance(before, list) and len(before) == len(after):
        pairs = list(zip(range(len(before)), before, after, strict=True))
    else:
        return [] if before == after else [path]
    return [found for key, one, other in pairs for found in lost(one, other, f"{path}.{key}")]


@pytest.mark.parametrize("name", TYPES)
def test_a_committed_file_is_read_and_its_page_is_what_is_committed(name: str) -> None:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    found = TYPES[name].model_validate_json(text)
    assert lost(json.loads(text), found.model_dump(mode="json")) == []
    assert page(found) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_a_committed_report_is_compared_with_itself() -> None:
    document = load_document(RESULTS / "cpu.json")
    verdicts = compare_documents(document, document)
    assert len(verdicts) > 20
    assert {verdict.judgement for verdict in verdicts} == {"indistinguishable"}
