"""Files to a classifier's input, as the model's metadata says: images, texts, expressions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.preprocessing import (
    PADDING,
    BytesPreprocessing,
    ImagePreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
)
from bilateral_export.tasks import listops
from bilateral_export.tensors import Array
from bilateral_serving.client.inputs.images import preprocess, read_image

Source = Path | bytes


def prepare(inputs: Sequence[Source], how: Preprocessing, model: str) -> Array:
    """Read inputs and make one batch of them.

    Texts and expressions of different lengths are padded to the longest, which changes no result.

    Args:
        inputs: Files, or their content; for a model that compares two documents, one pair after
            the other.
        how: The model's preprocessing.
        model: The model's name, for messages.

    Returns:
        float32 `[B, C, H, W]` for images; int64 `[B, N]` or `[B, 2, N]` for tokens.

    Raises:
        UserError: There is no input, one cannot be read, or it is not what the model takes.
    """
    check_count(inputs, how, model)
    return batched([prepare_one(one, how, model) for one in inputs], how)


def check_count(inputs: Sequence[Source], how: Preprocessing, model: str) -> None:
    """Refuse no inputs, and half a pair of documents; see `prepare`.

    Raises:
        UserError: There is no input, or one is left over.
    """
    if not inputs:
        raise UserError("no input to classify", "Give at least one file.")
    if documents(how) == 2 and len(inputs) % 2:
        raise UserError(
            f"model '{model}' compares two documents and was given {len(inputs)}",
            "Give them in pairs.",
        )


def documents(how: Preprocessing) -> int:
    """Return how many files make one item of a model's batch."""
    return how.documents if isinstance(how, BytesPreprocessing) else 1


def batched(arrays: Sequence[Array], how: Preprocessing) -> Array:
    """Make one batch of inputs that `prepare_one` returned; see `prepare`."""
    if isinstance(how, ImagePreprocessing | PixelsPreprocessing):
        return np.stack(arrays)
    rows = _padded(arrays)
    return rows if documents(how) == 1 else rows.reshape(len(rows) // 2, 2, -1)


def prepare_one(
    source: Source, how: Preprocessing, model: str, formats: tuple[str, ...] | None = None
) -> Array:
    """Read one input; see `prepare`, and for `formats` `read_image`.

    Returns:
        float32 `[C, H, W]` for an image; int64 `[N]` for tokens.

    Raises:
        UserError: It cannot be read, or is not what the model takes.
    """
    match how:
        case ImagePreprocessing():
            return preprocess(read_image(source, formats), how)
        case PixelsPreprocessing():
            return pixels(read_image(source, formats), how)
        case ListOpsPreprocessing():
            return expression(source, how.length)
        case BytesPreprocessing():
            return text_bytes(source, how.length)
    raise UserError(
        f"model '{model}' is not a classifier: it takes {how.kind}",
        "For a language model use generate or score, for a segmenter segment.",
    )


def pixels(image: Image.Image, how: PixelsPreprocessing) -> NDArray[np.int64]:
    """Return grey levels 0..255 of the image's centre, row by row."""
    as_image = ImagePreprocessing(
        height=how.height,
        width=how.width,
        channels=1,
        resize=min(how.height, how.width),
        interpolation="bilinear",
        mean=(0.0,),
        std=(1 / 255,),
    )
    return np.rint(preprocess(image, as_image)).astype(np.int64).reshape(-1)


def text_bytes(source: Source, length: int) -> NDArray[np.int64]:
    """Return byte + 1 of a UTF-8 text, at most `length` of them.

    Markup, and the commas and quotes of a CSV file, are text like any other: the model reads them.

    Raises:
        UserError: The text is empty or not UTF-8.
    """
    content = _text(source, "text").encode()
    return np.frombuffer(content[:length], np.uint8).astype(np.int64) + 1


def expression(source: Source, length: int) -> NDArray[np.int64]:
    """Return token ids of a ListOps expression.

    Raises:
        UserError: It has an unknown symbol, is not closed, or is too long.
    """
    name = "the expression" if isinstance(source, bytes) else str(source)
    try:
        symbols = listops.parse(_text(source, "expression"))
        if len(symbols) > length:
            raise UserError(
                f"{name} has {len(symbols)} symbols", f"The model takes up to {length}."
            )
        listops.evaluate(symbols)  # a model gives any list of symbols a value
    except ValueError as error:
        raise UserError(
            f"{name} is not a ListOps expression: {error}",
            "It reads such as [MAX 2 [MIN 4 7 ] 0 ].",
        ) from error
    return listops.encode(symbols)


def _padded(rows: Sequence[Array]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows))), PADDING, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _text(source: Source, what: str) -> str:
    """Return a UTF-8 text without its byte-order mark, which an editor may have put before it."""
    name = f"the {what}" if isinstance(source, bytes) else f"{what} {source}"
    content = source if isinstance(source, bytes) else require_file(source, what).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text: byte {error.start} does not fit", "Convert it first."
        ) from error
    if not text:
        raise UserError(f"{name} is empty", "Give at least one character.")
    return text


def read_text(path: Path) -> str:
    """Return a UTF-8 text file's content, without a byte-order mark.

    Raises:
        UserError: The file is missing, empty or not UTF-8.
    """
    return _text(path, "text").replace("\r\n", "\n").replace("\r", "\n")
