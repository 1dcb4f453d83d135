"""A checkpoint to a checked server in one call, and what a caller pastes to ask it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bilateral_benchmarks.end_to_end.check_answers import streamed
from bilateral_benchmarks.end_to_end.run_model import (
    BATCHES,
    Say,
    Steps,
    export_model,
    items_for,
    judge_served,
    served_names,
)
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.files import atomic_file, to_json, write_text
from bilateral_export.models.family import Family
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.preprocessing import (
    ImagePreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.tensors import FEATURES, Array
from bilateral_serving import repository
from bilateral_serving.client.inputs.files import documents, prepare
from bilateral_serving.client.inputs.segmentation import read_and_cut
from bilateral_serving.config import Settings, served
from bilateral_serving.datatypes import triton_name
from bilateral_serving.raw import INPUT
from bilateral_serving.repository import Entry
from bilateral_serving.server import RunningServer, ServerOptions, serve
from bilateral_serving.server.preflight import check_callers


@dataclass(frozen=True)
class Ready:
    """A server that has passed parity.

    Attributes:
        server: It.
        python: Three lines of Python that ask it.
        curl: One command that does, over HTTP.
    """

    server: RunningServer
    python: str
    curl: str


def up(
    checkpoint: Path,
    options: ServerOptions,
    *,
    folder: Path,
    steps: Steps,
    on_ready: Callable[[Ready], None],
    on_event: Callable[[str], None],
    name: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    example: Path | None = None,
) -> bool:
    """Export, judge, lower, add and serve a checkpoint until a signal comes.

    Args:
        checkpoint: The weights.
        options: Where to serve; the models are filled in. HTTP is needed for the curl command.
        folder: For the ONNX file, the example and its request.
        steps: Told of each step.
        on_ready: Called when the served model has passed parity.
        on_event: Called with one line for whatever goes wrong later.
        name: Under which the model is served; None: the file's name.
        model: As in `load_checkpoint`.
        weights: As in `load_checkpoint`.
        example: A file that the printed commands ask about; None: one is made.

    Returns:
        Whether the model passed parity; where it does not, it is not left running.

    Raises:
        UserError: A step refuses the model, or the server cannot start.
    """
    name = name or checkpoint.stem
    check_callers(options)

    def load(say: Say) -> Checkpoint:
        loaded = load_checkpoint(checkpoint, model=model, weights=weights)
        say(loaded.card.name)
        return loaded

    exported = export_model(name, load, _samples, folder=folder, steps=steps)
    if not all(row.passed for row in exported.rows):
        return False
    with steps("add", "Lowering for this machine and adding to the repository") as say:
        names = served_names(name, exported.checkpoint)
        is_new = not (options.repository / name).exists()  # else it is served as it was
        if is_new and repository.takes_files(exported.file):
            names[name] = Settings(raw=True)
        for each, settings in names.items():
            entry = added(each, exported.file.path, options.repository, settings, exported.report())
            say("; ".join([str(entry.versions[-1].directory), *entry.remarks]))

    def judge(server: RunningServer) -> None:
        if not all(row.passed for row in judge_served(name, server, exported, steps)):
            raise _NotPassedError
        raw = bool(repository.show(name, options.repository).raw)
        on_ready(_ready(server, name, exported.checkpoint, folder, example, raw))

    steps.on_step("serve", "Starting tritonserver")
    try:
        serve(dataclasses.replace(options, models=tuple(names)), on_ready=judge, on_event=on_event)
    except _NotPassedError:
        return False
    return True


class _NotPassedError(Exception):
    """What is served is not what was trained: ends the server."""


def _samples(checkpoint: Checkpoint) -> list[Sample]:
    model = checkpoint.build_model()
    return random_samples(model, BATCHES, {}, items_for(model))


def added(
    name: str,
    model: Path,
    models: Path,
    settings: Settings | None,
    parity: ParityReport | None = None,
) -> Entry:
    """Add a file as the next version, unless the newest one was made of the same checkpoint."""
    from bilateral_export.artifact import read_metadata

    if (models / name).exists():
        entry = repository.show(name, models)
        newest = entry.versions[-1].metadata if entry.versions else None
        if newest is not None and newest == served(read_metadata(model)):
            return entry
    return repository.add(name, model, models, settings=settings, parity=parity)


def _ready(
    server: RunningServer,
    name: str,
    checkpoint: Checkpoint,
    folder: Path,
    example: Path | None,
    raw: bool,
) -> Ready:
    """Write what the two commands send, and return them."""
    how, model = checkpoint.card.preprocessing, checkpoint.build_model()
    if how is None:
        asking = _request(model, model.example(1, np.random.default_rng(0)))
        asked = f"client.model_metadata({name!r})"
    else:
        source = example or _example(how, folder / name)
        if raw:
            asking = _file_request(source, how)
        else:
            asking = _request(model, _inputs(model, how, source, checkpoint.card.name))
        content = f"open({str(source.absolute())!r}, 'rb').read()"
        asked = {
            SegmentationPreprocessing: f"client.segment({name!r}, [{content}])[0]",
            TextPreprocessing: f"''.join(word.text for word in client.generate("
            f"{streamed(name)!r}, {content}.decode(), max_tokens=12))",
        }.get(type(how), f"client.classify({name!r}, [{content}], k=3)[0]")
        if model.outputs()[0].name == FEATURES:  # there is no head
            asked = f"client.features({name!r}, [{content}])"
    python = (
        "from bilateral_serving.client import Client\n"
        f"with Client({server.url!r}) as client:\n"
        f"    print({asked})"
    )
    request = folder / f"{name}.request.json"
    write_text(request, to_json(asking))
    curl = (
        f"curl -s http://{server.http_url}/v2/models/{name}/infer"
        f" -H 'Content-Type: application/json' -d {shlex.quote(f'@{request.absolute()}')}"
    )
    return Ready(server, python, curl)


def _example(how: Preprocessing, stem: Path) -> Path:
    """Write an input that a model takes; returns its path."""
    if isinstance(how, (ImagePreprocessing, PixelsPreprocessing, SegmentationPreprocessing)):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        path, content = stem.with_name(f"{stem.name}.example.png"), stream.getvalue()
    else:
        path = stem.with_name(f"{stem.name}.example.txt")
        is_expression = isinstance(how, ListOpsPreprocessing)
        content = b"[MAX 2 9 [MIN 4 7 ] 0 ]" if is_expression else b"The value of the object"
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def _inputs(model: Family, how: Preprocessing, source: Path, name: str) -> Mapping[str, Array]:
    """Return the tensors of one input."""
    if isinstance(how, TextPreprocessing):
        return model.example(1, np.random.default_rng(0))
    if isinstance(how, SegmentationPreprocessing):
        return {model.inputs()[0].name: read_and_cut(source, how).pixels[:1]}
    return {model.inputs()[0].name: prepare([source] * documents(how), how, name)}


def _file_request(source: Path, how: Preprocessing) -> dict[str, Any]:
    """Return the body of a request that brings a file as it is: a text, or an image's data URL."""
    content = source.read_bytes()
    if isinstance(how, (ImagePreprocessing, PixelsPreprocessing, SegmentationPreprocessing)):
        data = f"data:;base64,{base64.b64encode(content).decode()}"
    else:
        data = content.decode()
    tensor = {"name": INPUT, "shape": [1, documents(how)], "datatype": "BYTES"}
    return {"inputs": [tensor | {"data": [data] * documents(how)}]}


def _request(model: Family, inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return the body of a KServe v2 inference request."""
    return {
        "inputs": [
            {
                "name": spec.name,
                "shape": list(inputs[spec.name].shape),
                "datatype": triton_name(spec),
                # The shortest decimal of a float32 that is read back as the same number.
                "data": [json.loads(str(value)) for value in inputs[spec.name].ravel()],
            }
            for spec in model.inputs()
        ]
    }
