"""The pod around the server's container: where it may run, as whom, and its model repository."""

from __future__ import annotations

from bilateral_export.op.architectures import ARCHITECTURES
from bilateral_serving.deploy.container import USER, Document, container, grace_s, volumes
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.values import Values

# KServe's, which reads S3 and GCS with whatever credentials the pod has; Triton itself knows no
# IAM roles (server issue 6651).
INITIALIZER = "kserve/storage-initializer:v0.16.0"
# A GPU's labels by NVIDIA's GPU feature discovery.
_MAJOR, _MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
_MEMORY = "nvidia.com/gpu.memory"
MODELS = "/models"

# A new replica serves before an old one goes.
ROLLING_UPDATE: Document = {
    "type": "RollingUpdate",
    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
}


def selector(facts: Facts) -> Document:
    """Return the labels that a model's pods have and others do not."""
    return {"app.kubernetes.io/name": facts.slug, "app.kubernetes.io/managed-by": "bilateral"}


def metadata(facts: Facts, values: Values, name: str = "") -> Document:
    """Return the metadata of an object of the deployment."""
    return {
        "name": name or facts.slug,
        "namespace": values.namespace,
        "labels": selector(facts),
    }


def stamp(facts: Facts) -> Document:
    """Return the annotations that make a rollout begin where the model has changed."""
    return {"bilateral-serve/served": facts.stamp}


def conditions(facts: Facts, values: Values, labels: Document) -> Document:
    """Return where pods may run and as whom: what a Deployment and KServe's predictor share."""
    found: Document = {
        "terminationGracePeriodSeconds": grace_s(values),
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
    }
    if values.service_account:
        found["serviceAccountName"] = values.service_account
    if values.pull_secret:
        found["imagePullSecrets"] = [{"name": values.pull_secret}]
    if facts.gpu:
        found["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        if terms := _gpu_terms(facts):
            required = {"nodeSelectorTerms": terms}
            found["affinity"] = {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
            }
    return found


def pod(facts: Facts, values: Values, labels: Document) -> Document:
    """Return a Deployment's pod, its model repository included."""
    models, source = _repository(values)
    server = container(facts, values, models)
    server["volumeMounts"].append(source["mount"])
    found = {
        **conditions(facts, values, labels),
        "containers": [server],
        "volumes": [*volumes(facts, values), source["volume"]],
    }
    if "init" in source:
        found["initContainers"] = [source["init"]]
    return found


def _repository(values: Values) -> tuple[str, Document]:
    """Return the repository's path in the container, and how it comes there."""
    scheme, _, place = values.storage.partition("://")
    name = "models"
    mount: Document = {"name": name, "mountPath": MODELS, "readOnly": True}
    if scheme == "pvc":
        claim, _, path = place.strip("/").partition("/")
        volume = {"claimName": claim, "readOnly": True}
        if path:
            mount["subPath"] = path
        return MODELS, {
            "volume": {"name": name, "persistentVolumeClaim": volume},
            "mount": mount,
        }
    if scheme == "oci":
        mount["mountPath"] = "/image"
        volume = {"reference": place, "pullPolicy": "IfNotPresent"}
        return f"/image{MODELS}", {"volume": {"name": name, "image": volume}, "mount": mount}
    init: Document = {
        "name": "download",
        "image": INITIALIZER,
        "args": [values.storage, MODELS],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": name, "mountPath": MODELS},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if values.storage_secret:
        init["envFrom"] = [{"secretRef": {"name": values.storage_secret}}]
    return MODELS, {"volume": {"name": name, "emptyDir": {}}, "mount": mount, "init": init}


def _gpu_terms(facts: Facts) -> list[Document]:
    """Return the nodes whose GPU runs the plan, as alternatives."""
    needed = -(-facts.gpu_memory >> 20)
    memory = (
        [{"key": _MEMORY, "operator": "Gt", "values": [str(needed)]}] if facts.gpu_memory else []
    )
    sms = set(facts.architectures)
    if facts.or_newer:
        sms |= {sm for sm in ARCHITECTURES if sm >= min(sms)}
    return [
        {
            "matchExpressions": [
                {"key": _MAJOR, "operator": "In", "values": [str(sm // 10)]},
                {"key": _MINOR, "operator": "In", "values": [str(sm % 10)]},
                *memory,
            ]
        }
        for sm in sorted(sms)
    ]
