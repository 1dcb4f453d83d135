"""A model on KServe in its Standard mode: a runtime of our own, and the service around it."""

from __future__ import annotations

from bilateral_export.errors import UserError
from bilateral_serving.deploy.container import METRICS, Document, container, volumes
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.kubernetes import disruption_budget, network_policy
from bilateral_serving.deploy.monitoring import monitoring
from bilateral_serving.deploy.pod import ROLLING_UPDATE, conditions, metadata, selector, stamp
from bilateral_serving.deploy.scaling import kserve_metrics
from bilateral_serving.deploy.values import Values

# Where KServe puts what `storageUri` names, and the name that it gives the server's container.
_MODELS, _CONTAINER = "/mnt/models", "kserve-container"


def kserve(facts: Facts, values: Values) -> list[Document]:
    """Return the objects.

    Raises:
        UserError: The autoscaler is not KEDA: KServe's other one knows only processor and memory.
    """
    if values.autoscaler != "keda":
        raise UserError(
            f"autoscaler {values.autoscaler}: KServe scales on a queue by KEDA only",
            "Set autoscaler to keda, or use `bilateral deploy kubernetes`.",
        )
    labels = {"serving.kserve.io/inferenceservice": facts.slug}
    return [
        _runtime(facts, values),
        _service(facts, values, labels),
        disruption_budget(facts, values, labels),
        network_policy(facts, values, labels),
        *monitoring(facts, values, labels),
    ]


def _runtime(facts: Facts, values: Values) -> Document:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(facts, values),
        "spec": {
            "annotations": {
                "prometheus.kserve.io/port": str(METRICS),
                "prometheus.kserve.io/path": "/metrics",
            },
            "supportedModelFormats": [{"name": "triton", "version": "2", "autoSelect": False}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [container(facts, values, _MODELS) | {"name": _CONTAINER}],
            "volumes": volumes(facts, values),
        },
    }


def _service(facts: Facts, values: Values, labels: Document) -> Document:
    about = metadata(facts, values)
    about["annotations"] = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "keda",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": about,
        "spec": {
            "predictor": {
                **conditions(facts, values, labels),
                "annotations": stamp(facts),
                "labels": selector(facts),
                "minReplicas": values.min_replicas,
                "maxReplicas": values.max_replicas,
                "autoScaling": {"metrics": kserve_metrics(facts, values)},
                "deploymentStrategy": ROLLING_UPDATE,
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "protocolVersion": "grpc-v2",
                    "runtime": facts.slug,
                    "storageUri": values.storage,
                },
            }
        },
    }
