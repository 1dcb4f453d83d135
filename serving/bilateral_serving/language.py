"""What the clients share for language models served as streams of words. No network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_export.text import Sampling, Word, perplexity

__all__ = [
    "Sampling",
    "Score",
    "Word",
    "check_stream",
    "is_final",
    "sampling",
    "to_request",
    "words",
]


@dataclass(frozen=True)
class Score:
    """How probable a text is: each of its words, given those before it (natural logarithms)."""

    words: tuple[Word, ...]

    @property
    def log_likelihood(self) -> float:
        """Of the whole text."""
        return float(np.sum([word.log_likelihood for word in self.words]))

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood of a word."""
        return perplexity([word.log_likelihood for word in self.words])


def sampling(**options: Any) -> Sampling:
    """`Sampling`, refused here before anything is sent.

    Raises:
        UserError: An option is out of its range.
    """
    options["stop"] = tuple(options.get("stop", ()))
    try:
        return Sampling(**options)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_stream(config: Any) -> None:
    """Check that a model is served as a stream of words.

    Raises:
        UserError: It is not.
    """
    if not config.model_transaction_policy.decoupled:
        raise UserError(
            f"model '{config.name}' is not served as a stream of words",
            "Add a language model to the repository with --stream, under a name of its own.",
        )


def to_request(text: str, options: Sampling) -> list[InferInput]:
    """A text and the options as Triton's inputs; `max_tokens` 0 asks for the text's score."""
    arrays: dict[str, tuple[str, Array]] = {
        "text": ("BYTES", np.array([text.encode()], dtype=object)),
        "max_tokens": ("INT32", np.array([options.max_tokens], dtype=np.int32)),
        "temperature": ("FP32", np.array([options.temperature], dtype=np.float32)),
        "top_k": ("INT32", np.array([options.top_k], dtype=np.int32)),
        "top_p": ("FP32", np.array([options.top_p], dtype=np.float32)),
        "seed": ("INT64", np.array([options.seed], dtype=np.int64)),
    }
    if options.stop:
        stop = np.array([text.encode() for text in options.stop], dtype=object)
        arrays["stop"] = ("BYTES", stop)
    inputs = []
    for name, (kind, array) in arrays.items():
        tensor = InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def words(result: Any) -> list[Word]:
    """The words of one response; none for the empty one that ends a stream."""
    tokens = result.as_numpy("token")
    if tokens is None:
        return []
    texts, likelihoods = result.as_numpy("text"), result.as_numpy("log_likelihood")
    return [
        Word(int(token), text.decode(), float(likelihood))
        for token, text, likelihood in zip(tokens, texts, likelihoods, strict=True)
    ]


def is_final(result: Any) -> bool:
    """Whether a response is a request's last."""
    parameters = result.get_response().parameters
    return bool(parameters["triton_final_response"].bool_param)
