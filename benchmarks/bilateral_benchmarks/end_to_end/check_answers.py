"""Answers of served models to real inputs of every family, compared with PyTorch's."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.preprocessing import (
    BytesPreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.tasks import listops, pathfinder
from bilateral_export.text import Reader, Sampling, Tokenizer, generate, score
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.files import prepare
from bilateral_serving.client.inputs.images import read_image
from bilateral_serving.client.inputs.segmentation import cut, shares, stitch

SEED = 0
SAMPLING: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_k": 40, "seed": 3}
# Of pixels and words: what rounding may turn.
AGREEMENT = 0.999


class Answer(BaseModel):
    """What a served model said.

    Attributes:
        asked: The input.
        said: The first answer, for the eye.
        agreement: Share of the decisions (classes in order, pixels, words) that are PyTorch's.
        difference: Largest difference of a probability or log-likelihood; None where none is given.
    """

    model_config = ConfigDict(frozen=True)

    asked: str
    said: str
    agreement: float
    difference: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the decisions are PyTorch's, but for what rounding may turn."""
        return self.agreement >= AGREEMENT


def check_answers(
    client: Client, name: str, checkpoint: Checkpoint, checkpoints: Path
) -> tuple[Answer, ...]:
    """Ask a served model what its family is for, and compare its answers with PyTorch's.

    Args:
        client: Connected to the server.
        name: The served model; a language model's stream is `streamed(name)`.
        checkpoint: Its weights, for PyTorch.
        checkpoints: Directory of the held-out inputs.
    """
    if checkpoint.card.model.generative:
        text = (checkpoints / "pydoc_heldout.txt").read_text(encoding="utf-8")
        return _scored(client, name, checkpoint, text), _written(client, name, checkpoint, text)
    if checkpoint.build_model().decides:
        sizes = ((512, 512), (800, 600))
        return tuple(_segmented(client, name, checkpoint, size) for size in sizes)
    asked, inputs = _inputs(name, checkpoint, checkpoints)
    return (_classified(client, name, checkpoint, asked, inputs),)


def streamed(name: str) -> str:
    """Under which a language model is served as a stream of words."""
    return f"{name}-words"


def picture(seed: int, size: tuple[int, int] = (640, 480)) -> bytes:
    """Return a JPEG file of smooth random colours, width by height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def _inputs(name: str, checkpoint: Checkpoint, checkpoints: Path) -> tuple[str, list[bytes]]:
    how = checkpoint.card.preprocessing
    random = np.random.default_rng(SEED)
    if name.startswith("digits"):
        files = sorted((checkpoints / "digits").glob("*.png"))
        return f"{len(files)} held-out PNG files", [file.read_bytes() for file in files]
    if name == "listops_bilateral":
        lines = (checkpoints / "listops_heldout.tsv").read_text().splitlines()
        return f"{len(lines)} held-out expressions", [
            line.split("\t")[0].encode() for line in lines
        ]
    if isinstance(how, ListOpsPreprocessing):
        drawn = [listops.generate(listops.ListOpsConfig(), random)[0] for _ in range(3)]
        lengths = " and ".join(str(len(symbols)) for symbols in drawn)
        return f"expressions of {lengths} symbols", [" ".join(one).encode() for one in drawn]
    if isinstance(how, BytesPreprocessing):
        text = (checkpoints / "pydoc_heldout.txt").read_bytes()
        pieces = [text[: how.length], text[-1000:], text[:64], text[-how.length :]]
        sizes = " and ".join(str(len(piece)) for piece in pieces)
        return f"texts of {sizes} bytes", pieces
    if isinstance(how, PixelsPreprocessing) and name.endswith("pathfinder"):
        images = [pathfinder.generate(pathfinder.PathfinderConfig(), random)[0] for _ in range(4)]
        return "4 PNG images of paths", [_png(image) for image in images]
    return "4 JPEG images of 640 x 480", [picture(seed) for seed in range(4)]


def _png(image: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _classified(
    client: Client, name: str, checkpoint: Checkpoint, asked: str, inputs: list[bytes]
) -> Answer:
    """Return the answer on the five most probable classes of each input, in their order."""
    how = checkpoint.card.preprocessing
    assert how is not None
    k = min(5, len(checkpoint.card.labels))
    served = client.classify(name, inputs, k=k)
    with torch.inference_mode():
        logits = checkpoint.build_model()(torch.from_numpy(prepare(inputs, how, name)))
        wanted = logits.softmax(-1).topk(k)
    same, differences = [], []
    for answer, indices, probabilities in zip(served, wanted.indices, wanted.values, strict=True):
        same.append([one.index for one in answer] == indices.tolist())
        got = np.array([one.probability for one in answer])
        differences.append(np.abs(got - probabilities.numpy()).max())
    best = served[0][0]
    return Answer(
        asked=asked,
        said=f"{best.label} ({best.probability:.1%})",
        agreement=float(np.mean(same)),
        difference=float(max(differences)),
    )


def _segmented(client: Client, name: str, checkpoint: Checkpoint, size: tuple[int, int]) -> Answer:
    """Return the answer on the class of every pixel, the image cut into windows."""
    how = checkpoint.card.preprocessing
    assert isinstance(how, SegmentationPreprocessing)
    image = picture(SEED, size)
    (served,) = client.segment(name, [image])
    windows = cut(read_image(image), how)
    model = checkpoint.build_model()
    with torch.inference_mode():
        pieces = [model(torch.from_numpy(one[None]))[0].numpy() for one in windows.pixels]
    label, share = shares(served)[0]
    count = len(windows.corners)
    return Answer(
        asked=f"JPEG of {size[0]} x {size[1]}, {count} window{'s' * (count > 1)}",
        said=f"{served.dtype} [{served.shape[0]}, {served.shape[1]}],"
        f" {checkpoint.card.labels[label]} ({share:.1%})",
        agreement=float((served == stitch(pieces, windows)).mean()),
    )


def _scored(client: Client, name: str, checkpoint: Checkpoint, text: str) -> Answer:
    """Score a text longer than the context; return the answer."""
    tokenizer = _tokenizer(checkpoint)
    tokens = tokenizer.encode(text)
    served = client.score(streamed(name), text)
    wanted = score(_reader(checkpoint), tokens, tokenizer.end)
    got = [word.log_likelihood for word in served.words]
    return Answer(
        asked=f"score {len(got)} words",
        said=f"perplexity {served.perplexity:.2f}",
        agreement=float(
            np.mean([w.token for w in served.words] == np.array(tokenizer.encode(text)))
        ),
        difference=float(np.abs(np.subtract(got, wanted)).max()),
    )


def _written(client: Client, name: str, checkpoint: Checkpoint, text: str) -> Answer:
    """Generate words with the cache; return the answer, against PyTorch without one."""
    tokenizer = _tokenizer(checkpoint)
    prompt = " ".join(text.split()[:6])
    served = list(client.generate(streamed(name), prompt, **SAMPLING))
    reader = _reader(checkpoint, use_cache=False)
    wanted = list(generate(reader, tokenizer, tokenizer.encode(prompt), Sampling(**SAMPLING)))
    return Answer(
        asked=f"generate {len(wanted)} words after {prompt!r}",
        said="".join(word.text for word in served).strip(),
        agreement=float(np.mean([a.token == b.token for a, b in zip(served, wanted, strict=True)])),
        difference=max(
            abs(a.log_likelihood - b.log_likelihood) for a, b in zip(served, wanted, strict=True)
        ),
    )


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    how = checkpoint.card.preprocessing
    assert isinstance(how, TextPreprocessing)
    return Tokenizer(how.vocabulary, how.split)


def _reader(checkpoint: Checkpoint, use_cache: bool = True) -> Reader:
    config = checkpoint.card.model
    assert isinstance(config, LanguageModelConfig)
    model: Callable[..., Any] = checkpoint.build_model()

    def step(*arrays: Any) -> Any:
        with torch.inference_mode():
            return tuple(result.numpy() for result in model(*map(torch.from_numpy, arrays)))

    shape = (1, config.depth, config.heads, 0, config.dim // config.heads)
    return Reader(step, shape, config.context, use_cache)
