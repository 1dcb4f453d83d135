"""What a rollout came to, in lines and as JSON, with the intervals of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from bilateral_export.errors import UserError
from bilateral_export.intervals import Z, wilson_interval
from bilateral_serving.front_door.shadow import Comparison
from bilateral_serving.server.rollouts.messages import Outcome


def read_share(text: str) -> float:
    """Return a share given as "5%" or "0.05".

    Raises:
        UserError: It is neither, or not above 0 and at most 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"'{text}' is not a share", "Give one such as 5% or 0.05.")
    return share


def agreement(found: Comparison) -> tuple[float, float, float]:
    """Return the share of rows with the same decision, and its 95 % interval."""
    return found.same / found.rows, *wilson_interval(found.same, found.rows)


def distance(found: Comparison) -> tuple[float, float]:
    """Return the mean over rows of the largest difference, and half its 95 % interval.

    The interval is that of a mean of independent rows, by the central limit theorem.
    """
    if found.rows < 2:
        return found.mean, math.inf
    return found.mean, Z * math.sqrt(found.squares / (found.rows - 1) / found.rows)


def document(outcome: Outcome) -> dict[str, Any]:
    """Return what came of it as JSON has it."""
    said = outcome.model_dump(mode="json", exclude={"problem", "fix"})
    found = outcome.comparison
    if found is not None and found.rows > 1:
        said["agreement"] = dict(zip(("share", "low", "high"), agreement(found), strict=True))
        said["distance"] = dict(zip(("mean", "half_width"), distance(found), strict=True))
    return said


def described(name: str, outcome: Outcome) -> Iterator[str]:
    """Yield what came of it in lines."""
    rollout = outcome.rollout
    if rollout is None:
        yield f"{name}: served as its config.pbtxt says; nothing was rolled out"
        return
    loading = f", loaded in {outcome.load_s:.1f} s" if outcome.load_s else ""
    gap = f", {outcome.gap_s:.1f} s of it requests waited" if outcome.gap_s else ""
    before = f"; before it {rollout.previous}" if rollout.previous else ""
    yield f"{name}: version {rollout.active} answers{loading}{gap}{before}"
    if (trial := rollout.trial) is not None:
        does = {"canary": "answers", "shadow": "gets copies of"}[trial.kind]
        yield f"version {trial.version} {does} {trial.share:.4g} of the requests ({trial.kind})"
    if (found := outcome.comparison) is not None:
        yield from _compared(found)


def _compared(found: Comparison) -> Iterator[str]:
    if found.rows > 1:
        share, low, high = agreement(found)
        mean, width = distance(found)
        yield (
            f"the same decision in {found.same} of {found.rows} rows: {share:.2%}"
            f" (95 %: {low:.2%} to {high:.2%})"
        )
        yield (
            f"distance {mean:.3g} +- {width:.2g} in the mean, {found.largest:.3g} at most, where"
            f" version {found.active} gives up to {found.scale:.3g}"
        )
    for count, what in (
        (found.errors, "copies got an error"),
        (found.unlike, "answers had other outputs or shapes"),
        (found.dropped, "copies were not sent: too many were under way"),
    ):
        if count:
            yield f"{count} {what}"
