"""PromQL of one model: what its alerts, its dashboard and its autoscaler ask of Triton's metrics.

Triton counts microseconds and requests for ever; times are therefore rates by rates, over all
replicas. An idle model has no time a request: its queries give 0 then, and nothing where Prometheus
has no metrics of it, so that an autoscaler keeps what there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.values import Values


def job(facts: Facts, values: Values) -> str:
    """Return the model's job in Prometheus, as its operator names that of a PodMonitor."""
    return f"{values.namespace}/{facts.slug}"


@dataclass(frozen=True)
class Queries:
    """Expressions about one model in one job."""

    job: str
    model: str

    @property
    def _labels(self) -> str:
        return f'job="{self.job}",model="{self.model}"'

    def rate(self, metric: str, window: str = "1m", more: str = "") -> str:
        """Return a counter's increase a second, over all replicas."""
        return f"sum(rate({metric}{{{self._labels}{more}}}[{window}]))"

    def per_request_ms(self, phase: str, window: str = "1m") -> str:
        """Return the mean milliseconds that a request spends in a phase, such as "queue"."""
        answered = self.rate("nv_inference_request_success", window)
        spent = self.rate(f"nv_inference_{phase}_duration_us", window)
        return f"{spent} / ({answered} > 0) / 1000 or 0 * {answered}"

    @property
    def answered(self) -> str:
        """Answered requests per second."""
        return self.rate("nv_inference_request_success")

    def failed(self, window: str = "1m") -> str:
        """Return requests that failed a second; a caller that left is no failure."""
        return self.rate("nv_inference_request_failure", window, ',reason!="CANCELED"')

    def failed_share(self, window: str) -> str:
        """Return the share of requests that failed."""
        answered = self.rate("nv_inference_request_success", window)
        failed = self.failed(window)
        return f"{failed} / ({answered} + {failed} > 0)"

    @property
    def waiting(self) -> str:
        """Requests that wait in Triton's queues."""
        return f"sum({self.of_model('nv_inference_pending_request_count')})"

    @property
    def batch(self) -> str:
        """Rows that one execution of the model had, on average."""
        executed = self.rate("nv_inference_exec_count")
        return f"{self.rate('nv_inference_count')} / ({executed} > 0)"

    @property
    def replicas(self) -> str:
        """Replicas whose metrics Prometheus could read."""
        return f'sum(up{{job="{self.job}"}})'

    def of_model(self, metric: str) -> str:
        """Return a metric of the model, by replica."""
        return f"{metric}{{{self._labels}}}"

    def of_server(self, metric: str) -> str:
        """Return a metric that is not of one model, by replica."""
        return f'{metric}{{job="{self.job}"}}'


def queries(facts: Facts, values: Values) -> Queries:
    """Return the model's expressions."""
    return Queries(job(facts, values), facts.name)
