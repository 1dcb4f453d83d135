"""Open a version as the server would, and run its warm-up, before any server does.

`model.py` runs, with a stand-in for what Triton gives it, in a process of its own: a file that
crashes the runtime, or asks for all of the memory, does not take the caller along. Only code of
this installation runs; a version with other code is not tried.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.runners.registry import RUNTIMES, SERVED
from bilateral_serving import raw
from bilateral_serving.config import runtime_of, wants_gpu
from bilateral_serving.datatypes import TRITON_NAMES, from_triton
from bilateral_serving.installation import has_gpu
from bilateral_serving.repository import config_builder
from bilateral_serving.repository.version_files import backend_code

_SHOWN = 400


@dataclass(frozen=True)
class DryRun:
    """The outcome of a dry run.

    Attributes:
        refused: Why the server would not load the version; "" if it would.
        failed: Why a request fails that is made as the configuration says; "" if none does.
        skipped: Why it was not tried, or not to the end; "" if it was.
    """

    refused: str = ""
    failed: str = ""
    skipped: str = ""


def dry_run(
    directory: Path,
    config: pb.ModelConfig,
    *,
    largest_batch: int | None = None,
    timeout_s: float = 120.0,
) -> DryRun:
    """Open the model file of a version, run the warm-up requests and one request more.

    Args:
        directory: The version's directory; its name is the version's number.
        config: The model's configuration; its target is "python" or "onnxruntime".
        largest_batch: Run no larger warm-up than this; None runs each as the server would.
        timeout_s: Seconds after which it is given up.
    """
    if why := _not_here(config) or _other_code(directory):
        return DryRun(skipped=why)
    with tempfile.TemporaryDirectory(prefix="bilateral-") as scratch:
        # As the server sees it: a path that runtimes cannot encode does not matter.
        link = Path(scratch) / directory.name
        link.symlink_to(directory.absolute())
        return _run(link, config, largest_batch, timeout_s)


def _run(
    directory: Path, config: pb.ModelConfig, largest_batch: int | None, timeout_s: float
) -> DryRun:
    task = {
        "directory": str(directory),
        "code": str(resources.files("bilateral_serving.python_backend") / "model.py"),
        "config": _as_server_sees(config),
        "runs": _runs(config, largest_batch),
        "memory": _available_memory(),
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", "bilateral_serving.python_backend.stand_in"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return DryRun(skipped=f"opening and running it took longer than {timeout_s:g} s")
    if process.returncode < 0:
        return DryRun(refused=f"the runtime died of {signal.Signals(-process.returncode).name}")
    last = (process.stdout.splitlines() or [""])[-1]
    with contextlib.suppress(ValueError):
        outcome = json.loads(last)
        return DryRun(**{what: _plain(why, directory) for what, why in outcome.items()})
    reason = (process.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    return DryRun(refused=_plain(reason, directory))


def _not_here(config: pb.ModelConfig) -> str:
    runtime = runtime_of(config)
    if runtime in SERVED and not RUNTIMES[runtime].installed:
        return f"{runtime} is not installed here"
    missing = wants_gpu(config) and not has_gpu()
    return "it is for a GPU, and there is none here" if missing else ""


def _other_code(directory: Path) -> str:
    """Return why a version's code is not run: who can write a repository need not be trusted."""
    ours = backend_code()
    for path in sorted(directory.iterdir()):
        runs = path.suffix in (".py", ".pyc", ".so") or path.is_dir()
        if not runs or path.name == "__pycache__":
            continue
        if path.is_dir() or path.read_bytes() != ours.get(path.name):
            return f"{path.name} is not of the installed bilateral-serve, and may be any code"
    return ""


def _as_server_sees(config: pb.ModelConfig) -> dict[str, Any]:
    """Return the configuration as the Python backend gets it: with Triton's defaults filled in."""
    normal = pb.ModelConfig()
    normal.CopyFrom(config)
    if not normal.instance_group:
        normal.instance_group.add(count=1)
    for group in normal.instance_group:
        group.count = max(1, group.count)
    seen: dict[str, Any] = json_format.MessageToDict(
        normal, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return seen


def _runs(config: pb.ModelConfig, largest_batch: int | None) -> list[dict[str, Any]]:
    """Return the runs: each warm-up, as requests of one row together, and one request alone."""
    if config.model_transaction_policy.decoupled:
        return []
    reshaped = {
        tensor.name: list(tensor.reshape.shape) for tensor in config.input
        if tensor.HasField("reshape")
    }  # fmt: skip
    batched = config.max_batch_size > 0
    runs = []
    for warmup in config.model_warmup:
        if any(source.HasField("input_data_file") for source in warmup.inputs.values()):
            continue
        inputs = {
            name: {
                "dtype": _dtype(source.data_type),
                "shape": reshaped.get(name, list(source.dims)),
                "random": source.random_data,
            }
            for name, source in warmup.inputs.items()
        }
        requests = min(warmup.batch_size, largest_batch or warmup.batch_size)
        if requests:
            runs.append(
                {
                    "is": "refused",
                    "name": f"warm-up '{warmup.name}'",
                    "requests": requests,
                    "rows": [1] if batched else [],
                    "inputs": inputs,
                }
            )
    free = any(size < 0 for tensor in raw.required(config) for size in tensor.dims)
    if config.model_warmup or not free:  # which sizes would be right is not known
        warm = config.model_warmup[0].inputs if config.model_warmup else {}
        inputs = {
            tensor.name: {
                "dtype": _dtype(tensor.data_type),
                "shape": reshaped.get(tensor.name, list(warm[tensor.name].dims))
                if tensor.name in warm
                else [
                    config_builder.WARMUP_LENGTH if size < 0 else size
                    for size in reshaped.get(tensor.name, tensor.dims)
                ],
                "random": False,
            }
            for tensor in raw.required(config)
        }
        rows = [min(2, config.max_batch_size)] if batched else []
        name = f"a request of {rows[0]} rows" if rows else "a request"
        runs.append({"is": "failed", "name": name, "requests": 1, "rows": rows, "inputs": inputs})
    return runs


def _dtype(data_type: int) -> str:
    """Return NumPy's name of an element type; "object" for texts and what NumPy lacks."""
    name = from_triton("", pb.DataType.Name(data_type).removeprefix("TYPE_"), (), False).dtype
    return name if name in TRITON_NAMES and name != "bfloat16" else "object"


def _available_memory() -> int:
    """Return bytes that the machine can give without swapping; 0 if that is not known."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return 0


def _plain(reason: str, directory: Path) -> str:
    """Return an error as one line of bounded length, without ONNX Runtime's codes."""
    line = " ".join(reason.split()).replace(f"{directory}/", "")
    before, _, after = line.partition("[ONNXRuntimeError] : ")
    line = before + after.split(" : ", 2)[-1] if after else line
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
