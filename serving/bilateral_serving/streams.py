"""Reading a stream of words over gRPC, for the synchronous and for the asyncio client.

Only a stream that is left early is cancelled, and only if it does not end by itself in a moment: a
request whose cancellation meets its last response is never released by Triton (2.51), which then
cannot unload the model when it is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc._utils import get_error_grpc
from tritonclient.utils import InferenceServerException

from bilateral_serving import calls, failures, language
from bilateral_serving.deadline import Deadline
from bilateral_serving.language import Sampling, Word

Answer = tuple[Any, InferenceServerException | None]
_MOMENT_S = 0.1


def read(
    url: str, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
) -> Iterator[Word]:
    """Ask a model for words and yield each as it comes; closing the iterator cancels the request.

    Raises:
        UserError: The server's error, or that the deadline has passed.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    # A connection has one stream at most: each call opens its own.
    with triton.InferenceServerClient(url) as server:
        server.start_stream(
            lambda result, error: answers.put((result, error)), stream_timeout=deadline.left_s
        )
        ended = False
        try:
            server.async_stream_infer(
                model,
                language.to_request(text, options),
                model_version=calls.version_text(version),
                enable_empty_final_response=True,
            )
            while not ended:
                try:
                    result, error = answers.get(timeout=deadline.left_s)
                    ended = error is not None or language.is_final(result)
                except queue.Empty:
                    result, error = None, _late()
                if error is not None:
                    what = calls.named(model, version)
                    raise failures.explain(error, url, deadline, what) from error
                yield from language.words(result)
        finally:
            # Uncancelled, this waits until the server has ended the stream, or for the deadline.
            server.stop_stream(cancel_requests=not (ended or _is_ending(answers)))


def _is_ending(answers: queue.SimpleQueue[Answer]) -> bool:
    """Whether the last response comes within a moment."""
    end = time.monotonic() + _MOMENT_S
    with contextlib.suppress(queue.Empty):
        while (left := end - time.monotonic()) > 0:
            result, error = answers.get(timeout=left)
            if error is not None or language.is_final(result):
                return True
    return False


async def read_async(
    url: str, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
) -> AsyncGenerator[Word, None]:
    """The same for asyncio."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": model,
            "inputs": language.to_request(text, options),
            "model_version": calls.version_text(version),
        }

    async with triton_aio.InferenceServerClient(url) as server:
        # The one request sent, this side of the stream closes, and the server's after its answers.
        stream = server.stream_infer(requests())
        failure: InferenceServerException | None = None
        try:
            while True:
                try:
                    result, error = await asyncio.wait_for(stream.__anext__(), deadline.left_s)
                except StopAsyncIteration:
                    break
                except asyncio.TimeoutError:
                    failure = failure or _late()
                    break
                except grpc.RpcError as broken:
                    failure = failure or get_error_grpc(broken)
                    break
                failure = failure or error
                if failure is None:
                    for word in language.words(result):
                        yield word
            if failure is not None:
                what = calls.named(model, version)
                raise failures.explain(failure, url, deadline, what) from failure
        finally:
            with contextlib.suppress(asyncio.TimeoutError, grpc.RpcError):
                await asyncio.wait_for(_read_rest(stream), _MOMENT_S)
            stream.cancel()


async def _read_rest(stream: Any) -> None:
    async for _ in stream:
        pass


def _late() -> InferenceServerException:
    return InferenceServerException("", status="StatusCode.DEADLINE_EXCEEDED")
