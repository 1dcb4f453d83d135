"""The metrics of one instance of a model, in Triton's own page. It lies beside `model.py`.

Handing one number to Triton is a message between two processes, which the next request would wait
for. Numbers are therefore added up here and handed over twice a second, by a thread: a histogram is
a family of counters `_bucket`, `_sum` and `_count`, which is what Prometheus makes of every
histogram, and `histogram_quantile` reads it as one. All instances of a version count into the same.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by the server

Array = np.ndarray[Any, Any]

BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
ENDS = (*map(str, BUCKETS_S), "+Inf")
STAGES = ("queue", "preprocess", "compute", "total")
FLUSH_S = 0.5
_SWITCH_S = 0.0005
DURATION = "bilateral_stage_duration_seconds"
ANSWERS = "bilateral_answers_total"
DECISIONS = "bilateral_decisions_total"
ABSTENTIONS = "bilateral_abstentions_total"
INFO = "bilateral_model_info"
_ABOUT = {
    f"{DURATION}_bucket": "Requests whose stage took at most `le` seconds",
    f"{DURATION}_sum": "Seconds of a stage, of all requests",
    f"{DURATION}_count": "Requests",
    ANSWERS: "Answers, by status",
    DECISIONS: "Rows of answers, by the class with the largest logit",
    ABSTENTIONS: "Rows whose largest logit is not a number, or not the only one",
}
Key = tuple[str, tuple[tuple[str, str], ...]]


class Metrics:
    """Counts what an instance answers.

    Args:
        name: The model's name.
        version: Its version.
        parameters: Those of its configuration.
    """

    def __init__(self, name: str, version: str, parameters: Mapping[str, str]) -> None:
        self._labels = {"model": name, "version": version}
        about = json.loads(parameters.get(f"bilateral/{version}", "{}"))
        # What has one logit for each label decides; a segmenter's outputs have further axes.
        self._classes = tuple(map(str, about.get("labels", ())))
        self._families = {
            metric: pb_utils.MetricFamily(
                name=metric, description=text, kind=pb_utils.MetricFamily.COUNTER
            )
            for metric, text in _ABOUT.items()
        }
        self._counters: dict[Key, Any] = {}
        self._counted: dict[Key, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._buckets = {
            stage: [self._key(f"{DURATION}_bucket", stage=stage, le=end) for end in ENDS]
            for stage in STAGES
        }
        self._sums = {stage: self._key(f"{DURATION}_sum", stage=stage) for stage in STAGES}
        self._counts = {stage: self._key(f"{DURATION}_count", stage=stage) for stage in STAGES}
        self._info = self._describe(json.loads(parameters.get(f"provenance/{version}", "{}")))
        # All ends are there from the start, as `histogram_quantile` wants them.
        for stage in STAGES:
            for key in (*self._buckets[stage], self._sums[stage], self._counts[stage]):
                self._counter(key)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def observe(self, stages: Mapping[str, float]) -> None:
        """Count a request by how many seconds each of its stages took."""
        with self._lock:
            for stage, seconds in stages.items():
                for key in self._buckets[stage][bisect_left(BUCKETS_S, seconds) :]:
                    self._counted[key] += 1
                self._counted[self._sums[stage]] += seconds
                self._counted[self._counts[stage]] += 1

    def answered(self, status: str, outputs: Sequence[Array] = ()) -> None:
        """Count an answer, and what a classifier's outputs decide."""
        with self._lock:
            self._counted[self._key(ANSWERS, status=status)] += 1
            if self._classes and outputs and outputs[0].ndim == 2:
                self._decide(outputs[0])

    def later(self, work: Callable[[], None]) -> None:
        """Have the thread do what counts a request, when the request has its answer."""
        self._waiting.append(work)

    def close(self) -> None:
        """Hand over what is left."""
        self._closing.set()
        self._thread.join(timeout=2.0)

    def _decide(self, logits: Array) -> None:
        if logits.shape[1] != len(self._classes):
            return
        largest = logits.max(axis=1, keepdims=True)
        decided = ((logits == largest).sum(axis=1) == 1) & np.isfinite(largest[:, 0])
        for index in logits.argmax(axis=1)[decided]:
            self._counted[self._key(DECISIONS, **{"class": self._classes[index]})] += 1
        if abstained := int((~decided).sum()):
            self._counted[self._key(ABSTENTIONS)] += abstained

    def _describe(self, provenance: Mapping[str, Any]) -> Any:
        files = provenance.get("files", {})
        family = pb_utils.MetricFamily(
            name=INFO,
            description="What is served; the value is 1",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        metric = family.Metric(
            labels={
                **self._labels,
                "sha256": files.get("model.onnx", "unknown"),
                "parity": provenance.get("parity") or "unknown",
                "server": os.environ.get("TRITON_SERVER_VERSION", "unknown"),
            }
        )
        metric.set(1)
        return family, metric

    def _key(self, family: str, **labels: str) -> Key:
        return family, tuple(labels.items())

    def _counter(self, key: Key) -> Any:
        if key not in self._counters:
            family, labels = key
            metric = self._families[family].Metric(labels={**self._labels, **dict(labels)})
            self._counters[key] = metric
        return self._counters[key]

    def _work(self) -> None:
        # A request that comes while this thread counts waits for it no longer than so many seconds.
        sys.setswitchinterval(_SWITCH_S)
        while not self._closing.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._waiting.popleft()()
            except Exception as error:  # of one request; the others count
                pb_utils.Logger.log_warn(f"a request was not counted: {error}")
        with self._lock:
            counted, self._counted = self._counted, defaultdict(float)
        for key, amount in counted.items():
            self._counter(key).increment(amount)
