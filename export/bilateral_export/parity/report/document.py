"""The parity report as data, written as JSON; its schema is report.schema.json."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from bilateral_export.decision_loss import DecisionLoss
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import Precision

SCHEMA_VERSION: Literal[2] = 2
SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


def _read_number(value: Any) -> Any:
    return math.inf if value == "infinity" else value


def _write_number(value: float) -> float | str:
    return value if math.isfinite(value) else "infinity"


# JSON has no infinity; an output with a NaN has an infinite error.
Number = Annotated[
    float,
    BeforeValidator(_read_number, json_schema_input_type=float | Literal["infinity"]),
    PlainSerializer(_write_number, return_type=float | Literal["infinity"]),
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorstInput(_Record):
    """The item with the largest error: which sample, which item of it."""

    sample: str
    item: int
    error: Number


class Decision(_Record):
    """Whether the same decision is taken as FP64 takes.

    Attributes:
        metric: "top-1", "pixel class", or "perplexity", where nothing is decided.
        agreement: Share of decisions that are FP64's.
        flipped: Decisions that differ although FP64's margin is beyond what the budget explains.
        decisions: How many were taken.
        summary: Name of the family's own figure: "perplexity ratio" or "mIoU"; empty for
            top-1.
        summary_value: That figure against FP64's decisions; 1 is agreement.
    """

    metric: str
    agreement: float
    flipped: int
    decisions: int
    summary: str = ""
    summary_value: Number | None = None


class ParityRow(_Record):
    """The result of one output of one stage.

    Attributes:
        stage: The stage's name.
        precision: The precision whose eager error sets the budget.
        output: The output's name.
        error: Largest relative error against the reference over all items: Euclidean norm of the
            difference over that of the reference.
        eager_error: The same for eager PyTorch in that precision.
        budget: What `error` may be; infinite for a file that states a loss.
        typical: Geometric mean over items (of few numbers: pools of them) of error / eager error.
        typical_low: Lower end of its one-sided 99 % confidence interval.
        typical_high: Upper end, which must be within the report's `typical_budget`.
        cosine: Smallest cosine between output and reference.
        ulp_histogram: Elements per bin of the report's `ulp_edges`, and beyond the last.
        decision: Agreement of decisions; None where the output decides nothing.
        loss: Of an 8-bit file that states one: the decisions that it loses on the real inputs.
        stated_loss: What it may lose.
        items: How many items were compared.
        worst: Where the error is largest.
        passed: Whether both budgets are kept and no decision flipped; of a file that states a loss,
            whether the interval of `loss` allows it.
        reason: Why it did not pass, in words; empty where it did.
    """

    stage: str
    precision: Precision
    output: str
    error: Number
    eager_error: Number
    budget: Number
    typical: Number
    typical_low: Number
    typical_high: Number
    cosine: float
    ulp_histogram: tuple[int, ...]
    decision: Decision | None
    loss: DecisionLoss | None = None
    stated_loss: float | None = None
    items: int
    worst: WorstInput
    passed: bool
    reason: str = ""


class Check(_Record):
    """One further property of a stage that holds or does not."""

    stage: str
    name: str
    detail: str
    passed: bool


class Skipped(_Record):
    """A stage that did not run, and why."""

    stage: str
    reason: str


class NodeError(_Record):
    """The error of one value of the graph against FP64.

    Attributes:
        node: The node's name.
        operator: Its operator.
        module: Path of the torch module it came from; may be empty.
        source: File and line of the torch code; may be empty.
        error: Relative error of its output.
        eager_error: That of eager PyTorch in the same precision, at the same place.
        limit: What the error may be.
    """

    node: str
    operator: str
    module: str
    source: str
    error: Number
    eager_error: Number
    limit: Number

    @property
    def broken(self) -> bool:
        """Whether the error is beyond the limit."""
        return not self.error <= self.limit


class Bisection(_Record):
    """Where a failing stage goes wrong first.

    Attributes:
        stage: The stage.
        sample: The input it was searched with.
        culprit: The first node that breaks its budget; None when no single node does.
        before: Largest error among what that node reads.
        reproducer: Directory with the node alone; empty when none was written.
        nodes: The errors at the nodes compared, in graph order.
        peak_bytes: Most bytes of the graph's values that were held at once.
    """

    stage: str
    sample: str
    culprit: NodeError | None
    before: Number
    reproducer: str = ""
    nodes: tuple[NodeError, ...]
    peak_bytes: int


class ParityReport(_Record):
    """All results of one comparison; what `bilateral parity --json` prints.

    Attributes:
        model: The checkpoint's name.
        family: Its family.
        checkpoint_sha256: The checkpoint's hash.
        judged: SHA-256 of the files that were judged: the ONNX file, the plan. Reports of before
            this was noted have none.
        factor: The budget of the largest error, as a multiple of eager PyTorch's.
        typical_budget: The budget of the typical one.
        ulp_edges: Bin edges of the rows' histograms.
        samples: The inputs, in order.
        rows: One per stage and output.
        checks: Further properties of stages and of the file.
        skipped: Stages that did not run.
        bisections: The first faults of failing stages.
        regressions: What is worse than in the baseline, in words; empty without one.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    model: str
    family: str
    checkpoint_sha256: str
    judged: tuple[str, ...] = ()
    factor: float
    typical_budget: float
    ulp_edges: tuple[float, ...]
    samples: tuple[str, ...]
    rows: tuple[ParityRow, ...]
    checks: tuple[Check, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    bisections: tuple[Bisection, ...] = ()
    regressions: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every row and every check passed."""
        return all(row.passed for row in self.rows) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Stages with a row or a check that failed, each once."""
        failed = [row.stage for row in self.rows if not row.passed]
        failed += [check.stage for check in self.checks if not check.passed]
        return tuple(dict.fromkeys(failed))

    @property
    def verdict(self) -> str:
        """What is noted beside a model: "passed", or "failed: STAGES"."""
        return "passed" if self.passed else f"failed: {', '.join(self.failures)}"

    def require_passed(self) -> None:
        """Refuse a model that failed.

        Raises:
            UserError: A row or a check failed.
        """
        if not self.passed:
            raise UserError(
                f"parity failed: {', '.join(self.failures)}", "Export a file that passes."
            )

    def require_about(self, model: str, hashes: Collection[str]) -> None:
        """Refuse a model whose file this report does not judge.

        Args:
            model: What the model is called in the message.
            hashes: `Artifact.sha256` of its file, and of the file that it was lowered from.

        Raises:
            UserError: None of these files was judged.
        """
        if not set(self.judged).intersection(hashes):
            judged = ", ".join(sha256[:12] for sha256 in self.judged) or "no file that it names"
            raise UserError(
                f"the parity report judges {judged}, and {model} is {min(hashes)[:12]}",
                "Give what `bilateral parity CHECKPOINT FILE --json` prints about this very file.",
            )


def schema() -> str:
    """Return the report's JSON Schema, as it is committed in `report.schema.json`."""
    document = ParityReport.model_json_schema(mode="serialization")
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def read_report(path: Path) -> ParityReport:
    """Return a report that `bilateral parity --json` wrote.

    Raises:
        UserError: It is missing, not a report, or of another version.
    """
    require_file(path, "baseline")
    try:
        return ParityReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise UserError(
            f"{path} is not a parity report of schema version {SCHEMA_VERSION}"
            f" ({where}: {first['msg']})",
            "Write it with `bilateral parity --json`.",
        ) from error
