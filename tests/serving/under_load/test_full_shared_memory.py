"""/dev/shm full, under load: what needs no more of it is answered, the rest is refused at once."""

from __future__ import annotations

import os
import signal

import grpc
import numpy as np
from tests.serving.front_door.door import OWN_CONNECTION, request
from tests.serving.under_load.confined import Confined, filled
from tests.serving.under_load.steady_caller import SteadyCaller
from tritonclient.grpc import service_pb2_grpc

ANY_SIZE = [*OWN_CONNECTION, ("grpc.max_receive_message_length", -1)]


def ask_for_32_megabytes(confined: Confined) -> str:
    """ "" for the right answer, else the error."""
    with grpc.insecure_channel(confined.url, options=ANY_SIZE) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        x = np.ones((8, 1), np.float32)
        try:
            answer = stub.ModelInfer(request("wide", x=x), timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    assert answer.raw_output_contents[0] == np.ones(8 << 20, np.float32).tobytes()
    return ""


def test_a_large_answer_is_refused_with_the_reason_until_there_is_room(
    confined: Confined, caller: SteadyCaller
) -> None:
    with filled(confined.shared_memory):
        problem = ask_for_32_megabytes(confined)
        assert "No space left on device" in problem
        caller.wait_for(50)
    assert ask_for_32_megabytes(confined) == ""
    account = caller.finish()
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []


def test_a_restart_takes_the_room_of_the_server_that_died(
    confined: Confined, caller: SteadyCaller
) -> None:
    with filled(confined.shared_memory):
        os.kill(confined.server.server(), signal.SIGKILL)
        print(confined.server.wait_for("event"))
        caller.wait_for(5)
    account = caller.finish()
    print(account)
    assert (account.wrong, account.failed) == (0, [])
