"""Every object against its schema, strictly: a field that is misspelt is an error."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.serving.deploy.models import NAMES, facts, objects

from bilateral_serving.deploy.values import Values

KUBERNETES = "1.33"
MODELS = {  # imported when they are asked for: they take seconds
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}
OF_KSERVE = {"InferenceService": "inferenceservices", "ServingRuntime": "servingruntimes"}
EVERYTHING = {
    "tls_secret": "tls",
    "client_ca": True,
    "tokens_secret": "tokens",
    "service_account": "reader",
    "pull_secret": "pull",
    "client_namespaces": ["shop"],
    "otlp": "http://collector:4318",
    "cpu": "1500m",
    "memory": "2Gi",
    "shm": "256Mi",
}
STORAGE = ("pvc://models/of/us", "s3://bucket/models", "gs://bucket/models", "oci://reg/models:1")


def check(document: dict[str, Any]) -> None:
    """Raise `ValueError` where a schema refuses an object, or there is none for it."""
    kind = document["kind"]
    if kind in OF_KSERVE:
        for error in kserve_schema(OF_KSERVE[kind]).iter_errors(document):
            raise ValueError(error.message)
    elif kind in MODELS:
        # These models drop what they do not know: what is left must be all of it.
        model = getattr(importlib.import_module(MODELS[kind]), kind).model_validate(document)
        lost(document, model.model_dump(mode="json", by_alias=True, exclude_none=True))
    else:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as no:
            raise ValueError(repr(no)) from no


def lost(given: Any, kept: Any, path: str = "") -> None:
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                raise ValueError(f"{path}.{key} is not known")
            lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for number, value in enumerate(given):
            lost(value, kept[number], f"{path}[{number}]")


@cache
def kserve_schema(name: str) -> jsonschema.Draft202012Validator:
    folder = os.environ.get("KSERVE_CRDS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KServe's definitions are not here (KSERVE_CRDS is not a folder)")
    text = (Path(folder) / f"serving.kserve.io_{name}.yaml").read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    version = yaml.load(text, Loader=loader)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(closed(schema))


def closed(schema: Any) -> Any:
    """The schema, which refuses what it does not list."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
@pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
def test_objects_are_what_their_schemas_say(
    served: Path, kind: str, name: str, values: dict[str, Any]
) -> None:
    for document in objects(served, kind, name, **values).values():
        check(document)


@pytest.mark.parametrize("storage", STORAGE)
def test_the_repository_comes_from_every_storage(served: Path, storage: str) -> None:
    deployment = objects(served, "kubernetes", storage=storage)["Deployment"]
    check(deployment)
    pod = deployment["spec"]["template"]["spec"]
    mounted = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    command = " ".join(pod["containers"][0]["command"])
    assert f"--repository={mounted['models']}" in command
    assert "models" in {volume["name"] for volume in pod["volumes"]}
    assert ("initContainers" in pod) == storage.startswith(("s3", "gs"))


def test_the_other_autoscaler_is_kubernetes_own(served: Path) -> None:
    found = objects(served, "kubernetes", autoscaler="hpa")
    assert "ScaledObject" not in found
    check(found["HorizontalPodAutoscaler"])


def misspelt_field(document: dict[str, Any]) -> None:
    document["spec"]["replicasss"] = 2


def wrong_type(document: dict[str, Any]) -> None:
    document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "50s"


def removed_api(document: dict[str, Any]) -> None:
    document["apiVersion"] = "policy/v1beta1"


def misspelt_trigger(document: dict[str, Any]) -> None:
    document["spec"]["triggers"][0]["metricsType"] = "Value"


def misspelt_endpoint(document: dict[str, Any]) -> None:
    document["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"


def misspelt_alert(document: dict[str, Any]) -> None:
    document["spec"]["groups"][0]["rules"][0]["annotation"] = {}


def misspelt_target(document: dict[str, Any]) -> None:
    document["spec"]["predictor"]["model"]["storageURI"] = "s3://b"


def unknown_metric(document: dict[str, Any]) -> None:
    metric = document["spec"]["predictor"]["autoScaling"]["metrics"][0]
    metric["external"]["metric"]["backend"] = "influx"


def nameless_format(document: dict[str, Any]) -> None:
    del document["spec"]["supportedModelFormats"][0]["name"]


@pytest.mark.parametrize(
    ("kind", "which", "fault"),
    [
        ("kubernetes", "Deployment", misspelt_field),
        ("kubernetes", "Deployment", wrong_type),
        ("kubernetes", "PodDisruptionBudget", removed_api),
        ("kubernetes", "ScaledObject", misspelt_trigger),
        ("kubernetes", "PodMonitor", misspelt_endpoint),
        ("kubernetes", "PrometheusRule", misspelt_alert),
        ("kserve", "InferenceService", misspelt_target),
        ("kserve", "InferenceService", unknown_metric),
        ("kserve", "ServingRuntime", nameless_format),
    ],
)
def test_the_schemas_refuse_a_fault(
    served: Path, kind: str, which: str, fault: Callable[[dict[str, Any]], None]
) -> None:
    document = copy.deepcopy(objects(served, kind)[which])
    check(document)
    fault(document)
    with pytest.raises(ValueError, match=r"."):
        check(document)


class TestWhatASchemaDoesNotSee:
    @pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_pod_outlives_its_drain(self, served: Path, kind: str, name: str) -> None:
        found = objects(served, kind, name, drain_s=20, stop_s=60)
        pod, server = pod_and_server(found)
        drained = server["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= drained + 60 + 5

    @pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
    @pytest.mark.parametrize("name", NAMES)
    def test_the_server_is_nobody_and_can_write_nothing(
        self, served: Path, kind: str, name: str
    ) -> None:
        pod, server = pod_and_server(objects(served, kind, name))
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert server["securityContext"]["readOnlyRootFilesystem"]
        assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}

    @pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
    def test_ports_have_the_names_that_others_look_for(self, served: Path, kind: str) -> None:
        found = objects(served, kind)
        ports = {port["name"]: port["containerPort"] for port in pod_and_server(found)[1]["ports"]}
        # KServe makes a gRPC route for a port with grpc in its name.
        assert ports == {"grpc": 9000, "http": 8080, "metrics": 8002}
        assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"

    @pytest.mark.parametrize("kind", ["kubernetes", "kserve"])
    def test_everything_that_selects_pods_selects_these(self, served: Path, kind: str) -> None:
        found = objects(served, kind)
        if kind == "kubernetes":
            labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
            assert found["Service"]["spec"]["selector"].items() <= labels.items()
        else:
            labels = {"serving.kserve.io/inferenceservice": "quadrants"}
        for which in ("PodDisruptionBudget", "PodMonitor"):
            chosen = found[which]["spec"]["selector"]["matchLabels"]
            assert chosen.items() <= labels.items()
        policy = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert policy.items() <= labels.items()

    def test_callers_reach_grpc_and_prometheus_reaches_metrics(self, served: Path) -> None:
        policy = objects(served, "kubernetes", client_namespaces=["shop"])["NetworkPolicy"]["spec"]
        reached = {
            rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: [
                port["port"] for port in rule["ports"]
            ]
            for rule in policy["ingress"]
        }
        assert reached == {"shop": [9000], "monitoring": [8002]}
        assert policy["egress"] == []

    def test_kserve_finds_the_runtime_that_is_written_for_it(self, served: Path) -> None:
        found = objects(served, "kserve")
        model = found["InferenceService"]["spec"]["predictor"]["model"]
        assert model["runtime"] == found["ServingRuntime"]["metadata"]["name"]
        formats = found["ServingRuntime"]["spec"]["supportedModelFormats"]
        assert model["modelFormat"].items() <= formats[0].items()
        assert model["protocolVersion"] in found["ServingRuntime"]["spec"]["protocolVersions"]


def pod_and_server(found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if "Deployment" in found:
        pod = found["Deployment"]["spec"]["template"]["spec"]
        return pod, pod["containers"][0]
    runtime = found["ServingRuntime"]["spec"]
    return found["InferenceService"]["spec"]["predictor"], runtime["containers"][0]


def test_values_that_do_not_fit_together_are_refused(served: Path) -> None:
    with pytest.raises(ValueError, match="client_ca needs tls_secret"):
        Values(client_ca=True)
    with pytest.raises(ValueError, match="image"):
        Values(image="two names")
    with pytest.raises(ValueError, match="below min_replicas"):
        facts(served, min_replicas=9)
