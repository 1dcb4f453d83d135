"""What is deployed against what the repository implies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving.deploy.models import rendered

from bilateral_export.errors import UserError
from bilateral_serving.deploy import diff


def as_a_cluster_has_it(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """What `kubectl get -o yaml` prints of objects that an API server has taken in."""
    for document in documents:
        document["metadata"] |= {
            "uid": "1",
            "resourceVersion": "9",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        document["metadata"]["annotations"] = {
            "kubectl.kubernetes.io/last-applied-configuration": "{}"
        }
        document["status"] = {"replicas": 2}
    deployment = documents[0]["spec"]
    deployment |= {"replicas": 3, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10}
    pod = deployment["template"]["spec"]
    pod |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always"}
    server = pod["containers"][0]
    server |= {"imagePullPolicy": "IfNotPresent", "terminationMessagePolicy": "File"}
    server["resources"]["limits"]["cpu"] = "2000m"
    server["readinessProbe"]["successThreshold"] = 1
    documents[1]["spec"] |= {"clusterIPs": ["None"], "type": "ClusterIP"}
    return {"apiVersion": "v1", "kind": "List", "items": documents}


def another_image(items: list[dict[str, Any]]) -> None:
    items[0]["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"


def on_the_hosts_network(items: list[dict[str, Any]]) -> None:
    items[0]["spec"]["template"]["spec"]["hostNetwork"] = True


def another_flag(items: list[dict[str, Any]]) -> None:
    items[0]["spec"]["template"]["spec"]["containers"][0]["command"].append("--verbose")


def without_memory(items: list[dict[str, Any]]) -> None:
    volumes = items[0]["spec"]["template"]["spec"]["volumes"]
    del volumes[0]["emptyDir"]["medium"]


def without_policy(items: list[dict[str, Any]]) -> None:
    del items[3]


def with_one_left_over(items: list[dict[str, Any]]) -> None:
    old = {"name": "old", "labels": {"app.kubernetes.io/managed-by": "bilateral"}}
    items.append({"apiVersion": "v1", "kind": "Service", "metadata": old, "spec": {}})


CHANGES = {
    another_image: "Deployment/quadrants: spec.template.spec.containers[server].image is 'other:1'",
    on_the_hosts_network: "hostNetwork is True, and nothing implies it",
    another_flag: "command is ",
    without_memory: "volumes[shm].emptyDir.medium is missing",
    without_policy: "NetworkPolicy/quadrants: is not deployed",
    with_one_left_over: "Service/old: is deployed, and nothing implies it",
}


def deployed(served: Path, folder: Path) -> tuple[list[dict[str, Any]], Callable[[], Path]]:
    text = rendered(served, "kubernetes")["kubernetes.yaml"]
    answer = as_a_cluster_has_it(list(yaml.safe_load_all(text)))

    def write() -> Path:
        path = folder / "deployed.yaml"
        path.write_text(yaml.safe_dump(answer))
        return path

    return answer["items"], write


def test_what_a_cluster_adds_by_itself_is_no_difference(served: Path, tmp_path: Path) -> None:
    _, write = deployed(served, tmp_path)
    assert diff("kubernetes", "quadrants", write(), served, tmp_path) == ()


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_is_one(
    served: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None]
) -> None:
    items, write = deployed(served, tmp_path)
    change(items)
    (line,) = diff("kubernetes", "quadrants", write(), served, tmp_path)
    assert CHANGES[change] in line


def test_values_of_another_day_are_one(served: Path, tmp_path: Path) -> None:
    _, write = deployed(served, tmp_path)
    values = tmp_path / "values.yaml"
    values.write_text("stop_s: 60\n")
    lines = diff("kubernetes", "quadrants", write(), served, tmp_path)
    assert any("terminationGracePeriodSeconds is 50" in line for line in lines)


def test_a_compose_file_is_compared_too(served: Path, tmp_path: Path) -> None:
    text = rendered(served, "compose")["compose.yaml"]
    (tmp_path / "theirs.yaml").write_text(text.replace("shm_size: 128M", "shm_size: 64M"))
    lines = diff("compose", "quadrants", tmp_path / "theirs.yaml", served, served.parent / "out")
    assert len(lines) == 2  # of two servers
    assert all("shm_size is '64M'" in line for line in lines)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "kind: Service\n"])
def test_what_is_no_yaml_of_objects_is_refused(served: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(UserError, match=r"d\.yaml"):
        diff("kubernetes", "quadrants", tmp_path / "d.yaml", served, tmp_path)
