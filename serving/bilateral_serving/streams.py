"""Reading a stream of words over gRPC, for the synchronous and for the asyncio client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
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
        server.start_stream(lambda result, error: answers.put((result, error)))
        try:
            server.async_stream_infer(
                model,
                language.to_request(text, options),
                model_version=calls.version_text(version),
                enable_empty_final_response=True,
            )
            final = False
            while not final:
                try:
                    result, error = answers.get(timeout=deadline.left_s)
                except queue.Empty:
                    result, error = None, _late()
                if error is not None:
                    what = calls.named(model, version)
                    raise failures.explain(error, url, deadline, what) from error
                yield from language.words(result)
                final = language.is_final(result)
        finally:
            server.stop_stream(cancel_requests=True)


async def read_async(
    url: str, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
) -> AsyncIterator[Word]:
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
        try:
            while True:
                result: Any = None
                error: InferenceServerException | None = None
                try:
                    result, error = await asyncio.wait_for(stream.__anext__(), deadline.left_s)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError:
                    error = _late()
                except grpc.RpcError as broken:
                    error = get_error_grpc(broken)
                if error is not None:
                    what = calls.named(model, version)
                    raise failures.explain(error, url, deadline, what) from error
                for word in language.words(result):
                    yield word
        finally:
            stream.cancel()


def _late() -> InferenceServerException:
    return InferenceServerException("", status="StatusCode.DEADLINE_EXCEEDED")
