"""A model on plain Kubernetes: Deployment, headless Service, autoscaler, policies, monitoring."""

from __future__ import annotations

from urllib.parse import urlsplit

from bilateral_serving.deploy.container import GRPC, METRICS, Document
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.monitoring import monitoring
from bilateral_serving.deploy.pod import ROLLING_UPDATE, metadata, pod, selector, stamp
from bilateral_serving.deploy.scaling import horizontal_pod_autoscaler, scaled_object
from bilateral_serving.deploy.values import Values


def kubernetes(facts: Facts, values: Values) -> list[Document]:
    """Return the objects."""
    labels = selector(facts)
    scaler = scaled_object if values.autoscaler == "keda" else horizontal_pod_autoscaler
    return [
        _deployment(facts, values),
        _service(facts, values),
        disruption_budget(facts, values, labels),
        network_policy(facts, values, labels),
        scaler(facts, values),
        *monitoring(facts, values, labels),
    ]


def disruption_budget(facts: Facts, values: Values, labels: Document) -> Document:
    """Return how many pods a drained node may take at once: one."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(facts, values),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }


def network_policy(facts: Facts, values: Values, labels: Document) -> Document:
    """Return who may connect to the pods, and to what they may.

    Callers reach gRPC alone, Prometheus the metrics alone; HTTP is for the node's probes, which no
    policy stops. Out go only the download of the repository and traces, where there are any.
    """
    callers = [_namespace(name) for name in values.client_namespaces] or [{"podSelector": {}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(facts, values),
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": callers, "ports": [_tcp(GRPC)]},
                {"from": [_namespace(values.monitoring_namespace)], "ports": [_tcp(METRICS)]},
            ],
            "egress": _egress(values),
        },
    }


def _deployment(facts: Facts, values: Values) -> Document:
    labels = selector(facts)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(facts, values),
        # No number of replicas: that is the autoscaler's.
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": ROLLING_UPDATE,
            "template": {
                "metadata": {"labels": labels, "annotations": stamp(facts)},
                "spec": pod(facts, values, labels),
            },
        },
    }


def _service(facts: Facts, values: Values) -> Document:
    """Return a headless Service: its name resolves to every replica, and clients balance."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(facts, values),
        "spec": {
            "clusterIP": "None",
            "selector": selector(facts),
            "ports": [
                {
                    "name": "grpc",
                    "port": GRPC,
                    "targetPort": "grpc",
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                }
            ],
        },
    }


def _egress(values: Values) -> list[Document]:
    ports = [443] if values.storage.startswith(("s3://", "gs://")) else []
    if values.otlp:
        ports.append(urlsplit(values.otlp).port or 4318)
    if not ports:
        return []
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    return [{"ports": names}, {"ports": [_tcp(port) for port in ports]}]


def _namespace(name: str) -> Document:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int) -> Document:
    return {"protocol": "TCP", "port": port}
