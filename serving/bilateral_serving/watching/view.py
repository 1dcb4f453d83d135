"""What two snapshots say of the time between them, a row for each version of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bilateral_serving.watching.scrape import Labels, Snapshot

_DURATION = "bilateral_call_duration_seconds_bucket"


class Row(BaseModel):
    """A version of a model; None: nothing was answered, or the server does not say.

    Attributes:
        model: The model.
        version: Its version.
        rate: Requests a second.
        failed: Of them, those that failed.
        waiting: Requests in Triton's queue now.
        queue_ms: Mean time in that queue.
        p50_ms: Median of what callers waited, at the front door; of all versions together.
        p99_ms: The 99th percentile of that.
        batch: Mean items of one run.
        sha256: Of the model file.
        parity: Verdict that came with it.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    rate: float
    failed: float
    waiting: float
    queue_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    batch: float | None
    sha256: str
    parity: str


class View(BaseModel):
    """The server between two snapshots.

    Attributes:
        seconds: The time between them.
        is_up: Whether tritonserver answers behind the front door; None: there is no front door.
        under_way: Calls without an answer now.
        server: Version of the server.
        rows: The models.
    """

    model_config = ConfigDict(frozen=True)

    seconds: float
    is_up: bool | None
    under_way: float
    server: str
    rows: tuple[Row, ...]


def view(before: Snapshot, after: Snapshot) -> View:
    """Return rates and percentiles of the time between two snapshots of one server."""
    seconds = max(1e-9, after.time_s - before.time_s)
    told = {(key["model"], key["version"]): key for key in _labels(after, "bilateral_model_info")}
    served = {(k["model"], k["version"]) for k in _labels(after, "nv_inference_request_success")}
    up = after.of("bilateral_triton_up")
    rows = [
        _row(before, after, seconds, model, version, told.get((model, version), {}))
        for model, version in sorted({*told, *served})
    ]
    servers = sorted({key.get("server", "") for key in told.values()} - {""})
    return View(
        seconds=seconds,
        is_up=bool(max(up.values())) if up else None,
        under_way=after.total("bilateral_calls_under_way"),
        server=", ".join(servers),
        rows=tuple(rows),
    )


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """Return a quantile of a histogram, as Prometheus' `histogram_quantile` defines it.

    Linear within a bucket; beyond the last finite end that end. Source: Prometheus documentation,
    "Query functions", histogram_quantile().

    Args:
        q: From 0 to 1.
        buckets: Cumulative counts by upper end, the last of which is infinite.

    Returns:
        The quantile; None of an empty histogram.
    """
    ends = sorted(buckets)
    if not ends or not math.isinf(ends[-1]) or buckets[ends[-1]] <= 0:
        return None
    rank = q * buckets[ends[-1]]
    low, below = 0.0, 0.0
    for end in ends:
        count = buckets[end]
        if count >= rank:
            if math.isinf(end):
                return low
            inside = count - below
            return end if inside <= 0 else low + (end - low) * (rank - below) / inside
        low, below = end, count
    return None


def _row(
    before: Snapshot,
    after: Snapshot,
    seconds: float,
    model: str,
    version: str,
    told: Mapping[str, str],
) -> Row:
    def grown(name: str) -> float:
        now = after.total(name, model=model, version=version)
        return _growth(before.total(name, model=model, version=version), now)

    answered, failed = grown("nv_inference_request_success"), grown("nv_inference_request_failure")
    runs = grown("nv_inference_exec_count")
    buckets = _grown_buckets(before, after, model)
    p50, p99 = (quantile(q, buckets) for q in (0.5, 0.99))
    return Row(
        model=model,
        version=version,
        rate=(answered + failed) / seconds,
        failed=failed / seconds,
        waiting=after.total("nv_inference_pending_request_count", model=model, version=version),
        queue_ms=grown("nv_inference_queue_duration_us") / answered / 1e3 if answered else None,
        p50_ms=None if p50 is None else 1e3 * p50,
        p99_ms=None if p99 is None else 1e3 * p99,
        batch=grown("nv_inference_count") / runs if runs else None,
        sha256=told.get("sha256", ""),
        parity=told.get("parity", ""),
    )


def _growth(then: float, now: float) -> float:
    return now - then if now >= then else now  # less: the process was started again meanwhile


def _grown_buckets(before: Snapshot, after: Snapshot, model: str) -> dict[float, float]:
    then = before.of(_DURATION, model=model)
    grown: dict[float, float] = {}
    for labels, value in after.of(_DURATION, model=model).items():
        end = float(dict(labels)["le"])
        grown[end] = grown.get(end, 0.0) + _growth(then.get(labels, 0.0), value)
    return grown


def _labels(snapshot: Snapshot, name: str) -> list[dict[str, str]]:
    found: list[Labels] = list(snapshot.of(name))
    return [labels for key in found if {"model", "version"} <= set(labels := dict(key))]
