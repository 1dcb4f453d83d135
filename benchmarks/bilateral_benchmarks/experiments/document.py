"""The document type of `bilateral bench`: its results, its parts, and its published JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bilateral_benchmarks.experiments.breakdown import Breakdown
from bilateral_benchmarks.experiments.capacity import Capacity
from bilateral_benchmarks.experiments.cold_start import ColdStart
from bilateral_benchmarks.experiments.comparison import Comparison
from bilateral_benchmarks.experiments.crossover import Crossover
from bilateral_benchmarks.experiments.generator_limit import GeneratorLimit
from bilateral_benchmarks.experiments.language import Language
from bilateral_benchmarks.experiments.operator_profile import OperatorProfile
from bilateral_benchmarks.experiments.overhead import Overhead
from bilateral_benchmarks.experiments.quantization import Quantization
from bilateral_benchmarks.experiments.raw_input import RawInput
from bilateral_benchmarks.experiments.scaling import Scaling
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.score_files import ScoreFiles
from bilateral_benchmarks.experiments.serving_cost import ServingCost
from bilateral_benchmarks.experiments.several_sizes import SeveralSizes
from bilateral_benchmarks.experiments.sweep import Sweep
from bilateral_benchmarks.experiments.tile_speed import TileSpeed
from bilateral_benchmarks.load.report import Report
from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.files import read
from bilateral_export.files import require_file

Item = Annotated[
    Report
    | Comparison
    | Crossover
    | GeneratorLimit
    | Language
    | Scaling
    | Breakdown
    | Capacity
    | ColdStart
    | Overhead
    | ScenarioResult
    | OperatorProfile
    | Quantization
    | RawInput
    | SeveralSizes
    | ScoreFiles
    | ServingCost
    | Sweep
    | TileSpeed,
    Field(discriminator="kind"),
]


class Part(BaseModel):
    """A part of a longer run.

    Attributes:
        name: What `bilateral bench suite --only` calls it.
        items: How many results it made.
        seconds: How long it took.
        failure: Why it has none, or not all.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    items: int
    seconds: float
    failure: str | None = None


class BenchDocument(Document):
    """What `bilateral bench` writes with --output and `bilateral bench report` reads.

    Attributes:
        parts: Of a suite: which part made which items, in their order.
    """

    schema_version: Literal[1] = 1
    items: tuple[Item, ...]
    parts: tuple[Part, ...] = ()


def load_document(path: Path) -> BenchDocument:
    """Return the document in a file.

    Raises:
        UserError: The file is missing or is not such a document.
    """
    return read(
        BenchDocument,
        require_file(path, "report"),
        "is not a report of this version",
        "Write it with `bilateral bench ... --output`.",
    )


def schema() -> str:
    """Return the JSON schema of a document."""
    return json.dumps(BenchDocument.model_json_schema(), indent=1) + "\n"
