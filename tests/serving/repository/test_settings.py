"""A setting is in the configuration of a target, or refused: never dropped without a word."""

from __future__ import annotations

import dataclasses
import os
from typing import get_args

import pytest
from tests.builders import tiny_models as models

from bilateral_export.artifact import Artifact, read_onnx
from bilateral_export.errors import UserError
from bilateral_serving.config import Device, Settings, Target
from bilateral_serving.repository import config_builder

CHANGED = {
    "max_batch_size": 4,
    "instances": 2,
    "threads": 3,
    "max_queue_delay_us": 100,
    "max_queue_size": 7,
    "versions": "all",
    "warmup": False,
    "device": "gpu",
    "runtime": "openvino",
    "spinning": False,
    "stream": True,
    "raw": True,
}
# What is so already: a plan runs on a GPU, a stream answers nothing on made-up inputs.
SAID_ALREADY = {
    ("device", "tensorrt", "batches"),
    ("device", "tensorrt", "no batch"),
    ("warmup", "python", "stream"),
}
KINDS = {
    "batches": Settings(),
    "no batch": Settings(max_batch_size=0),
    "stream": Settings(stream=True),
}
CASES = [
    (target, kind, device)
    for target in get_args(Target)
    for kind in KINDS
    for device in get_args(Device)
    if target == "python" or kind != "stream"
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A language model, which every setting but those of a stream leaves a model like others."""
    return read_onnx(models.words(tmp_path_factory.mktemp("settings") / "m.onnx"))


def test_every_setting_is_tried() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} == set(CHANGED)


@pytest.mark.parametrize(("target", "kind", "device"), CASES)
@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_is_written_or_refused(
    artifact: Artifact, name: str, target: Target, kind: str, device: Device
) -> None:
    before = dataclasses.replace(KINDS[kind], device=device)
    other: Device = "gpu" if device == "cpu" else "cpu"
    wanted = CHANGED | {"device": other, "stream": not before.stream}
    default = config_builder.build("m", artifact, target, before)
    try:
        after = dataclasses.replace(before, **{name: wanted[name]})
        changed = config_builder.build("m", artifact, target, after)
    except UserError:
        return
    assert (changed != default) == ((name, target, kind) not in SAID_ALREADY)


@pytest.mark.parametrize(
    ("target", "settings", "problem"),
    [
        ("onnxruntime", Settings(spinning=False), "target onnxruntime cannot honour spinning"),
        ("onnxruntime", Settings(runtime="openvino"), "target onnxruntime cannot honour runtime"),
        ("tensorrt", Settings(threads=2), "target tensorrt cannot honour threads 2"),
        ("python", Settings(max_batch_size=0, max_queue_size=3), "without batching cannot honour"),
        ("python", Settings(stream=True, max_queue_delay_us=9), "stream of words cannot honour"),
    ],
)
def test_what_cannot_be_honoured_is_named(
    artifact: Artifact, target: Target, settings: Settings, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        config_builder.build("m", artifact, target, settings)


def test_threads_of_the_onnxruntime_backend_are_written_for_a_gpu_too(artifact: Artifact) -> None:
    settings = Settings(device="gpu", threads=3)
    config = config_builder.build("m", artifact, "onnxruntime", settings)
    assert config.parameters["intra_op_thread_count"].string_value == "3"


def test_instances_of_the_onnxruntime_backend_share_the_cores(artifact: Artifact) -> None:
    cores = len(os.sched_getaffinity(0))
    for instances in (1, 2):
        config = config_builder.build("m", artifact, "onnxruntime", Settings(instances=instances))
        threads = config.parameters["intra_op_thread_count"].string_value
        assert int(threads) == max(1, cores // instances)
