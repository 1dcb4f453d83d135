"""A repository with a model of each target, and what deploys them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.builders import tiny_models
from tests.builders.plans import plugin_record, write_plan

from bilateral_export.engine.plan.manifest import PluginRecord, manifest_path, read_manifest
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.deploy.facts import Facts, facts_of
from bilateral_serving.deploy.render import render
from bilateral_serving.deploy.values import Values

NAMES = ("quadrants", "graph", "engine")


def make_repository(root: Path) -> Path:
    """`quadrants` in Python on a CPU, `graph` in ONNX Runtime on a GPU, `engine` in TensorRT."""
    file, served = tiny_models.quadrants(root / "q.onnx"), root / "repository"
    repository.add("quadrants", file, served, settings=Settings(threads=1))
    gpu = Settings(device="gpu", instances=2)
    repository.add("graph", file, served, target="onnxruntime", settings=gpu)
    plan = make_plan(root / "engine.plan")
    repository.add("engine", plan, served, target="tensorrt", settings=Settings(instances=2))
    return served


def make_plan(path: Path, plugin: PluginRecord | None = None, **changes: Any) -> Path:
    """A plan of the TensorRT of Triton 25.05 for sm_90."""
    write_plan(path, plugin=plugin)
    about = {"version": "10.10.0.31", "activation_bytes": 100 << 20, **changes}
    manifest = read_manifest(path).model_copy(update=about)
    manifest_path(path).write_text(manifest.model_dump_json())
    return path


def with_plugin(root: Path) -> Path:
    """A repository with a plan that needs the plugin's library beside it."""
    library = root / "libbilateral_plugin.so"
    library.write_bytes(b"plugin")
    plan = make_plan(root / "engine.plan", plugin_record(library))
    repository.add("engine", plan, root / "repository", target="tensorrt")
    return root / "repository"


def facts(served: Path, name: str = "quadrants", **values: Any) -> tuple[Facts, Values]:
    chosen = Values(**values)
    return facts_of(name, served, chosen), chosen


def rendered(served: Path, kind: Any, name: str = "quadrants", **values: Any) -> dict[str, str]:
    found, chosen = facts(served, name, **values)
    return render(kind, found, chosen, served, served.parent / "out")


def objects(served: Path, kind: Any, name: str = "quadrants", **values: Any) -> dict[str, Any]:
    """The objects of a deployment, by their kind."""
    text = rendered(served, kind, name, **values)[f"{kind}.yaml"]
    return {document["kind"]: document for document in yaml.safe_load_all(text)}
