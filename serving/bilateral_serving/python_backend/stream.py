"""A language model as text in, words out: Triton's decoupled mode, many responses a request.

It lies beside `model.py`, which uses it for a model that config.pbtxt declares decoupled, together
with `vocabulary.txt` and `bilateral_text.py` (`bilateral_export/text.py`, copied).

Streams of new words advance together (`stream_together.py`) and share messages
(`stream_sending.py`). A text to be scored is read in a thread, alone, and so is every stream of a
file that was exported before texts of different lengths could be rows of one batch. A client leaves
a stream by a second request on it, whose parameter `leave` is the id of the first: the stream then
ends at its next word. The second request has no answer, and has to come to the same process: such a
model has one instance. A client that cancels instead stops the work as well, but Triton can die of
that (serving/README.md).
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by the server
from bilateral_text import (
    ALIGNED_INPUTS,
    STEP_INPUTS,
    STEP_OUTPUTS,
    Generation,
    Reader,
    Sampling,
    Tokenizer,
    Word,
    generate,
    score,
    step_feed,
)
from stream_batch import Batch
from stream_sending import Sending
from stream_together import Together

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array], Sequence[str]], Sequence[Array]]
Count = Callable[[Sequence[Array]], None]

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Stream:
    """A request for words, which waits for a thread and may be left at any time."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.id: str = request.request_id()
        self.sender = request.get_response_sender()
        self.left = False
        self._asked = 0
        self._begun = False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Whether it is to be answered; False if it was left, and ended, while it waited."""
        with self._lock:
            self._begun = True
            return not self.left

    def is_cancelled(self) -> bool:
        """Whether its client cancelled it; asked at every eighth word, since Triton must answer."""
        self._asked += 1
        return self._asked % 8 == 0 and bool(self.sender.is_cancelled())

    def leave(self) -> None:
        """End it: at once if it still waits, else its thread does at the next word."""
        with self._lock:
            waits = not (self._begun or self.left)
            self.left = True
        if waits:
            self.sender.send(flags=FINAL)


class LeftError(Exception):
    """The stream has no reader any more."""


class Streamer:
    """Answers requests with words.

    Args:
        run: Runs the graph.
        directory: The version's directory.
        metadata: The artifact's metadata, as JSON.
        count: Counts outputs of the graph that are not finite.
        streams: How many advance at once; further ones wait.
    """

    def __init__(
        self, run: Run, directory: Path, metadata: str, count: Count, streams: int
    ) -> None:
        about = json.loads(metadata)
        model, text = about["model"], about["preprocessing"]
        words = (directory / "vocabulary.txt").read_text(encoding="utf-8-sig").split("\n")
        self._tokenizer = Tokenizer(words, text["split"])
        self._context = int(text["context"])
        self._cache_shape = (1, model["depth"], model["heads"], 0, model["dim"] // model["heads"])
        self._run, self._count = run, count
        self._closing = threading.Event()
        self._waiting: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._sending: Sending[Stream] = Sending(_send, _finish)
        self._together: Together[Stream] | None = None
        work = [self._work] * streams
        if self._takes_starts():
            batch = Batch(self._step, self._cache_shape, self._context)
            self._together = Together(
                batch,
                streams,
                self._context,
                self._begin,
                self._is_left,
                self._sending.word,
                self._end,
            )
            work += [self._advance, self._sending.run]
        # Daemons: a thread that waits for a server which is going away must not keep this process.
        for task in work:
            threading.Thread(target=task, daemon=True).start()

    def submit(self, requests: Sequence[Any]) -> None:
        """Start to answer; the responses follow on each request's own sender."""
        for request in requests:
            left = json.loads(request.parameters() or "{}").get("leave")
            if left is None:
                self._start(Stream(request))
            else:
                self._leave(left)
                request.get_response_sender().send(flags=FINAL)

    def close(self) -> None:
        """End the streams under way; Triton calls this when it has stopped waiting for them."""
        self._closing.set()

    def _start(self, stream: Stream) -> None:
        with self._lock:
            if stream.id:
                self._streams[stream.id] = stream
        if self._together is None or _scores(stream.request):
            self._waiting.put(stream)
        else:
            self._together.put(stream)

    def _leave(self, name: str) -> None:
        with self._lock:
            stream = self._streams.get(name)
        if stream is not None:  # it has not ended
            stream.leave()

    def _work(self) -> None:
        while not self._closing.is_set():
            stream = self._waiting.get()
            if stream.begin():
                self._answer(stream)
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        with self._lock:
            self._streams.pop(stream.id, None)

    def _advance(self) -> None:
        assert self._together is not None
        while not self._closing.is_set():
            self._together.advance()

    def _begin(self, stream: Stream) -> Generation | None:
        if not stream.begin():
            self._forget(stream)
            return None
        prompt = self._tokenizer.encode(_text(stream.request))
        return Generation(self._tokenizer, prompt, _sampling(stream.request))

    def _end(self, stream: Stream, failure: Exception | None) -> None:
        self._sending.end(stream, failure)
        self._forget(stream)

    def _answer(self, stream: Stream) -> None:
        try:
            for words in self._words(stream):
                stream.sender.send(_response(words))
        except LeftError:
            pass
        except Exception as error:
            stream.sender.send(_failure(error))
        stream.sender.send(flags=FINAL)

    def _words(self, stream: Stream) -> Iterator[Sequence[Word]]:
        """The text's own words at once where none are to be generated, else new ones singly."""
        request = stream.request
        text = _text(request)
        sampling = _sampling(request)
        tokens = self._tokenizer.encode(text)
        reader = Reader(partial(self._step_of, stream), self._cache_shape, self._context)
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

    def _step_of(self, stream: Stream, *arrays: Array) -> tuple[Array, Array, Array, Array]:
        inputs = STEP_INPUTS if self._together is None else ALIGNED_INPUTS
        outputs = self._outputs(step_feed(arrays, inputs))
        if self._is_left(stream):
            raise LeftError
        return outputs

    def _step(self, *arrays: Array) -> tuple[Array, Array, Array, Array]:
        return self._outputs(dict(zip(ALIGNED_INPUTS, arrays, strict=True)))

    def _outputs(self, feed: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
        likelihood, probabilities, keys, values = self._run(feed, STEP_OUTPUTS)
        # The keys and values are large, and what is wrong with them shows in the next word. A sum
        # is not finite where one of its terms is not, and takes half the time.
        self._count((likelihood, probabilities.sum(axis=-1)))
        return likelihood, probabilities, keys, values

    def _is_left(self, stream: Stream) -> bool:
        return stream.left or self._closing.is_set() or stream.is_cancelled()

    def _takes_starts(self) -> bool:
        """Whether the file takes rows of different lengths: older ones do not."""
        one, past = np.zeros((1, 1), np.int64), np.zeros(self._cache_shape, np.float32)
        try:
            self._run(step_feed((one, one, past, past), ALIGNED_INPUTS), STEP_OUTPUTS)
        except Exception:
            return False
        return True


def _scores(request: Any) -> bool:
    """Whether a request wants the likelihoods of its own words, and no new ones."""
    tensor = pb_utils.get_input_tensor_by_name(request, "max_tokens")
    return tensor is not None and int(tensor.as_numpy().reshape(-1)[0]) == 0


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))


def _send(stream: Stream, words: Sequence[Word]) -> None:
    stream.sender.send(_response(words))


def _finish(stream: Stream, failure: Exception | None) -> None:
    if failure is not None:
        stream.sender.send(_failure(failure))
    stream.sender.send(flags=FINAL)


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


def _text(request: Any) -> str:
    texts = _texts(request, "text")
    if len(texts) != 1:
        raise ValueError(f"a request has one 'text', and this one {len(texts)}")
    return texts[0]


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
