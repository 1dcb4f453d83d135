"""Clients in forked processes: they work, or say in one line why they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.serving.client.test_region_ownership import is_right, request
from tests.serving.client.test_shared_memory import registered
from torch.utils.data import DataLoader, Dataset

from bilateral_export.errors import UserError
from bilateral_serving.client import Client, connection
from bilateral_serving.server import RunningServer

pytestmark = [
    pytest.mark.forks,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def in_child(work: Callable[[], object], leave: Callable[[int], object] = os._exit) -> str:
    """What `work` returns or raises in a forked child, as text."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        leave(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as answer:
        said = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


class Answers(Dataset[torch.Tensor]):
    def __init__(self, client: Client) -> None:
        self.client = client

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        inputs = request(index)
        return torch.from_numpy(self.client.infer("slow_sum", inputs)["sum"].copy())


def test_workers_of_a_data_loader(server: RunningServer) -> None:
    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
        loader = DataLoader(
            Answers(client), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        for _ in range(2):
            for index, row in enumerate(loader):
                assert is_right({"sum": row.numpy()}, request(index))


def test_a_child_that_ends_leaves_its_parent_s_memory_alone(server: RunningServer) -> None:
    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
        before = set(registered(server))
        assert in_child(client.close) == "None"
        script = textwrap.dedent(
            f"""
            import os, sys
            sys.path[:0] = {sys.path!r}
            from tests.serving.client.test_region_ownership import is_right, request
            from tests.serving.client.test_shared_memory import registered
            from bilateral_serving.client import Client
            class Server: url = "{server.url}"
            with Client(Server.url, timeout_s=120) as client:
                client.infer("slow_sum", request(0))
                before = set(registered(Server))
                if not os.fork():
                    sys.exit(0)  # through the block's end, finalizers and atexit
                os.wait()
                assert before and set(registered(Server)) == before, before
                inputs = request(1)
                assert is_right(client.infer("slow_sum", inputs), inputs)
            """
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=240)
        assert set(registered(server)) == before


def test_a_child_forked_in_the_middle_of_a_call_says_so(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_FORK_S", 0.0)
    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
        inputs = request(1, turns=500)
        call = client._flows._connection().start(
            "ModelConfig", connection.pb.ModelConfigRequest(name="slow_sum")
        )
        call.result()
        flow = client._flows.infer("slow_sum", inputs, None, (), None)
        step = next(flow)
        said = in_child(lambda: client.infer("slow_sum", request(2)))
        assert said.startswith("UserError: process")
        assert "was forked while its parent was calling a server" in said
        assert "'spawn'" in said
        step.call.result()
        with pytest.raises(StopIteration) as answer:
            flow.send(None)
        assert is_right(answer.value.value, inputs)


def test_a_child_of_a_process_without_fork_support_says_so(server: RunningServer) -> None:
    script = textwrap.dedent(
        f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from bilateral_serving.client import Client
        client = Client("{server.url}", timeout_s=120)
        client.is_ready()
        if not os.fork():
            try:
                client.model_metadata("slow_sum")
            except Exception as error:
                print(error)
            sys.exit(0)
        os.wait()
        client.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert "GRPC_ENABLE_FORK_SUPPORT off, so it cannot call a server" in done.stdout


def test_a_pool_made_before_and_after_the_first_call(server: RunningServer) -> None:
    with Client(server.url, timeout_s=120) as client:
        for _ in range(2):
            said = in_child(lambda: is_right(client.infer("slow_sum", request(3)), request(3)))
            assert said == "True"
            with pytest.raises(UserError, match="has no input"):
                client.infer("slow_sum", {**request(0), "c": np.zeros(1)})
