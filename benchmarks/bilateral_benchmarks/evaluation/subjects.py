"""The models that are compared: a checkpoint in PyTorch, an exported file, a served model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from bilateral_benchmarks.evaluation.dataset import Task
from bilateral_export.artifact import read_onnx
from bilateral_export.errors import UserError
from bilateral_export.files import to_json
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import (
    ImagePreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.tensors import Array, TensorSpec
from bilateral_export.text import Reader, Tokenizer, score, step_feed
from bilateral_serving.client import Client, requests
from bilateral_serving.client.inputs.files import batched, documents, prepare_one
from bilateral_serving.client.inputs.segmentation import Classes, Windows, read_and_cut, stitch
from bilateral_serving.client.requests import DEFAULT_URL, ModelInfo
from bilateral_serving.client.runner import TritonRunner

Kind = Literal["torch", "onnx", "served"]
TIMEOUT_S = 600.0


class _Runner(Protocol):
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Description:
    """What a model says of itself.

    Attributes:
        name: As the user gave it.
        kind: Where it runs.
        labels: Its classes, in the order of the logits.
        preprocessing: What is done to a file's bytes.
        identity: SHA-256 of all that its answers depend on: weights, labels, preprocessing.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    identity: str

    @property
    def task(self) -> Task:
        """What the model does."""
        if isinstance(self.preprocessing, SegmentationPreprocessing):
            return "segmentation"
        return "language" if isinstance(self.preprocessing, TextPreprocessing) else "classification"

    @property
    def takes_images(self) -> bool:
        """Whether its inputs are image files."""
        images = (ImagePreprocessing, PixelsPreprocessing, SegmentationPreprocessing)
        return isinstance(self.preprocessing, images)

    @property
    def documents(self) -> int:
        """How many files make one input."""
        return documents(self.preprocessing)


class Subject(ABC):
    """A model that answers about the bytes of files, from `__enter__` to `__exit__`.

    Files become tensors and tensors answers by the functions of the client, whichever runtime is
    between them: what is compared is the whole way.
    """

    description: Description

    def __init__(self) -> None:
        self._runner: _Runner
        self._info: ModelInfo
        self._stack = ExitStack()

    @abstractmethod
    def _open(self, stack: ExitStack) -> tuple[Description, _Runner, ModelInfo]:
        """Load or connect; what is entered on the stack is closed at the end."""

    def __enter__(self) -> Subject:
        """Load the model, or connect to its server.

        Raises:
            UserError: It cannot be read or reached, or has no preprocessing.
        """
        with ExitStack() as stack:
            self.description, self._runner, self._info = self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def logits(self, items: Sequence[Sequence[bytes]]) -> list[Array | UserError]:
        """Return a row `[classes]` for each item, or why it cannot be read."""
        how, name = self.description.preprocessing, self.description.name
        answers: list[Array | UserError] = []
        good: list[Array] = []
        for item in items:
            try:
                good += [prepare_one(source, how, name) for source in item]
            except UserError as error:
                answers.append(error)
            else:
                answers.append(np.empty(0))
        if good:
            batch = batched(good, how)
            source = requests.classifier_input(self._info)
            target = requests.classifier_output(self._info)
            rows = iter(
                row
                for piece in requests.pieces(self._info, {source: batch})
                for row in self._runner.run(piece)[target]
            )
            answers = [each if isinstance(each, UserError) else next(rows) for each in answers]
        return answers

    def cut(self, image: bytes) -> Windows:
        """Return the windows of an image.

        Raises:
            UserError: It cannot be read.
        """
        return read_and_cut(image, requests.segmenter_preprocessing(self._info))

    def segment(self, windows: Windows) -> Classes:
        """Return the class of every pixel of an image, uint8 `[height, width]`."""
        source, target = self._info.inputs[0].name, self._info.outputs[0].name
        found = [self._runner.run({source: one[None]})[target] for one in windows.pixels]
        return stitch(np.concatenate(found), windows)

    def likelihoods(self, text: str) -> list[float]:
        """Return the log-likelihood of each word of a text."""
        how = self.description.preprocessing
        assert isinstance(how, TextPreprocessing)
        tokenizer = Tokenizer(how.vocabulary, how.split)
        names = [spec.name for spec in self._runner.inputs]
        outputs = [spec.name for spec in self._runner.outputs]

        def step(*arrays: Any) -> Any:
            answer = self._runner.run(step_feed(arrays, names))
            return tuple(answer[name] for name in outputs)

        _, depth, heads, _, dim = self._runner.inputs[2].shape
        shape = (1, int(depth), int(heads), 0, int(dim))
        return score(Reader(step, shape, how.context), tokenizer.encode(text), tokenizer.end)


class TorchSubject(Subject):
    """A checkpoint in eager PyTorch, float32.

    Args:
        path: The checkpoint.
        model: As in `load_checkpoint`.
    """

    def __init__(self, path: Path, model: str | None = None) -> None:
        super().__init__()
        self._path, self._model = path, model

    def _open(self, stack: ExitStack) -> tuple[Description, _Runner, ModelInfo]:
        from bilateral_export.checkpoint.load import load_checkpoint
        from bilateral_export.runners.torch_eager import TorchRunner

        checkpoint = load_checkpoint(self._path, model=self._model)
        card, name = checkpoint.card, str(self._path)
        metadata = ArtifactMetadata(
            family=card.model.family,
            name=card.name,
            model=card.model.model_dump(mode="json"),
            precision="fp32",
            labels=card.labels,
            preprocessing=card.preprocessing,
            checkpoint_sha256=checkpoint.sha256,
            weights=checkpoint.weights,
            license=card.license,
        )
        runner = stack.enter_context(TorchRunner(checkpoint))
        return _opened(name, "torch", metadata, runner, to_json(metadata))


class OnnxSubject(Subject):
    """An exported or lowered file in ONNX Runtime, on the CPU.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _open(self, stack: ExitStack) -> tuple[Description, _Runner, ModelInfo]:
        from bilateral_export.files import sha256
        from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

        artifact = read_onnx(self._path)
        files = (self._path, *artifact.external_files)
        runner = stack.enter_context(OnnxRuntimeRunner(self._path))
        return _opened(
            str(self._path),
            "onnx",
            artifact.metadata,
            runner,
            " ".join(map(sha256, files)),
            artifact.max_batch or 0,
        )


class ServedSubject(Subject):
    """A model on a running server.

    Args:
        name: Its name there.
        url: "host:port" of gRPC.
    """

    def __init__(self, name: str, url: str = DEFAULT_URL) -> None:
        super().__init__()
        self._name, self._url = name, url
        self._client: Client

    def _open(self, stack: ExitStack) -> tuple[Description, _Runner, ModelInfo]:
        self._client = stack.enter_context(Client(self._url, timeout_s=TIMEOUT_S))
        info = self._client.model_metadata(self._name)
        config = self._client.model_config(self._name)  # holds the SHA-256 of its files
        runner = stack.enter_context(TritonRunner(self._name, self._url, timeout_s=TIMEOUT_S))
        depends = f"{info.version} {config}"
        return _opened(self._name, "served", info.metadata, runner, depends, info.max_batch_size)

    def likelihoods(self, text: str) -> list[float]:
        """Return the log-likelihood of each word of a text, from the model's stream."""
        return [word.log_likelihood for word in self._client.score(self._name, text).words]


def open_subject(name: str, url: str = DEFAULT_URL, model: str | None = None) -> Subject:
    """Return what a name on the command line means: a file or folder that exists, else a model.

    Args:
        name: A path that ends in .onnx, another path that exists, or a served model's name.
        url: "host:port" of the server.
        model: As in `load_checkpoint`, for checkpoints.

    Raises:
        UserError: It looks like a path, and there is no such file.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        return OnnxSubject(path)
    if path.is_file() or (path / "config.json").is_file():
        return TorchSubject(path, model)
    if "/" in name or path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        raise UserError(f"checkpoint {name} does not exist", "Check the path.")
    return ServedSubject(name, url)


def _opened(
    name: str,
    kind: Kind,
    metadata: ArtifactMetadata | None,
    runner: _Runner,
    depends: str,
    max_batch: int = 0,
) -> tuple[Description, _Runner, ModelInfo]:
    if metadata is None or metadata.preprocessing is None:
        raise UserError(
            f"model '{name}' does not say how a file becomes its input",
            "Export it with --model CARD.json, a card that has a preprocessing.",
        )
    said = f"{kind} {depends} {metadata.labels} {to_json(metadata.preprocessing)}"
    identity = hashlib.sha256(said.encode()).hexdigest()
    described = Description(name, kind, metadata.labels, metadata.preprocessing, identity)
    info = ModelInfo(name, 1, (1,), runner.inputs, runner.outputs, max_batch, metadata)
    return described, runner, info
