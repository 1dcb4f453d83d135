"""A well-behaved caller that asks all the time, and checks every answer bit by bit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np
from tests.serving.front_door.door import OWN_CONNECTION, request
from tritonclient.grpc import service_pb2_grpc

# The bound of "is answered or fails in bounded time"; far above what anything here takes.
PATIENCE_S = 90.0
GAIN = 8


@dataclass
class Account:
    """What became of a caller's requests.

    Attributes:
        answered: Requests with the right answer.
        wrong: Answers that were not what the model computes.
        failed: Errors that a caller got instead, by text.
        longest_s: The longest that an answer, or an error, was waited for.
    """

    answered: int = 0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.answered} answered, {len(self.failed)} failed, {self.wrong} wrong,"
            f" longest wait {self.longest_s:.2f} s"
            + "".join(f"; {count} x {text}" for text, count in Counter(self.failed).items())
        )


class SteadyCaller(threading.Thread):
    """Asks `quadrants` of a server for random images, one after the other.

    Args:
        url: "host:port" of gRPC.
        pause_s: Between an answer and the next question.
    """

    def __init__(self, url: str, pause_s: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.account = Account()
        self._url, self._pause_s = url, pause_s
        self._over = threading.Event()

    def run(self) -> None:
        chance, account = np.random.default_rng(0), self.account
        with grpc.insecure_channel(self._url, options=OWN_CONNECTION) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._over.wait(self._pause_s):
                image = chance.random((1, 1, 2, 2), dtype=np.float32)
                began = time.monotonic()
                try:
                    answer = stub.ModelInfer(
                        request("quadrants", pixel_values=image), timeout=PATIENCE_S
                    )
                except grpc.RpcError as error:
                    account.failed.append(f"{error.code().name}: {error.details()}")
                    self._over.wait(0.05)
                else:
                    if answer.raw_output_contents[0] == (GAIN * image).tobytes():
                        account.answered += 1
                    else:
                        account.wrong += 1
                account.longest_s = max(account.longest_s, time.monotonic() - began)

    def wait_for(self, more: int) -> None:
        """Return when so many more requests were answered."""
        end, wanted = time.monotonic() + PATIENCE_S, self.account.answered + more
        while self.account.answered < wanted:
            assert time.monotonic() < end, self.account
            time.sleep(0.005)

    def finish(self) -> Account:
        """Wait for one more answer, stop, and return what became of all requests."""
        if self.is_alive() and not self._over.is_set():
            self.wait_for(2)  # the second was asked for after this call
        self._over.set()
        self.join(PATIENCE_S)
        return self.account
