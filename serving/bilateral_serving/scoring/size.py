"""How many workers score, with what each: from the model's facts and what the cluster has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_serving.scoring.model import Model
from bilateral_serving.scoring.scorer import Scorer

# Of a node's memory; the rest is for chunks, Arrow and the decoders' scratch.
_SHARE = 0.9


@dataclass(frozen=True)
class Wanted:
    """What the user decides; 0 leaves it to the facts.

    Attributes:
        workers: Copies of the model.
        threads: Of one inference, on a CPU.
        batch: Items in one inference.
    """

    workers: int = 0
    threads: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Resources:
    """What a cluster, or this machine, has for the workers."""

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True)
class Size:
    """The workers of a run.

    Attributes:
        workers: Copies of the model, one in each process.
        threads: Of one inference.
        readers: Threads of a worker that prepare inputs.
        batch: Items in one inference.
        cpus, gpus, memory_bytes: What Ray reserves for each.
    """

    workers: int
    threads: int
    readers: int
    batch: int
    cpus: int
    gpus: int
    memory_bytes: int


def batch_of(model: Model, wanted: Wanted) -> int:
    """Return how many items are in one inference.

    Raises:
        UserError: The model does not take so many.
    """
    largest = model.fixed_batch or model.max_batch
    if wanted.batch and largest and wanted.batch > largest:
        raise UserError(f"--batch {wanted.batch}", f"The model takes at most {largest}.")
    return wanted.batch or model.batch


def choose_size(model: Model, wanted: Wanted, has: Resources, worker_bytes: int) -> Size:
    """Return the workers for a model.

    On CPUs as many workers of one thread as there are cores, for one thread never waits for
    another; fewer with more threads where the memory is not enough. A worker for each GPU, with the
    CPUs shared among them.

    Args:
        model: The model.
        wanted: What the user decides.
        has: What there is.
        worker_bytes: What one worker needs, as measured.

    Raises:
        UserError: There is no GPU for a model that needs one.
    """
    fits = max(1, int(has.memory_bytes * _SHARE) // max(1, worker_bytes))
    if model.on_gpu:
        if not has.gpus:
            raise UserError(
                f"{model.path.name} runs on a GPU, and Ray sees none",
                "Use an ONNX file on the CPU.",
            )
        workers = wanted.workers or min(has.gpus, fits)
        cpus = max(1, has.cpus // workers)
        threads, readers, gpus = 1, cpus, 1
    else:
        workers = wanted.workers or max(1, min(has.cpus // max(1, wanted.threads), fits))
        threads = cpus = wanted.threads or max(1, has.cpus // workers)
        readers, gpus = (0 if threads == 1 else threads), 0
    memory = min(worker_bytes, has.memory_bytes)
    return Size(workers, threads, readers, batch_of(model, wanted), cpus, gpus, memory)


def measure_worker(model: Model, batch: int, threads: int = 1) -> int:
    """Return the peak of this process's resident memory, in bytes, after one inference.

    Raises:
        UserError: The model cannot be run here.
    """
    spec = model.inputs[0]
    longest = getattr(model.preprocessing, "length", 1)
    shape = [size if isinstance(size, int) else longest for size in spec.shape]
    with Scorer(model, threads, batch) as scorer:
        outcomes = scorer.run([np.ones(shape[1:], dtype=spec.dtype)] * batch)
    if isinstance(outcomes[0], UserError):
        raise outcomes[0]
    return peak_bytes()


def peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")
