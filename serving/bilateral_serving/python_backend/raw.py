"""A model of files behind Triton's Python backend: bytes in, labels, masks or likelihoods out.

A request brings encoded images or texts, or the tensors of the graph, as it likes. All that Triton
hands over together runs as one batch. What cannot be read is answered with its own error; the
others of its batch do not notice.

The preprocessing is the client's, from the installed package: `model.py` imports this module only
for a configuration with the parameter `raw`. It needs numpy, Pillow and pydantic, not torch.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by the server
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import (
    PADDING,
    BytesPreprocessing,
    ImagePreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.text import STEP_OUTPUTS, Reader, Tokenizer, score, step_feed
from bilateral_serving import raw
from bilateral_serving.client.inputs.files import batched, prepare_one
from bilateral_serving.client.inputs.segmentation import Windows, read_and_cut, stitch

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Run = Callable[[Arrays, Sequence[str]], Sequence[Array]]

URL = b"data:"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
LARGEST_IMAGE, LARGEST_TEXT = 64 << 20, 1 << 20  # bytes
IMAGES = (ImagePreprocessing, PixelsPreprocessing, SegmentationPreprocessing)


@dataclass(frozen=True)
class Item:
    """A request that was read: what the graph gets for it, and what its outputs become."""

    feed: Arrays
    finish: Callable[[Sequence[Array]], Arrays]

    @property
    def rows(self) -> int:
        """How many rows of the batch are its own."""
        return len(next(iter(self.feed.values())))


class RawModel:
    """Answers requests of files and of tensors.

    Args:
        run: Runs the graph.
        config: The model's configuration, as JSON has it.
        directory: The version's directory.
        threads: How many files are decoded at once.
        watch: Times the stages of requests.
        count: Counts outputs that are not finite.
    """

    def __init__(
        self,
        run: Run,
        config: dict[str, Any],
        directory: Path,
        threads: int,
        watch: Any,
        count: Callable[[Sequence[Array]], None],
    ) -> None:
        parameters = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        about = ArtifactMetadata.model_validate_json(parameters[f"bilateral/{directory.name}"])
        assert about.preprocessing is not None
        self._run, self._watch, self._count = run, watch, count
        self._name, self._labels, self._how = config["name"], about.labels, about.preprocessing
        self._file = parameters[raw.PARAMETER]
        self._inputs = [one["name"] for one in config["input"] if one["name"] != self._file]
        given = [one["name"] for one in config["output"]]
        added = [one.name for one in raw.interface(self._how, given).output]
        self._outputs = [name for name in given if name not in added]
        self._ranked = raw.LABELS in added
        self._largest = max(1, config["max_batch_size"])
        # Pillow refuses what has more than twice its limit. This process decodes nothing else.
        Image.MAX_IMAGE_PIXELS = int(parameters[raw.MAX_PIXELS_PARAMETER]) // 2
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        if isinstance(self._how, TextPreprocessing):
            words = (directory / "vocabulary.txt").read_text(encoding="utf-8-sig").split("\n")
            self._tokenizer = Tokenizer(words, self._how.split)
            size = about.model["dim"] // about.model["heads"]
            self._cache_shape = (1, about.model["depth"], about.model["heads"], 0, size)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order, with its outputs or with its own error."""
        several = self._pool is not None and len(requests) > 1
        read = self._pool.map(self._read, requests) if several and self._pool else None
        items = list(read if read is not None else map(self._read, requests))
        self._watch.prepared()
        readable = [item for item in items if isinstance(item, Item)]
        outcomes = iter(self._compute(readable))
        self._watch.computed()
        return [
            self._respond(request, next(outcomes) if isinstance(item, Item) else item)
            for request, item in zip(requests, items, strict=True)
        ]

    def _read(self, request: Any) -> Item | Arrays | Exception:
        """Return what a request brings, prepared; the answer where no batch helps; or its error."""
        try:
            return self._prepared(request)
        except Exception as error:
            if isinstance(error, UserError):
                return error
            return UserError(f"the {self._file} cannot be read: {type(error).__name__}: {error}")

    def _prepared(self, request: Any) -> Item | Arrays:
        k = _top_k(request)
        file = pb_utils.get_input_tensor_by_name(request, self._file)
        tensors = {
            name: tensor.as_numpy()
            for name in self._inputs
            if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
        }
        if len(tensors) != (len(self._inputs) if file is None else 0):
            takes = f"'{self._file}', or all of {', '.join(self._inputs)}"
            raise UserError(f"model '{self._name}' takes {takes}")
        if file is None:
            self._require_sizes(tensors)
            return Item(tensors, partial(self._of_graph, k))
        contents = [_content(one) for one in file.as_numpy().flat]
        if isinstance(self._how, IMAGES) and any(one.startswith(URL) for one in contents):
            return self._from_files([_from_url(one) for one in contents], k, as_urls=True)
        return self._from_files(contents, k)

    def _require_sizes(self, tensors: Arrays) -> None:
        sizes = self._how.sizes if isinstance(self._how, ImagePreprocessing) else None
        if sizes is None:
            return
        for name, array in tensors.items():
            if array.ndim == 4 and (why := sizes.refused(*array.shape[2:])):
                raise UserError(f"input {name} of model '{self._name}' does not fit", f"{why}.")

    def _from_files(self, files: Sequence[bytes], k: int, as_urls: bool = False) -> Item | Arrays:
        limit = LARGEST_IMAGE if isinstance(self._how, IMAGES) else LARGEST_TEXT
        for number, content in enumerate(files, 1):
            if len(content) > limit:
                raise UserError(f"{self._file} {number} has more than {limit >> 20} MiB")
        how = self._how
        if isinstance(how, TextPreprocessing):
            return self._likelihoods(files)
        if isinstance(how, SegmentationPreprocessing):
            cut = partial(read_and_cut, how=how, formats=FORMATS)
            images = _each(cut, files, self._file)
            pixels = np.concatenate([image.pixels for image in images])
            return Item({self._inputs[0]: pixels}, partial(self._masks, images, as_urls))
        one = partial(prepare_one, how=how, model=self._name, formats=FORMATS)
        rows = batched(_each(one, files, self._file), how)
        return Item({self._inputs[0]: rows}, partial(self._of_graph, k))

    def _compute(self, items: Sequence[Item]) -> list[Arrays | Exception]:
        """Return each item's answer: of one batch, or alone where that fails."""
        if len(items) > 1:
            try:
                return [self._finished(*pair) for pair in self._together(items)]
            except Exception as error:
                pb_utils.Logger.log_warn(f"the batch failed, running its requests alone: {error}")
        return [self._alone(item) for item in items]

    def _together(self, items: Sequence[Item]) -> list[tuple[Item, Sequence[Array]]]:
        feed = {name: self._joined([item.feed[name] for item in items]) for name in self._inputs}
        outputs = self._in_pieces(feed)
        sizes = [item.rows for item in items]
        if any(len(output) != sum(sizes) for output in outputs):
            raise ValueError("an output does not have one row per row of the input")
        ends = np.cumsum(sizes)[:-1]
        pieces = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return list(zip(items, pieces, strict=True))

    def _alone(self, item: Item) -> Arrays | Exception:
        try:
            return self._finished(item, self._in_pieces(item.feed))
        except Exception as error:
            return error

    def _finished(self, item: Item, outputs: Sequence[Array]) -> Arrays | Exception:
        try:
            self._count(outputs)
            return item.finish(outputs)
        except Exception as error:
            return error

    def _in_pieces(self, feed: Arrays) -> Sequence[Array]:
        """Run the graph on any number of rows, at most the largest batch at once."""
        rows, size = len(feed[self._inputs[0]]), self._largest
        if rows <= size:
            return self._run(feed, self._outputs)
        runs = [
            self._run({name: array[at : at + size] for name, array in feed.items()}, self._outputs)
            for at in range(0, rows, size)
        ]
        return [np.concatenate(pieces) for pieces in zip(*runs, strict=True)]

    def _joined(self, arrays: Sequence[Array]) -> Array:
        """Return one batch; token ids are padded to the longest, which changes no result."""
        if isinstance(self._how, BytesPreprocessing | ListOpsPreprocessing):
            longest = max(array.shape[-1] for array in arrays)
            arrays = [_padded(array, longest) for array in arrays]
        return np.concatenate(arrays)

    def _of_graph(self, k: int, outputs: Sequence[Array]) -> Arrays:
        """Return the graph's outputs and, of a classifier, the most probable classes."""
        answer = dict(zip(self._outputs, outputs, strict=True))
        if self._ranked:
            logits = answer.get("logits", outputs[0])
            probabilities = raw.probabilities_of(logits.reshape(len(logits), -1))
            indices = raw.best(probabilities, k)
            labels = [[self._label(index) for index in row] for row in indices]
            answer[raw.LABELS] = np.array(labels, dtype=object)
            best = np.take_along_axis(probabilities, indices, -1)
            answer[raw.PROBABILITIES] = best.astype(np.float32)
            answer[raw.INDICES] = indices
        return answer

    def _label(self, index: int) -> bytes:
        return (self._labels[index] if index < len(self._labels) else str(index)).encode()

    def _masks(self, images: Sequence[Windows], as_urls: bool, outputs: Sequence[Array]) -> Arrays:
        """Return a PNG of each image's size, whose palette indices are the classes."""
        ends = np.cumsum([len(image.pixels) for image in images])[:-1]
        pieces = np.split(outputs[0], ends)
        masks = [stitch(classes, image) for classes, image in zip(pieces, images, strict=True)]
        assert isinstance(self._how, SegmentationPreprocessing)
        pictures = [_png(mask, self._how.palette) for mask in masks]
        if as_urls:
            pictures = [b"data:image/png;base64," + base64.b64encode(one) for one in pictures]
        return {raw.MASK: np.array(pictures, dtype=object)[:, None]}

    def _likelihoods(self, texts: Sequence[bytes]) -> Arrays:
        if len(texts) != 1:
            raise UserError(f"{len(texts)} texts in a request", "Send one text a request.")
        try:
            tokens = self._tokenizer.encode(texts[0].decode())
        except UnicodeDecodeError as error:
            raise UserError(f"the text is not UTF-8: byte {error.start} does not fit") from error
        if not tokens:
            raise UserError("the text to score has no word")
        assert isinstance(self._how, TextPreprocessing)
        reader = Reader(self._step, self._cache_shape, self._how.context)
        likelihoods = score(reader, tokens, self._tokenizer.end)
        pairs = zip(tokens, [None, *tokens], strict=False)
        words = [self._tokenizer.piece(token, before).encode() for token, before in pairs]
        return {
            raw.WORDS: np.array([words], dtype=object),
            STEP_OUTPUTS[0]: np.array([likelihoods], dtype=np.float32),
        }

    def _step(self, *arrays: Array) -> Any:
        outputs = self._run(step_feed(arrays, self._inputs), STEP_OUTPUTS)
        self._count(outputs[:2])
        return outputs

    def _respond(self, request: Any, answer: Arrays | Exception) -> Any:
        if isinstance(answer, Exception):
            self._watch.answered(request, "error")
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer)))
        made = [answer[name] for name in self._outputs if name in answer]
        self._watch.answered(request, "ok", made)
        wanted = set(request.requested_output_names())
        tensors = [pb_utils.Tensor(name, answer[name]) for name in answer if name in wanted]
        return pb_utils.InferenceResponse(tensors)


def _each(read: Callable[[bytes], Any], files: Sequence[bytes], what: str) -> list[Any]:
    """Return what `read` makes of each file; of several, the error says which it is."""
    results = []
    for number, content in enumerate(files, 1):
        try:
            results.append(read(content))
        except Exception as error:
            if len(files) == 1:
                raise
            raise UserError(f"{what} {number} of {len(files)}: {error}") from error
    return results


def _content(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _from_url(content: bytes) -> bytes:
    """Return the bytes in a data URL, since JSON carries text only."""
    head, comma, body = content.partition(b",")
    if not head.startswith(URL) or not comma or not head.endswith(b";base64"):
        raise UserError("the image is not a base64 data URL", "Write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise UserError(f"the data URL is damaged: {error}") from error


def _padded(tokens: Array, longest: int) -> Array:
    widths = [(0, 0)] * (tokens.ndim - 1) + [(0, longest - tokens.shape[-1])]
    return np.pad(tokens, widths, constant_values=PADDING)


def _top_k(request: Any) -> int:
    """Return how many classes a request wants: its parameter `top_k`."""
    value = json.loads(request.parameters() or "{}").get("top_k", raw.DEFAULT_TOP_K)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"top_k {value!r}", "It must be a whole number.")
    return raw.check_top_k(value)


def _png(classes: Array, palette: Sequence[tuple[int, int, int]]) -> bytes:
    picture = Image.fromarray(classes)
    if palette:
        picture.putpalette([value for colour in palette for value in colour])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
