"""Results as one file: any number of measurements under a title. Its JSON schema is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bilateral_benchmarks.experiments.breakdown import Breakdown
from bilateral_benchmarks.experiments.comparison import Comparison
from bilateral_benchmarks.experiments.crossover import Crossover
from bilateral_benchmarks.experiments.generator_limit import GeneratorLimit
from bilateral_benchmarks.experiments.operator_profile import Stages
from bilateral_benchmarks.experiments.overhead import Overhead
from bilateral_benchmarks.experiments.scaling import Growth
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.sweep import Sweep
from bilateral_benchmarks.report.result import Report
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, to_json, write_text

Item = Annotated[
    Report
    | Comparison
    | Crossover
    | GeneratorLimit
    | Growth
    | Breakdown
    | Overhead
    | ScenarioResult
    | Stages
    | Sweep,
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


class Document(BaseModel):
    """What `bilateral bench` writes with --output and `bilateral bench report` reads.

    Attributes:
        failures: Measurements that were asked for and are missing, each with its reason.
        parts: Of a suite: which part made which items, in their order.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    title: str
    items: tuple[Item, ...]
    failures: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


def failures_of(document: Document) -> tuple[str, ...]:
    """What is missing, and every run that is invalid, with the reason.

    The Server scenario judges lateness by its own bound, so of its run only failed requests count.
    """
    found = list(document.failures)
    for item in document.items:
        if isinstance(item, Sweep):
            reports = [point.report for point in item.points if point.report]
        elif isinstance(item, ScenarioResult):
            judged = item.report if item.report and item.scenario != "Server" else None
            reports = [judged] if judged else []
        else:
            reports = [item] if isinstance(item, Report) else []
        found += [f"{r.subject}, {r.load}: {r.problems[0]}" for r in reports if not r.valid]
    return tuple(found)


def save_document(document: Document, path: Path) -> None:
    """Write a document as JSON, whole or not at all."""
    write_text(path, to_json(document))


def load_document(path: Path) -> Document:
    """Read a document.

    Raises:
        UserError: The file is missing or is not such a document.
    """
    require_file(path, "report")
    try:
        return Document.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no report of this version", "Write it with `bilateral bench ... --output`."
        ) from error


def schema() -> str:
    """The JSON schema of a document."""
    return json.dumps(Document.model_json_schema(), indent=1) + "\n"
