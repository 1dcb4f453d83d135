"""The TensorRT runtime: a plan on a GPU, with TensorRT or TensorRT for RTX."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilateral_export.engine.installation.cuda import Driver, read_driver
from bilateral_export.engine.installation.library import Library, load_library
from bilateral_export.engine.installation.plugin import find_plugin, load_plugin, plugin_contents
from bilateral_export.engine.plan.compatibility import (
    device_obstacle,
    plugin_device_obstacle,
    plugin_obstacle,
    version_obstacle,
    weights_obstacle,
)
from bilateral_export.engine.plan.manifest import PlanManifest, verify_plan
from bilateral_export.engine.profiles import Profile, shape_text
from bilateral_export.errors import UserError
from bilateral_export.runners.base import BaseRunner
from bilateral_export.tensors import Array, TensorSpec

_KEPT_SHAPES = 8
Shapes = Mapping[str, tuple[int, ...]]


class TensorRTRunner(BaseRunner["_LoadedPlan"]):
    """Runs a plan that has its manifest beside it.

    Input and output buffers, on the GPU and pinned on the host, are kept for the last few
    combinations of input shapes. From the second run of a combination on, a CUDA graph of the copy
    to the GPU, the inference and the copy back is replayed, unless the plan cannot be captured;
    `replays_graphs` tells.

    Args:
        path: The plan.
        plugin: The plugin library, for a plan that needs one; None for the installation's.
        cuda_graphs: Whether to capture and replay.
    """

    def __init__(self, path: Path, plugin: Path | None = None, cuda_graphs: bool = True) -> None:
        self.manifest = verify_plan(path)
        super().__init__(f"{self.manifest.library} {self.manifest.precision}", path.name)
        self.inputs, self.outputs = self.manifest.inputs, self.manifest.outputs
        self._path = path
        self._plugin = plugin if plugin is not None else find_plugin()
        self._cuda_graphs = cuda_graphs

    def _open(self) -> _LoadedPlan:
        """Load the plan onto the first visible GPU.

        Raises:
            UserError: There is no GPU or no CUDA build of PyTorch, or the plan, its plugin, the
                library and the GPU do not go together.
        """
        library = load_library(self.manifest.library)
        check_loadable(self.manifest, library.version, read_driver(), self._plugin)
        if not torch.cuda.is_available():
            raise UserError(
                "this PyTorch cannot use the GPU, and the runner keeps its buffers with it",
                'Install a CUDA build of torch: pip install "bilateral-serve[gpu]".',
            )
        if self.manifest.plugin is not None and not self.manifest.plugin.embedded:
            assert self._plugin is not None
            load_plugin(library, self._plugin)
        return _LoadedPlan(self._path, self.manifest, library, self._cuda_graphs)

    @property
    def replays_graphs(self) -> bool:
        """Whether the last run replayed a CUDA graph."""
        return self._open_model is not None and self._open_model.replayed

    @property
    def activation_bytes(self) -> int:
        """Device memory of one context, in bytes, by the loaded engine."""
        return self.loaded.activation_bytes

    def _run(self, loaded: _LoadedPlan, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            UserError: An array is outside every profile.
        """
        return loaded.run(arrays)


def check_loadable(
    manifest: PlanManifest, version: str, driver: Driver | None, plugin: Path | None
) -> None:
    """Refuse a plan that would not load.

    Args:
        manifest: Of the plan.
        version: Of the library that is to load it.
        driver: What the NVIDIA driver says; None without one.
        plugin: The plugin library that would be loaded.

    Raises:
        UserError: The first obstacle, and what to do about it.
    """
    if driver is None or not driver.devices:
        raise UserError(
            "a plan runs on an NVIDIA GPU only, and none is visible here",
            "Run the ONNX file with ONNX Runtime, or use a machine with a GPU.",
        )
    sm = driver.devices[0].sm
    obstacles = [
        version_obstacle(manifest, manifest.library, version),
        device_obstacle(manifest, sm),
        weights_obstacle(manifest),
        plugin_obstacle(manifest, plugin),
    ]
    if manifest.plugin is not None and plugin is not None and not any(obstacles):
        obstacles.append(plugin_device_obstacle(manifest, plugin_contents(plugin).targets, sm))
    for obstacle in obstacles:
        if obstacle is not None:
            raise UserError(obstacle.problem, obstacle.fix)


def choose_profile(profiles: Sequence[Profile], shapes: Shapes) -> int:
    """The profile to run these input shapes with.

    Of those that accept the shapes, the one tuned for the nearest size: the smallest ratio between
    the number of elements it is tuned for and the number given, in either direction.

    Raises:
        UserError: No profile accepts the shapes; the nearest ranges are shown.
    """
    if not profiles:
        return 0
    fitting = [
        (_distance(profile, shapes), index)
        for index, profile in enumerate(profiles)
        if all(profile[name].contains(shapes[name]) for name in profile)
    ]
    if fitting:
        return min(fitting)[1]
    given = ", ".join(f"{name}={shape_text(shape)}" for name, shape in shapes.items())
    known = " or ".join(
        ",".join(f"{name}={shapes}" for name, shapes in profile.items()) for profile in profiles
    )
    raise UserError(
        f"{given} is outside the plan's profiles", f"It accepts {known} (minimum:optimum:maximum)."
    )


def _distance(profile: Profile, shapes: Shapes) -> float:
    worst = 1.0
    for name, ranges in profile.items():
        tuned = given = 1
        for optimum, size in zip(ranges.optimum, shapes[name], strict=True):
            # An empty cache counts as one of one token.
            tuned, given = tuned * max(optimum, 1), given * max(size, 1)
        worst = max(worst, tuned / given, given / tuned)
    return worst


@dataclass(frozen=True)
class _Buffer:
    """One tensor in pinned host memory and in GPU memory.

    Attributes:
        host, device: The two copies.
        address: Where the GPU's begins; a tensor without elements has an address too.
    """

    host: torch.Tensor
    device: torch.Tensor
    address: int


@dataclass
class _Binding:
    """The buffers of one combination of shapes, and the graph that runs them."""

    context: Any
    inputs: dict[str, _Buffer]
    outputs: dict[str, _Buffer]
    runs: int = 0
    graph: torch.cuda.CUDAGraph | None = None


class _LoadedPlan:
    """A deserialised engine with its contexts and buffers, on one stream."""

    def __init__(
        self, path: Path, manifest: PlanManifest, library: Library, cuda_graphs: bool
    ) -> None:
        trt = library.trt
        self._manifest = manifest
        self._profiles: tuple[Profile, ...] = tuple(
            {name: record.range() for name, record in profile.items()}
            for profile in manifest.profiles
        )
        self._cuda_graphs = cuda_graphs
        self.replayed = False
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with library.log.fresh():
            self._runtime = trt.Runtime(library.logger)
            # The plan holds the plugin or a runtime as host code, as its builder chose.
            self._runtime.engine_host_code_allowed = manifest.holds_host_code
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                reason = next(iter(library.log.errors), "it gives no reason")
                raise UserError(
                    f"{library.name} {library.version} does not load {path}: {reason}",
                    "Run `bilateral doctor` to see why.",
                )
        self.activation_bytes = int(self._engine.device_memory_size_v2)
        # One set of buffers, one stream: runs of several threads follow one another.
        self._lock = threading.Lock()
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], _Binding] = OrderedDict()

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copy in, infer, copy out; the arrays fit the inputs."""
        with self._lock:
            return self._run(arrays)

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        names = [tensor.name for tensor in self._manifest.inputs]
        shapes = {name: arrays[name].shape for name in names}
        binding = self._binding(shapes)
        for name in names:
            np.copyto(binding.inputs[name].host.numpy(), arrays[name])
        binding.runs += 1
        if self._cuda_graphs and binding.runs == 2:
            self._capture(binding)
        self.replayed = binding.graph is not None
        with torch.cuda.stream(self._stream):
            if binding.graph is not None:
                binding.graph.replay()
            else:
                self._enqueue(binding, self._stream)
        self._stream.synchronize()
        return {name: buffer.host.numpy().copy() for name, buffer in binding.outputs.items()}

    def _binding(self, shapes: Shapes) -> _Binding:
        key = tuple(shapes.values())
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        if len(self._bindings) == _KEPT_SHAPES:
            self._bindings.popitem(last=False)
        binding = self._bind(shapes)
        self._bindings[key] = binding
        return binding

    def _bind(self, shapes: Shapes) -> _Binding:
        # A context of its own: a captured graph holds the context's scratch memory.
        context = self._engine.create_execution_context()
        profile = choose_profile(self._profiles, shapes)
        # A new context has profile 0.
        accepted = profile == 0 or context.set_optimization_profile_async(
            profile, self._stream.cuda_stream
        )
        accepted = accepted and all(
            context.set_input_shape(name, shape) for name, shape in shapes.items()
        )
        if not accepted:
            raise RuntimeError(f"the plan does not take {dict(shapes)} with profile {profile}")
        inputs = {t.name: _buffer(t, shapes[t.name]) for t in self._manifest.inputs}
        outputs = {
            t.name: _buffer(t, tuple(context.get_tensor_shape(t.name)))
            for t in self._manifest.outputs
        }
        for name, buffer in (inputs | outputs).items():
            context.set_tensor_address(name, buffer.address)
        return _Binding(context, inputs, outputs)

    def _enqueue(self, binding: _Binding, stream: torch.cuda.Stream) -> None:
        for buffer in binding.inputs.values():
            buffer.device.copy_(buffer.host, non_blocking=True)
        if not binding.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"the plan failed to run with {self._manifest.library}")
        for buffer in binding.outputs.values():
            buffer.host.copy_(buffer.device, non_blocking=True)

    def _capture(self, binding: _Binding) -> None:
        """Record the launches once; the run before this one has loaded every kernel."""
        capturable = getattr(binding.context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.cuda_stream):
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._enqueue(binding, self._stream)
        except RuntimeError:  # it waits for the GPU as it goes; so it is launched each time
            self._cuda_graphs = False
            return
        binding.graph = graph


def _buffer(tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype) or tensor.dtype == "bfloat16":
        raise UserError(
            f"tensor {tensor.name} is {tensor.dtype}, which NumPy does not have",
            "Export the model with float32 inputs and outputs.",
        )
    host = torch.empty(shape, dtype=dtype, pin_memory=True)
    elements = math.prod(shape)
    memory = torch.empty(max(elements, 1), dtype=dtype, device="cuda")
    return _Buffer(host, memory[:elements].view(shape), memory.data_ptr())
