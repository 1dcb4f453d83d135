"""Deployment facts: what a model of the repository implies for the machine that serves it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilateral_export.engine.plan.compatibility import version_obstacle
from bilateral_export.engine.plan.manifest import PlanManifest, verify_plan
from bilateral_export.errors import UserError
from bilateral_export.tensors import TensorSpec
from bilateral_serving import config as configs
from bilateral_serving import repository as repositories
from bilateral_serving.config import CONFIG_FILE, MODEL_FILES
from bilateral_serving.deploy.values import Values
from bilateral_serving.releases import RELEASES, Release, release
from bilateral_serving.repository import Entry, Version
from bilateral_serving.repository.model_file import read_served

# The server of the wheel, which our own image has.
WHEEL = release("24.10")
# Measured with `bilateral serve` on two models (deploy/README.md): tritonserver, front door and
# supervisor; then each instance of a model, which keeps its weights, the runtime's copy of them and
# what it computes in between. NVIDIA's server links CUDA and TensorRT and takes more at rest.
_AT_REST = {True: 256 << 20, False: 2 << 30}
_INSTANCE, _TIMES_FILE = 64 << 20, 4
# A free axis other than the batch, such as a text's length, is taken for this long.
_FREE_AXIS = 512
_MIB = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What a model's deployment has to know of it.

    Attributes:
        name: The model's name.
        slug: The name as Kubernetes takes it.
        target: Triton's backend.
        gpu: Whether it runs on a GPU.
        release: The Triton release that serves it.
        own_image: Whether our own image serves it, with `bilateral serve`, and not NVIDIA's.
        architectures: SMs of the GPUs that can run it; empty for any.
        or_newer: Whether GPUs newer than those can, too.
        plugin: File name of the plugin library that the server must load; None for no plugin.
        host_code: Whether the plan carries code that the server must be told to run.
        instances: Copies of the model in one server.
        cores: Cores that its instances compute on; 0 where they take what there is.
        batch: Largest batch; 1 where Triton does not batch.
        memory: Bytes of the machine's memory that are asked for, without /dev/shm.
        shm: Bytes of /dev/shm.
        gpu_memory: Bytes of a GPU's memory that plan and instances take; 0 where not known.
        stamp: Number and SHA-256 of each version that is served: a rollout begins where it differs.
        remarks: What to know before it is deployed, one line each.
    """

    name: str
    slug: str
    target: str
    gpu: bool
    release: Release
    own_image: bool
    architectures: tuple[int, ...]
    or_newer: bool
    plugin: str | None
    host_code: bool
    instances: int
    cores: int
    batch: int
    memory: int
    shm: int
    gpu_memory: int
    stamp: str
    remarks: tuple[str, ...]


def facts_of(name: str, repository: Path, values: Values) -> Facts:
    """Return what a model of the repository implies.

    Raises:
        UserError: There is no such model, nothing is served of it, no known Triton loads it, or no
            image runs its target on its device.
    """
    entry = repositories.show(name, repository)
    served = _served(entry)
    own = entry.target == "python"
    if entry.target not in MODEL_FILES:
        raise UserError(
            f"model '{name}' is of backend {entry.target}, which is not one of this project's",
            f"Deploy a model of target {', '.join(MODEL_FILES)}.",
        )
    if own and entry.device == "gpu":
        raise UserError(
            f"model '{name}' has target python on a GPU, and no image has ONNX Runtime for GPUs in"
            " Triton's Python",
            "Add it again with --target tensorrt, or --target onnxruntime --device gpu.",
        )
    plans = [
        verify_plan(version.directory / MODEL_FILES["tensorrt"])
        for version in served
        if entry.target == "tensorrt"
    ]
    found = WHEEL if own else _release(entry, served, plans, values)
    outside = [plan for plan in plans if plan.plugin and not plan.plugin.embedded]
    size = sum(version.size for version in served)
    return Facts(
        name=name,
        slug=slug(name),
        target=entry.target,
        gpu=entry.device == "gpu",
        release=found,
        own_image=own,
        architectures=_architectures(name, plans),
        or_newer=bool(plans) and all(p.hardware_compatibility == "ampere_plus" for p in plans),
        plugin=outside[0].plugin.name if outside and outside[0].plugin else None,
        host_code=any(plan.holds_host_code for plan in plans),
        instances=entry.instances,
        cores=entry.instances * entry.threads if entry.device == "cpu" else 0,
        batch=max(entry.max_batch_size, 1),
        memory=_rounded(
            _AT_REST[own] + entry.instances * (len(served) * _INSTANCE + _TIMES_FILE * size)
            if entry.device == "cpu"
            else _AT_REST[own] + 2 * size
        ),
        shm=_rounded(_shared_memory(entry)),
        gpu_memory=sum(
            plan.plan.bytes + entry.instances * (plan.activation_bytes or 0) for plan in plans
        ),
        stamp=",".join(map(_stamp, served)),
        remarks=tuple(_remarks(entry, found, plans, values)),
    )


def slug(name: str) -> str:
    """Return a model's name as Kubernetes writes names: at most 40 of a-z, 0-9 and "-"."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    if not made or not made[0].isalpha():
        made = f"model-{made}".strip("-")
    return made


def _served(entry: Entry) -> tuple[Version, ...]:
    """Return the versions that Triton loads."""
    loaded = configs.served_versions(configs.read(entry.directory / CONFIG_FILE), entry.directory)
    served = tuple(version for version in entry.versions if version.number in loaded)
    if not served:
        raise UserError(
            f"model '{entry.name}' has no version that is served",
            "Add one with `bilateral repository add`.",
        )
    return served


def _release(
    entry: Entry, served: tuple[Version, ...], plans: list[PlanManifest], values: Values
) -> Release:
    """Return the release that was asked for, or else the newest that loads what is served."""
    opset = 0
    if entry.target == "onnxruntime":
        opset = max(read_served(v.directory / MODEL_FILES["onnxruntime"]).opset for v in served)
    if values.release is not None:
        wanted = release(values.release)
        if (why := _refuses(wanted, opset, plans)) is not None:
            raise UserError(f"Triton {wanted.name} does not load model '{entry.name}': {why}")
        return wanted
    fitting = [
        known
        for known in RELEASES
        if _refuses(known, opset, plans) is None and (not plans or known.tensorrt)
    ]
    if fitting:
        return fitting[-1]
    needs = f"TensorRT {plans[0].version}" if plans else f"opset {opset}"
    raise UserError(
        f"no Triton release that is known here is sure to load model '{entry.name}': it needs"
        f" {needs}",
        "Build or export it for one of releases.py, or name the release in the values.",
    )


def _refuses(found: Release, opset: int, plans: list[PlanManifest]) -> str | None:
    if opset > found.opset:
        return f"its ONNX Runtime {found.onnxruntime} reads opset {found.opset}, not {opset}"
    for plan in plans:
        if found.tensorrt is None:
            continue
        obstacle = version_obstacle(plan, "tensorrt", found.tensorrt)
        if obstacle is not None:
            return obstacle.problem
    return None


def _architectures(name: str, plans: list[PlanManifest]) -> tuple[int, ...]:
    """Return the SMs that every plan was built for."""
    if not plans:
        return ()
    common = set.intersection(*({int(t.removeprefix("sm_")) for t in p.targets} for p in plans))
    if not common:
        raise UserError(
            f"the served versions of model '{name}' are plans for different GPUs",
            "Build them for the same, or serve one of them: repository add --versions latest.",
        )
    return tuple(sorted(common))


def _shared_memory(entry: Entry) -> int:
    """Return what Triton's Python backend moves through /dev/shm, and its own 64 MiB a model."""
    batch = max(entry.max_batch_size, 1)
    tensors = sum(_bytes(spec, batch) for spec in (*entry.inputs, *entry.outputs))
    # One batch in use, one that is being made, in and out.
    return entry.instances * (64 * _MIB + 2 * tensors)


def _bytes(spec: TensorSpec, batch: int) -> int:
    first, *rest = (1, *spec.sizes) if not spec.sizes else spec.sizes
    sizes = [batch if first < 0 else first, *(_FREE_AXIS if size < 0 else size for size in rest)]
    width = {"object": 64, "bfloat16": 2}.get(spec.dtype) or np.dtype(spec.dtype).itemsize
    return math.prod(sizes) * width


def _rounded(size: int) -> int:
    """Return bytes rounded up to 64 MiB."""
    return -(-size // (64 * _MIB)) * 64 * _MIB


def _stamp(version: Version) -> str:
    files = version.provenance.files if version.provenance else {}
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(files.items()))
    return f"{version.number}:{hashlib.sha256(text.encode()).hexdigest()}"


def _remarks(
    entry: Entry, found: Release, plans: list[PlanManifest], values: Values
) -> Iterator[str]:
    if entry.device == "cpu" and not entry.threads and values.cpu is None:
        yield (
            "its instances take all cores of a node, whatever the pod may use: add it again with"
            " --threads N"
        )
    if plans and found.tensorrt is None:
        yield f"whether the TensorRT of Triton {found.name} loads the plan is not known here"
    if any(plan.plugin and not plan.plugin.embedded for plan in plans):
        yield "its plan needs the plugin beside it: build the image with `bilateral deploy docker`"
    if entry.target != "python" and values.tokens_secret:
        yield "tokens_secret is left out: NVIDIA's server knows no tokens of callers"
