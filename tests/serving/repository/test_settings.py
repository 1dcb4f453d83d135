"""A setting is in the configuration of a target, or refused: never dropped without a word."""

from __future__ import annotations

import dataclasses
import os
from typing import get_args

import pytest
from tests.builders import tiny_models as models

from bilateral_export.artifact import Artifact, read_onnx
from bilateral_export.errors import UserError
from bilateral_serving.config import Settings, Target
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
}
# A plan runs on a GPU whether it is said or not.
SAID_ALREADY = {("device", "tensorrt")}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return read_onnx(models.sum_and_product(tmp_path_factory.mktemp("settings") / "m.onnx"))


def test_every_setting_is_tried() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} == set(CHANGED)


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_is_written_or_refused(artifact: Artifact, name: str, target: Target) -> None:
    default = config_builder.build("m", artifact, target, Settings())
    try:
        changed = config_builder.build("m", artifact, target, Settings(**{name: CHANGED[name]}))
    except UserError:
        return
    assert (changed != default) == ((name, target) not in SAID_ALREADY)


def test_instances_of_the_onnxruntime_backend_share_the_cores(artifact: Artifact) -> None:
    cores = os.cpu_count() or 1
    for instances in (1, 2):
        config = config_builder.build("m", artifact, "onnxruntime", Settings(instances=instances))
        threads = config.parameters["intra_op_thread_count"].string_value
        assert int(threads) == max(1, cores // instances)
