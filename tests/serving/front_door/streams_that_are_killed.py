"""Clients in processes of their own that read an endless stream, to be killed."""

from __future__ import annotations

import itertools
import subprocess
import sys

from bilateral_serving import language

ENDLESS = language.sampling(max_tokens=10_000_000)

_WRITER = """
import sys
import threading
import grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    def messages():
        yield sys.stdin.buffer.read()
        threading.Event().wait()
    answers = call(messages())
    next(answers)
    print("word", flush=True)
    for answer in answers:
        pass
"""
_numbers = itertools.count()


def start_writers(url: str, count: int) -> list[subprocess.Popen[bytes]]:
    """Clients of the model "words"; `has_begun` waits for the first word of each."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    for writer in writers:
        message = language.to_request("words", "", f"mine {next(_numbers)}", "word", ENDLESS)
        assert writer.stdin is not None
        writer.stdin.write(message.SerializeToString())
        writer.stdin.close()
    return writers


def has_begun(writer: subprocess.Popen[bytes]) -> bool:
    """Wait for a client's first word; False if its stream ended without one."""
    assert writer.stdout is not None
    return writer.stdout.readline() == b"word\n"
