"""Regressions of a parity report against an earlier one."""

from __future__ import annotations

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.errors import UserError
from bilateral_export.parity.report.document import ParityReport, ParityRow

# Rounding is not the same on every machine and with every seed; what is within this factor of the
# baseline is not a regression.
TOLERANCE = 1.5


def regressions(report: ParityReport, baseline: ParityReport) -> list[str]:
    """Return what is worse than in the baseline, in words; empty when nothing is.

    A row has regressed when it passed and does not, when its typical error quotient grew beyond
    what the two confidence intervals and `TOLERANCE` explain, or when fewer decisions agree; a
    stage also when it ran and was skipped.
    """
    found = []
    now = {(row.stage, row.output): row for row in report.rows}
    reasons = {skipped.stage: skipped.reason for skipped in report.skipped}
    for old in baseline.rows:
        new = now.get((old.stage, old.output))
        if new is None:
            reason = reasons.get(old.stage, "it is not in this report")
            found.append(f"{old.stage}, {old.output}: did not run ({reason})")
        else:
            found += [f"{old.stage}, {old.output}: {text}" for text in _worse(old, new)]
    checks = {(check.stage, check.name): check for check in report.checks}
    for check in baseline.checks:
        later = checks.get((check.stage, check.name))
        if check.passed and later is not None and not later.passed:
            found.append(f"{check.stage}: {check.name} held and does not ({later.detail})")
    return found


def require_same_model(baseline: ParityReport, card: CheckpointCard) -> None:
    """Refuse to compare with the report of another model; other weights of it may have been.

    Raises:
        UserError: The report's name or family is not the checkpoint's.
    """
    then, now = (baseline.model, baseline.family), (card.name, card.model.family)
    if then != now:
        raise UserError(
            f"the baseline is of {' '.join(then)}, the checkpoint is {' '.join(now)}",
            "Give a report of the same model.",
        )


def _worse(old: ParityRow, new: ParityRow) -> list[str]:
    found = []
    if old.passed and not new.passed:
        found.append("passed and does not")
    if new.typical_low > TOLERANCE * old.typical_high:
        found.append(f"typical error was {old.typical:.2f} of eager, is {new.typical:.2f}")
    if old.decision and new.decision and new.decision.flipped > old.decision.flipped:
        shares = f"{old.decision.agreement:.2%}, is {new.decision.agreement:.2%}"
        found.append(f"agreement was {shares}")
    return found
