"""Requests to and responses of language models served as streams of words, without network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.text import Sampling, Word, perplexity
from bilateral_serving.values import check_finite, utf8

__all__ = [
    "SCORING",
    "Sampling",
    "Score",
    "Word",
    "check_stream",
    "is_final",
    "sampling",
    "to_leave",
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


# No new word, but the likelihoods of the given ones.
SCORING = Sampling(max_tokens=0)


def sampling(**options: Any) -> Sampling:
    """Return `Sampling` of at least one word, refused here before anything is sent.

    Raises:
        UserError: An option is out of its range, or not UTF-8.
    """
    options["stop"] = tuple(options.get("stop", ()))
    for stop in options["stop"]:
        utf8("stop", stop)
    try:
        found = Sampling(**options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not found.max_tokens:
        raise UserError("max_tokens 0: it must be at least 1; a text is scored with score")
    return found


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


def to_request(
    model: str, version: str, name: str, text: str, options: Sampling
) -> pb.ModelInferRequest:
    """Return the request `name` for a text and options; `SCORING` asks for the text's score.

    Raises:
        UserError: The text is not UTF-8.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True

    def give(tensor: str, datatype: str, **contents: Sequence[Any]) -> None:
        size = len(next(iter(contents.values())))
        request.inputs.add(name=tensor, datatype=datatype, shape=[size], contents=contents)

    give("text", "BYTES", bytes_contents=[utf8("text", text)])
    give("max_tokens", "INT32", int_contents=[options.max_tokens])
    give("temperature", "FP32", fp32_contents=[options.temperature])
    give("top_k", "INT32", int_contents=[options.top_k])
    give("top_p", "FP32", fp32_contents=[options.top_p])
    give("seed", "INT64", int64_contents=[options.seed])
    if options.stop:
        give("stop", "BYTES", bytes_contents=[utf8("stop", stop) for stop in options.stop])
    return request


def to_leave(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """Return the message that ends a request's stream early, see `python_backend/stream.py`.

    It has no text to score either: a model that does not know the message refuses it.
    """
    message = to_request(request.model_name, request.model_version, "", "", SCORING)
    message.parameters["leave"].string_param = request.id
    return message


def words(what: str, result: Any) -> list[Word]:
    """Return the words of one response; none for the empty one that ends a stream.

    Raises:
        UserError: A likelihood is NaN or infinite; it names the model as `what`.
    """
    tokens = result.as_numpy("token")
    if tokens is None:
        return []
    texts, likelihoods = result.as_numpy("text"), result.as_numpy("log_likelihood")
    check_finite(what, {"log_likelihood": likelihoods})
    return [
        Word(int(token), text.decode(), float(likelihood))
        for token, text, likelihood in zip(tokens, texts, likelihoods, strict=True)
    ]


def is_final(result: Any) -> bool:
    """Return whether a response is a request's last."""
    parameters = result.get_response().parameters
    return bool(parameters["triton_final_response"].bool_param)
