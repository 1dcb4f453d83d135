"""What Prometheus' operator and Grafana are told of a model."""

from __future__ import annotations

import json

from bilateral_serving.deploy.alerts import alert_groups
from bilateral_serving.deploy.container import Document
from bilateral_serving.deploy.dashboard import dashboard
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.pod import metadata
from bilateral_serving.deploy.values import Values


def monitoring(facts: Facts, values: Values, labels: Document) -> list[Document]:
    """Return the PodMonitor, the rules and the dashboard's ConfigMap.

    Args:
        facts: Of the model.
        values: The deployment's.
        labels: Of the pods to read.
    """
    about = metadata(facts, values)
    # The label by which Grafana's sidecar finds dashboards.
    shown = metadata(facts, values, f"{facts.slug}-dashboard")
    shown["labels"] = {**shown["labels"], "grafana_dashboard": "1"}
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": about,
            "spec": {
                "selector": {"matchLabels": labels},
                "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "15s"}],
            },
        },
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": about,
            "spec": {"groups": alert_groups(facts, values)},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": shown,
            "data": {f"{facts.slug}.json": json.dumps(dashboard(facts, values), indent=1)},
        },
    ]
