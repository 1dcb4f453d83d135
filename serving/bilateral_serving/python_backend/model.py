"""Any exported model, behind Triton's Python backend. Every model uses this same file.

It lies beside `model.onnx` in the version directory and needs numpy and the runtime, nothing else;
a model that takes files (the parameter `raw`) needs the installed package, too.
What it must know comes from config.pbtxt: the names of the tensors, whether Triton batches, and
the parameters `runtime` and `threads`. A language model served as a stream of words (stream.py) is
declared decoupled there.

Triton hands over several requests at once. They run as one batch: concatenated along the first
axis, and the results split again. If the batch fails, each request runs alone, so that a request
that cannot be served does not take its neighbours with it.

Answers that hold NaN or infinity are counted. They are not refused here: warm-up sends anything,
and a model whose warm-up fails is not served. Our client refuses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by the server

# As in bilateral_export, for a server that another command started: no runtime reports home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Run = Callable[[Arrays, Sequence[str]], Sequence[Array]]
Weights = dict[str, bytes]

MODEL_FILE = "model.onnx"

NOT_FINITE_METRIC = "bilateral_not_finite_total"
# Answers up to so many bytes are kept until they have been counted.
_KEPT_BYTES = 64 << 10


class TritonPythonModel:
    """The class that Triton looks for; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open `model.onnx`. An exception here is reported as the reason why loading failed."""
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        instances = sum(group["count"] for group in config["instance_group"])
        version_directory = Path(args["model_repository"]) / args["model_version"]

        weights = checked_weights(
            version_directory, parameters.get(f"provenance/{args['model_version']}", "{}")
        )

        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batching = config["max_batch_size"] > 0
        about = json.loads(parameters.get(f"bilateral/{args['model_version']}", "{}"))
        self._sizes = (about.get("preprocessing") or {}).get("sizes")
        runtime = parameters.get("runtime", "onnxruntime")
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime '{runtime}' is not one of {', '.join(RUNTIMES)}")
        self._run = RUNTIMES[runtime](
            version_directory / MODEL_FILE,
            int(parameters.get("threads", "0")) or share_of_cores(instances),
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
            parameters.get("spinning", "1") == "1",
            weights,
        )
        self._watch = Watch(args["model_name"], args["model_version"], parameters)
        self._not_finite = NotFinite(args["model_name"], args["model_version"])
        self._streamer = self._raw = None
        if pb_utils.using_decoupled_model_transaction_policy(config):
            from stream import Streamer

            about = parameters[f"bilateral/{args['model_version']}"]
            self._streamer = Streamer(
                self._run,
                version_directory,
                about,
                self._not_finite.count,
                int(parameters.get("streams", "8")),
            )
        elif "raw" in parameters:
            self._raw = open_raw(
                self._run, config, version_directory, self._watch, self._not_finite.count
            )

    def finalize(self) -> None:
        """End the streams under way."""
        if self._streamer is not None:
            self._streamer.close()
        self._watch.close()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer every request, in order, with its outputs or with its own error.

        A decoupled model answers through senders instead, and returns None.
        """
        if self._streamer is not None:
            self._streamer.submit(requests)
            return None
        self._watch.begin()
        if self._raw is not None:
            answers: list[Any] = self._raw.execute(requests)
            return answers
        try:
            feeds = [self._feed(request) for request in requests]
            together = self._batching and len(feeds) > 1 and stackable(feeds)
            if together and not refused(feeds[0], self._sizes):
                return self._run_batch(requests, feeds)
        except Exception as error:
            pb_utils.Logger.log_warn(f"the batch failed, running its requests alone: {error}")
        return [self._run_alone(request) for request in requests]

    def _run_batch(self, requests: list[Any], feeds: list[Arrays]) -> list[Any]:
        batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        self._watch.prepared()
        outputs = self._run(batch, self._outputs)
        self._watch.computed()
        sizes = [len(feed[self._inputs[0]]) for feed in feeds]
        if any(len(output) != sum(sizes) for output in outputs):
            raise ValueError("an output does not have one row per row of the input")
        ends = np.cumsum(sizes)[:-1]
        pieces = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            self._respond(request, arrays) for request, arrays in zip(requests, pieces, strict=True)
        ]

    def _run_alone(self, request: Any) -> Any:
        try:
            feed = self._feed(request)
            if why := refused(feed, self._sizes):
                raise ValueError(why)
            self._watch.prepared()
            outputs = self._run(feed, self._outputs)
            self._watch.computed()
            return self._respond(request, outputs)
        except Exception as error:
            self._watch.answered(request, "error")
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _respond(self, request: Any, arrays: Sequence[Array]) -> Any:
        response = respond(request, self._outputs, arrays)
        self._watch.answered(request, "ok", arrays, self._not_finite.count)
        return response

    def _feed(self, request: Any) -> Arrays:
        # A view of Triton's shared memory: nothing is copied.
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self._inputs
        }


def open_raw(
    run: Run, config: Any, directory: Path, watch: Watch, count: Callable[..., None]
) -> Any:
    """Return what answers requests of files; the installed package prepares them."""
    try:
        from bilateral_serving.python_backend.raw import RawModel
    except ImportError as error:
        raise ValueError(
            f"a model that was added with --raw needs bilateral-serve in the Python that runs it"
            f" ({sys.executable}): {error}"
        ) from error
    instances = sum(group["count"] for group in config["instance_group"])
    return RawModel(run, config, directory, share_of_cores(instances), watch, count)


def refused(feed: Arrays, sizes: dict[str, Any] | None) -> str:
    """Why a model of several sizes does not take images; "" if it does.

    Its graph would compute all the same: it drops pixels beyond the last whole patch, and the
    memory that an image takes grows with the fourth power of its side.

    Args:
        feed: Images `[N, C, H, W]`, and other inputs.
        sizes: The document `ImageSizes` of `bilateral_export.preprocessing`; None: one size, which
            Triton checks.
    """
    if sizes is None:
        return ""
    (low, left), (high, right) = sizes["smallest"], sizes["largest"]
    multiple = sizes["multiple"]
    for name, array in feed.items():
        if array.ndim == 4:
            height, width = array.shape[2:]
            fits = low <= height <= high and left <= width <= right
            if not fits or height % multiple or width % multiple:
                return (
                    f"input {name} has images of {height}x{width}; the model takes {low} to {high}"
                    f" x {left} to {right} pixels, multiples of {multiple}"
                )
    return ""


class Watch:
    """Times the stages of requests, for metrics and traces.

    Args:
        model: The model's name.
        version: Its version.
        parameters: Those of its configuration.
    """

    def __init__(self, model: str, version: str, parameters: dict[str, str]) -> None:
        from metrics import Metrics

        self._metrics, self._tracing = Metrics(model, version, parameters), None
        if endpoint := os.environ.get("BILATERAL_OTLP"):
            from tracing import Tracing

            self._tracing = Tracing(endpoint, model, version)
        self._behind_door = os.environ.get("BILATERAL_FRONT_DOOR") == "1"
        self._began = self._prepared = self._computed = 0

    def begin(self) -> None:
        """Note that Triton has handed over requests."""
        self._began = self._prepared = self._computed = time.monotonic_ns()

    def prepared(self) -> None:
        """Note that the input of the next run is ready."""
        self._prepared = time.monotonic_ns()

    def computed(self) -> None:
        """Note that it has run."""
        self._computed = time.monotonic_ns()

    def answered(
        self,
        request: Any,
        status: str,
        outputs: Sequence[Array] = (),
        also: Callable[[Sequence[Array]], None] | None = None,
    ) -> None:
        """Count a request that has its answer, after it has been sent.

        Args:
            request: The request.
            status: "ok" or "error".
            outputs: What it is answered with.
            also: What else counts them.
        """
        times = self._began, self._prepared, self._computed, time.monotonic_ns()
        count = partial(self._count, request.parameters(), status, times, outputs, also)
        if sum(output.nbytes for output in outputs) > _KEPT_BYTES:
            count()
        else:
            self._metrics.later(count)

    def _count(
        self,
        parameters: str,
        status: str,
        times: tuple[int, int, int, int],
        outputs: Sequence[Array],
        also: Callable[[Sequence[Array]], None] | None,
    ) -> None:
        if also is not None:
            also(outputs)
        began, prepared, computed, now = times
        sent = json.loads(parameters or "{}")
        # The front door says when it took a request. What it does not know is not a caller's:
        # warm-up, and the probes of the supervisor. Without one the two look the same.
        if self._behind_door and "bilateral-accepted" not in sent:
            return
        accepted = int(sent.get("bilateral-accepted", began))
        stages = {"total": (now - accepted) / 1e9}
        if "bilateral-accepted" in sent:
            stages["queue"] = (began - accepted) / 1e9
        if status == "ok":
            stages["preprocess"] = (prepared - began) / 1e9
            stages["compute"] = (computed - prepared) / 1e9
        self._metrics.observe(stages)
        self._metrics.answered(status, outputs)
        if self._tracing is not None and (parent := sent.get("traceparent")):
            offset = time.time_ns() - time.monotonic_ns()
            self._tracing.ended(parent, began + offset, now + offset, stages)

    def close(self) -> None:
        """Hand over what is left."""
        self._metrics.close()
        if self._tracing is not None:
            self._tracing.close()


def checked_weights(directory: Path, provenance: str) -> Weights:
    """Return the external data of a version, by file; what was not added with it is refused.

    A runtime would map these files into memory, and then whoever writes into one changes the
    answers (or ends the process with SIGBUS, where it is cut off). The contents that were hashed
    are what is served.

    Args:
        directory: The version's.
        provenance: The version's parameter of that name, whose `files` has SHA-256 by name; a
            version without hashes is taken as it is.
    """
    weights: Weights = {}
    for name, expected in json.loads(provenance).get("files", {}).items():
        digest = hashlib.sha256()
        with (directory / name).open("rb") as stream:
            if name != MODEL_FILE:
                weights[name] = stream.read()
                digest.update(weights[name])
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{directory / name} is not the file that was added, whose SHA-256 is"
                f" {expected}: add the model again"
            )
    return weights


class NotFinite:
    """Counts the answers that hold NaN or infinity, in Triton's metrics.

    Args:
        model: The model's name, a label of the counter.
        version: Its version, another.
    """

    def __init__(self, model: str, version: str) -> None:
        self._family = pb_utils.MetricFamily(
            name=NOT_FINITE_METRIC,
            description="Answers that held NaN or infinity",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counter = self._family.Metric(labels={"model": model, "version": version})

    def count(self, outputs: Sequence[Array]) -> None:
        """Count an answer if one of its outputs is not finite."""
        # A thousand float32 numbers take a microsecond.
        if not all(map(is_finite, outputs)):
            self._counter.increment(1)


def is_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor infinity; one that is not of floats cannot."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def respond(request: Any, names: list[str], arrays: Sequence[Array]) -> Any:
    """The response with those of the outputs that the request asked for."""
    wanted = set(request.requested_output_names())
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor(name, array)
            for name, array in zip(names, arrays, strict=True)
            if name in wanted
        ]
    )


def stackable(feeds: list[Arrays]) -> bool:
    """Whether all requests agree in every axis but the first."""
    rows = [{name: array.shape[1:] for name, array in feed.items()} for feed in feeds]
    return all(row == rows[0] for row in rows)


def share_of_cores(instances: int) -> int:
    """The threads of one instance when all instances share this process's cores evenly."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, instances))


def open_onnxruntime(
    path: Path, threads: int, gpu: int | None, spinning: bool, weights: Weights
) -> Run:
    """A session of ONNX Runtime, on one GPU (with the CPU for what it lacks) or on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Only within a run: spinning on after it would take the cores from other models.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # A Gaussian kernel's weights fall below the smallest normal number between distant tokens, and
    # many CPUs compute with such numbers many times slower. No output shows them.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Older ones map the files.
    if weights and hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), list(map(len, weights.values()))
        )
    cpu = "CPUExecutionProvider"
    providers: list[Any] = [cpu]
    if gpu is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def run(feed: Arrays, outputs: Sequence[str]) -> Sequence[Array]:
        results: list[Array] = session.run(list(outputs), feed)
        return results

    return run


def open_openvino(
    path: Path, threads: int, gpu: int | None, spinning: bool, weights: Weights
) -> Run:
    """OpenVINO on the CPU, in float32. The file must hold standard operators only (lowered)."""
    import openvino

    if gpu is not None:
        raise ValueError("runtime 'openvino' runs on the CPU only")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # it reads the files itself: see `checked_weights`
    compiled = core.compile_model(
        core.read_model(path),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bf16 where the CPU can
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # instances would all be pinned to the same cores
        },
    )
    request = compiled.create_infer_request()

    def run(feed: Arrays, outputs: Sequence[str]) -> Sequence[Array]:
        results = request.infer(feed, share_inputs=True, share_outputs=False)
        return [results[name] for name in outputs]

    return run


RUNTIMES: dict[str, Callable[[Path, int, int | None, bool, Weights], Run]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
