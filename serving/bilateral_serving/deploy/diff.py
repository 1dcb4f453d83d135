"""Differences between what a repository implies and what is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_serving.deploy.facts import facts_of
from bilateral_serving.deploy.quantity import same_quantity
from bilateral_serving.deploy.render import Kind, render, values_of

# What an API server adds by itself; anything else that is deployed and not implied is a difference.
_ADDED: dict[str, Any] = {
    "dnsPolicy": "ClusterFirst",
    "failureThreshold": 3,
    "imagePullPolicy": "IfNotPresent",
    "internalTrafficPolicy": "Cluster",
    "ipFamilyPolicy": "SingleStack",
    "operator": "Equal",
    "progressDeadlineSeconds": 600,
    "protocol": "TCP",
    "publishNotReadyAddresses": False,
    "restartPolicy": "Always",
    "revisionHistoryLimit": 10,
    "scheme": "HTTP",
    "schedulerName": "default-scheduler",
    "selectPolicy": "Max",
    "sessionAffinity": "None",
    "successThreshold": 1,
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "timeoutSeconds": 1,
    "type": "ClusterIP",
    "unhealthyPodEvictionPolicy": "IfHealthyBudget",
}
# What differs from one cluster to another, or from one minute to the next.
_ITS_OWN = {
    "clusterIPs",
    "creationTimestamp",
    "defaultMode",
    "finalizers",
    "generation",
    "ipFamilies",
    "managedFields",
    "nodePort",
    "ownerReferences",
    "replicas",
    "resourceVersion",
    "selfLink",
    "serviceAccount",
    "status",
    "uid",
}
_OTHERS = ("kubectl.kubernetes.io/", "deployment.kubernetes.io/", "autoscaling.keda.sh/")
# By what the members of a list are known.
_KEYS = ("name", "mountPath", "containerPort", "topologyKey", "alert", "port")


def diff(
    kind: Kind,
    name: str,
    deployed: Path,
    repository: Path,
    out: Path,
    values_file: Path | None = None,
) -> tuple[str, ...]:
    """Return where what is deployed differs from what the repository implies, one line each.

    Args:
        kind: What it is deployed on: kserve, kubernetes or compose.
        name: The model.
        deployed: What is deployed, as YAML: of `kubectl get -f ... -o yaml`, or compose.yaml.
        repository: The model repository.
        out: The directory of the deployment's values.
        values_file: The values, if they lie elsewhere.

    Raises:
        UserError: As `write`; or what is deployed cannot be read.
    """
    if kind == "docker":
        raise UserError("an image is not YAML", "Compare kserve, kubernetes or compose.")
    values = values_of(out, values_file)
    facts = facts_of(name, repository, values)
    text = render(kind, facts, values, repository, out)[f"{kind}.yaml"]
    wanted = _by_name(list(yaml.safe_load_all(text)))
    found = _by_name(_read(deployed))
    return tuple(_objects(wanted, found))


def _read(path: Path) -> list[Any]:
    require_file(path, "file of what is deployed")
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML: {error}", "Write it with kubectl get -o yaml."
        ) from error
    objects: list[Any] = []
    for document in documents:
        if not isinstance(document, dict):
            raise UserError(f"{path} holds something that is no object", "Give objects as YAML.")
        if (
            "kind" in document
            and "items" not in document
            and "name" not in (document.get("metadata") or {})
        ):
            raise UserError(f"{path} holds an object without a name", "Give objects as YAML.")
        several = str(document.get("kind")).endswith("List")
        objects += document.get("items") or [] if several else [document]
    return objects


def _by_name(documents: list[Any]) -> dict[str, Any]:
    """Return objects by kind and name; a compose.yaml has neither."""
    return {
        f"{it['kind']}/{it['metadata']['name']}" if "kind" in it else "compose.yaml": it
        for it in documents
    }


def _objects(wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for name, document in wanted.items():
        if name not in found:
            yield f"{name}: is not deployed"
            continue
        yield from (f"{name}: {line}" for line in _differences(document, found[name], ""))
    for name, document in found.items():
        labels = (document.get("metadata") or {}).get("labels") or {}
        if name not in wanted and labels.get("app.kubernetes.io/managed-by") == "bilateral":
            yield f"{name}: is deployed, and nothing implies it"


def _differences(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        yield from _of_dicts(wanted, found, path)
    elif isinstance(wanted, list) and isinstance(found, list):
        yield from _of_lists(wanted, found, path)
    elif wanted != found and not same_quantity(wanted, found):
        yield f"{path} is {found!r}, the repository implies {wanted!r}"


def _of_dicts(wanted: dict[str, Any], found: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in wanted.items():
        where = f"{path}.{key}".lstrip(".")
        if key in found:
            yield from _differences(value, found[key], where)
        elif value not in ({}, []):  # which an API server leaves out
            yield f"{where} is missing, the repository implies {value!r}"
    for key in found.keys() - wanted.keys():
        value = found[key]
        if key in _ITS_OWN or key.startswith(_OTHERS) or value in (None, {}, []):
            continue
        if key == "annotations" and all(name.startswith(_OTHERS) for name in value):
            continue
        if key not in _ADDED or _ADDED[key] != value:
            yield f"{path}.{key}".lstrip(".") + f" is {value!r}, and nothing implies it"


def _of_lists(wanted: list[Any], found: list[Any], path: str) -> Iterator[str]:
    key = next(
        (k for k in _KEYS if all(isinstance(it, dict) and k in it for it in (*wanted, *found))),
        None,
    )
    if key is None:
        if len(wanted) != len(found):
            yield f"{path} is {found!r}, the repository implies {wanted!r}"
            return
        for number, pair in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(*pair, f"{path}[{number}]")
        return
    theirs = {it[key]: it for it in found}
    for it in wanted:
        where = f"{path}[{it[key]}]"
        if it[key] in theirs:
            yield from _differences(it, theirs.pop(it[key]), where)
        else:
            yield f"{where} is missing"
    for name in theirs:
        yield f"{path}[{name}] is deployed, and nothing implies it"
