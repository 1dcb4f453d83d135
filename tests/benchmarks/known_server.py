"""A gRPC server whose latency is known: it speaks ModelInfer and holds each answer back.

Run as a program: `known_server.py SERVICE_S DISTRIBUTION STALL_S SEED` prints its port when it
listens. DISTRIBUTION is "constant", "exponential" (mean SERVICE_S), or "queue": constant, and one
request at a time. With STALL_S, nothing is answered during the first STALL_S seconds of every
second of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2


@contextlib.contextmanager
def known_server(
    service_s: float = 0.0, distribution: str = "constant", stall_s: float = 0.0
) -> Iterator[str]:
    """Start the server in a process of its own; yields its "host:port"."""
    command = [sys.executable, __file__, str(service_s), distribution, str(stall_s), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, service_s: float, distribution: str, stall_s: float, seed: int) -> None:
        self.service_s = service_s
        self.exponential = distribution == "exponential"
        self.queue = distribution == "queue"
        self.free = 0.0
        self.stall_s = stall_s
        self.random = random.Random(seed)
        self.answer = service_pb2.ModelInferResponse(model_name="known").SerializeToString()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.infer)

    async def infer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        ready = time.monotonic()
        if self.stall_s and (phase := ready - math.floor(ready)) < self.stall_s:
            ready += self.stall_s - phase
        if self.queue:
            ready = max(ready, self.free)
            self.free = ready + self.service_s
        ready += self.random.expovariate(1 / self.service_s) if self.exponential else self.service_s
        await asyncio.sleep(max(0.0, ready - time.monotonic()))
        return self.answer


async def _serve(handler: _Handler) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    service_s, distribution, stall_s, seed = sys.argv[1:]
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())  # waits shorter than 1 ms
    handler = _Handler(float(service_s), distribution, float(stall_s), int(seed))
    loop.run_until_complete(_serve(handler))
