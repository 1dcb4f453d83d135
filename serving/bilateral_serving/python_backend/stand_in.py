"""The process of a dry run: `model.py` in a stand-in for Triton's Python backend.

It imports nothing of the project, which would take longer than the run (see repository/dry_run.py).

Reads a task as JSON from standard input; the last line of standard output is the outcome.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


class _Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class _Request:
    def __init__(self, inputs: dict[str, Any], outputs: list[str]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def requested_output_names(self) -> list[str]:
        return self.outputs

    def parameters(self) -> str:
        return "{}"


class _Response:
    def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
        self.tensors, self.error = output_tensors, error


class _MetricFamily:
    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, **_description: Any) -> None:
        pass

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802 - Triton's name
        return types.SimpleNamespace(increment=lambda _amount: None, set=lambda _value: None)


def _stand_in() -> Any:
    """Return what `model.py` uses of triton_python_backend_utils."""
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.Tensor = _Tensor
    backend.InferenceResponse = _Response
    backend.TritonError = str
    backend.Logger = types.SimpleNamespace(
        **{f"log_{level}": lambda _: None for level in ("info", "warn", "error", "verbose")}
    )
    backend.MetricFamily = _MetricFamily
    backend.get_input_tensor_by_name = lambda request, name: (
        _Tensor(name, request.inputs[name]) if name in request.inputs else None
    )
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.using_decoupled_model_transaction_policy = lambda config: config.get(
        "model_transaction_policy", {}
    ).get("decoupled", False)
    return backend


def _open(task: dict[str, Any]) -> Any:
    directory, config = Path(task["directory"]), task["config"]
    sys.dont_write_bytecode = True  # nothing is written beside the model, or taken from there
    sys.pycache_prefix = os.devnull
    sys.modules["triton_python_backend_utils"] = _stand_in()
    # The second has what versions of older releases lack.
    sys.path[:0] = [str(directory), str(Path(task["code"]).parent)]
    spec = importlib.util.spec_from_file_location("model", task["code"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = {group["kind"] for group in config["instance_group"]}
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(directory.parent),
            "model_name": config["name"],
            "model_version": directory.name,
            "model_instance_kind": "GPU" if "KIND_GPU" in kinds else "CPU",
            "model_instance_device_id": "0",
        }
    )
    return model


def _array(spec: dict[str, Any], rows: list[int]) -> Any:
    shape, dtype = (*rows, *spec["shape"]), np.dtype(spec["dtype"])
    if not spec["random"] or dtype.hasobject:
        return np.zeros(shape, dtype)
    # Random bits, as in Triton's warm-up.
    data = np.random.default_rng(0).bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def _execute(model: Any, task: dict[str, Any]) -> dict[str, str]:
    names = [tensor["name"] for tensor in task["config"]["output"]]
    for run in task["runs"]:
        arrays = {name: _array(spec, run["rows"]) for name, spec in run["inputs"].items()}
        responses = model.execute([_Request(arrays, names) for _ in range(run["requests"])])
        for response in responses:
            if response.error is not None:
                return {run["is"]: f"{run['name']}: {response.error}"}
    return {}


def _reason(error: BaseException) -> str:
    kind = type(error)
    speaks = isinstance(error, (ValueError, RuntimeError)) or "onnxruntime" in kind.__module__
    return str(error) if speaks and str(error) else f"{kind.__name__}: {error}"


def main() -> None:
    """Open the model, run what the task says, and print what became of it."""
    task = json.load(sys.stdin)
    if task["memory"]:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (task["memory"], task["memory"]))
    try:
        outcome = _execute(_open(task), task)
    except BaseException as error:
        outcome = {"refused": _reason(error)}
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # a stream's threads would go on waiting for requests
