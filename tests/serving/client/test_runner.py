"""A served model behaves like any other runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.builders import tiny_models as models

from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.server import RunningServer


def test_it_is_a_runner(server: RunningServer) -> None:
    with TritonRunner("quadrants", server.url) as runner:
        assert isinstance(runner, Runner)
        assert runner.name == "triton quadrants"
        assert [str(spec) for spec in runner.inputs] == ["pixel_values float32[batch, 1, 2, 2]"]
        assert [str(spec) for spec in runner.outputs] == ["logits float32[batch, 4]"]


def test_it_agrees_with_onnx_runtime_in_this_process(server: RunningServer, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((11, 1, 2, 2)).astype(np.float32)
    path = models.quadrants(tmp_path / "m.onnx", gain=8.0)
    with (
        TritonRunner("quadrants", server.url, version=1) as served,
        OnnxRuntimeRunner(path, threads=1) as here,
    ):
        # 11 rows are three requests: the model takes 4 at once.
        np.testing.assert_array_equal(
            served.run({"pixel_values": pixels})["logits"],
            here.run({"pixel_values": pixels})["logits"],
        )


def test_it_refuses_what_does_not_fit(server: RunningServer) -> None:
    with (
        pytest.raises(UserError, match="model 'none' is not served"),
        TritonRunner("none", server.url),
    ):
        pass
    with TritonRunner("quadrants", server.url) as runner, pytest.raises(UserError, match="shape"):
        runner.run({"pixel_values": np.zeros((2, 3), np.float32)})
