"""Autoscaling on the time that requests wait in Triton's queue."""

from __future__ import annotations

from bilateral_serving.deploy.container import Document
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.pod import metadata
from bilateral_serving.deploy.queries import queries
from bilateral_serving.deploy.values import Values

# Replicas are taken away one at a time, and only after five minutes that did not need them.
_BEHAVIOR: Document = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    },
}


def waiting_limit(facts: Facts) -> int:
    """Return how many requests may wait at a replica: two batches for each instance.

    The queue time is that of requests that were answered; where none is, this still counts.
    """
    return 2 * facts.instances * facts.batch


def scaled_object(facts: Facts, values: Values) -> Document:
    """Return KEDA's autoscaler of the Deployment."""
    ask = queries(facts, values)

    def trigger(query: str, threshold: int, kind: str) -> Document:
        return {
            "type": "prometheus",
            "metricType": kind,
            "metadata": {
                "serverAddress": values.prometheus,
                "query": query,
                "threshold": str(threshold),
                # No metrics are an error, which changes nothing, and not a queue that is empty.
                "ignoreNullValues": "false",
            },
        }

    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(facts, values),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": facts.slug},
            "minReplicaCount": values.min_replicas,
            "maxReplicaCount": values.max_replicas,
            "pollingInterval": 15,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _BEHAVIOR}},
            "triggers": [
                trigger(ask.per_request_ms("queue"), values.queue_ms, "Value"),
                trigger(ask.waiting, waiting_limit(facts), "AverageValue"),
            ],
        },
    }


def horizontal_pod_autoscaler(facts: Facts, values: Values) -> Document:
    """Return Kubernetes' autoscaler, on metrics that the Prometheus adapter has."""
    queue, waiting = _metric_names(facts)

    def metric(name: str, target: Document) -> Document:
        return {"type": "External", "external": {"metric": {"name": name}, "target": target}}

    limit = str(waiting_limit(facts))
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(facts, values),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": facts.slug},
            "minReplicas": values.min_replicas,
            "maxReplicas": values.max_replicas,
            "behavior": _BEHAVIOR,
            "metrics": [
                metric(queue, {"type": "Value", "value": str(values.queue_ms)}),
                metric(waiting, {"type": "AverageValue", "averageValue": limit}),
            ],
        },
    }


def adapter_rules(facts: Facts, values: Values) -> Document:
    """Return the values of the Prometheus adapter's chart that give the autoscaler its metrics."""
    ask = queries(facts, values)
    asked = (ask.per_request_ms("queue"), ask.waiting)
    return {
        "rules": {
            "external": [
                {
                    # Whose presence says that there is such a metric; the query names the rest.
                    "seriesQuery": ask.of_model("nv_inference_pending_request_count"),
                    "resources": {"namespaced": False},
                    "name": {"as": name},
                    "metricsQuery": query,
                }
                for name, query in zip(_metric_names(facts), asked, strict=True)
            ]
        }
    }


def _metric_names(facts: Facts) -> tuple[str, str]:
    """Return the names of the two metrics, which all models of a cluster share a space for."""
    name = facts.slug.replace("-", "_")
    return f"bilateral_queue_ms_{name}", f"bilateral_waiting_requests_{name}"


def kserve_metrics(facts: Facts, values: Values) -> list[Document]:
    """Return the same metrics as KServe takes them, for the KEDA object that it makes."""
    ask = queries(facts, values)

    def external(query: str, target: Document) -> Document:
        metric = {"backend": "prometheus", "serverAddress": values.prometheus, "query": query}
        return {"type": "External", "external": {"metric": metric, "target": target}}

    waiting = {"type": "AverageValue", "averageValue": str(waiting_limit(facts))}
    return [
        external(ask.per_request_ms("queue"), {"type": "Value", "value": str(values.queue_ms)}),
        external(ask.waiting, waiting),
    ]
