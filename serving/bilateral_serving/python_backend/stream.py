"""A language model as text in, words out: Triton's decoupled mode, many responses a request.

It lies beside `model.py`, which uses it for a model that config.pbtxt declares decoupled, together
with `vocabulary.txt` and `bilateral_text.py` (a copy of `bilateral_export/text.py`).

Requests run in threads, so that the streams of several clients advance side by side; one that its
client has left is dropped at its next word.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by the server
from bilateral_text import Reader, Sampling, Tokenizer, Word, generate, score

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array], Sequence[str]], Sequence[Array]]

# The graph's inputs and outputs, in the order of `bilateral_text.Step`.
INPUTS = ("tokens", "targets", "past_keys", "past_values")
OUTPUTS = ("log_likelihood", "log_probabilities", "keys", "values")
STREAMS = 8


class Streamer:
    """Answers requests with words.

    Args:
        run: Runs the graph.
        directory: The version's directory.
        metadata: The artifact's metadata, as JSON.
    """

    def __init__(self, run: Run, directory: Path, metadata: str) -> None:
        about = json.loads(metadata)
        model, text = about["model"], about["preprocessing"]
        words = (directory / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        self._tokenizer = Tokenizer(words, text["split"])
        self._context = int(text["context"])
        self._cache_shape = (1, model["depth"], model["heads"], 0, model["dim"] // model["heads"])
        self._run = run
        self._closing = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        # Daemons: a thread that waits for a server which is going away must not keep this process.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[Any]) -> None:
        """Start to answer; the responses follow on each request's own sender."""
        for request in requests:
            self._waiting.put((request, request.get_response_sender()))

    def close(self) -> None:
        """End the streams under way; Triton calls this when it has stopped waiting for them."""
        self._closing.set()

    def _work(self) -> None:
        while not self._closing.is_set():
            self._answer(*self._waiting.get())

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            for words in self._words(request):
                if self._closing.is_set() or sender.is_cancelled():
                    break
                sender.send(_response(words))
        except Exception as error:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _words(self, request: Any) -> Iterator[Sequence[Word]]:
        """The text's own words at once where none are to be generated, else new ones singly."""
        text = _texts(request, "text")[0]
        sampling = _sampling(request)
        tokens = self._tokenizer.encode(text)
        reader = Reader(self._step, self._cache_shape, self._context)
        if sampling.max_tokens:
            for word in generate(reader, self._tokenizer, tokens, sampling):
                yield [word]
            return
        if not tokens:
            raise ValueError("the text to score has no word")
        likelihoods = score(reader, tokens, self._tokenizer.end)
        before = [None, *tokens]
        yield [
            Word(token, self._tokenizer.piece(token, previous), likelihood)
            for token, previous, likelihood in zip(tokens, before, likelihoods, strict=False)
        ]

    def _step(self, *arrays: Array) -> tuple[Array, Array, Array, Array]:
        feed = dict(zip(INPUTS, arrays, strict=True))
        likelihood, probabilities, keys, values = self._run(feed, OUTPUTS)
        return likelihood, probabilities, keys, values


def _sampling(request: Any) -> Sampling:
    """The options a request carries; what it does not say has `Sampling`'s default."""
    options: dict[str, Any] = {}
    for name, kind in (
        ("max_tokens", int),
        ("temperature", float),
        ("top_k", int),
        ("top_p", float),
        ("seed", int),
    ):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            options[name] = kind(tensor.as_numpy().reshape(-1)[0])
    return Sampling(**options, stop=tuple(_texts(request, "stop")))


def _texts(request: Any, name: str) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    return [value.decode("utf-8") for value in tensor.as_numpy().reshape(-1)]


def _response(words: Sequence[Word]) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("text", np.array([w.text.encode() for w in words], dtype=object)),
            pb_utils.Tensor("token", np.array([w.token for w in words], dtype=np.int64)),
            pb_utils.Tensor(
                "log_likelihood", np.array([w.log_likelihood for w in words], dtype=np.float32)
            ),
        ]
    )
