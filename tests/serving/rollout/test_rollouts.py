"""Rollouts on a running server, under callers who never stop asking."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.builders import tiny_models as models
from tests.builders.waiting import eventually
from tests.serving.server.live_processes import free_ports
from tests.serving.server.test_supervise import Supervised
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_serving import repository, rollout
from bilateral_serving.config import Settings
from bilateral_serving.front_door.shadow import Comparison
from bilateral_serving.repository.rollout_state import read_state
from bilateral_serving.server.rollouts import control
from bilateral_serving.server.rollouts.messages import Order

GAINS = {1: 8.0, 2: 4.0, 3: 2.0, 4: -8.0}
PATIENCE_S = 60.0


def add(root: Path, version: int) -> None:
    file = models.quadrants(root.parent / f"v{version}.onnx", gain=GAINS[version])
    settings = Settings(threads=1, warmup=False)
    repository.add("quadrants", file, root, version=version, settings=settings)


class Served:
    """A server under supervision whose model answers with version `v` as `GAINS[v]` times x."""

    def __init__(self, root: Path) -> None:
        self.root = root / "repository"
        add(self.root, 1)
        self.http_port = free_ports(1)[0]
        self.start()
        for version in (2, 3, 4):  # while it runs
            add(self.root, version)

    def start(self) -> None:
        self.process = Supervised(self.root, http_port=self.http_port)
        self.process.wait_for("ready")
        self.port = int(self.process.url.rpartition(":")[2])

    def promote(self, version: int, **options: bool) -> rollout.commands.Outcome:
        return rollout.promote("quadrants", version, grpc_port=self.port, unjudged=True, **options)

    def status(self) -> rollout.commands.Outcome:
        return rollout.status("quadrants", grpc_port=self.port)


class Callers(threading.Thread):
    """Asks without a version all the time; every answer must be that of one of the versions."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.answers: Counter[int] = Counter(dict.fromkeys(GAINS, 0))  # never grows: others look
        self.problems: list[str] = []
        self._url, self._over = url, threading.Event()

    def run(self) -> None:
        value = np.array([1.0, 2.0, 3.0, 5.0], np.float32).reshape(1, 1, 2, 2)
        with triton.InferenceServerClient(self._url) as raw:
            tensor = triton.InferInput("pixel_values", [1, 1, 2, 2], "FP32")
            tensor.set_data_from_numpy(value)
            while not self._over.is_set():
                try:
                    answer = raw.infer("quadrants", [tensor])
                except InferenceServerException as error:
                    self.problems.append(str(error))
                    continue
                version = int(answer.get_response().model_version)
                if not np.array_equal(
                    answer.as_numpy("logits").ravel(), GAINS[version] * value.ravel()
                ):
                    self.problems.append(f"version {version}: {answer.as_numpy('logits')}")
                self.answers[version] += 1

    def total(self) -> int:
        return sum(self.answers.values())

    def wait_for(self, more: int) -> None:
        """Return when so many more were answered."""
        end, wanted = time.monotonic() + PATIENCE_S, self.total() + more
        while self.total() < wanted and time.monotonic() < end:
            time.sleep(0.01)
        assert self.total() >= wanted, self.problems

    def finish(self) -> None:
        self._over.set()
        self.join(PATIENCE_S)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("rollouts"))
    yield server
    server.process.end()


@pytest.fixture
def callers(served: Served) -> Iterator[list[Callers]]:
    several = [Callers(served.process.url) for _ in range(3)]
    for one in several:
        one.start()
        one.wait_for(1)
    yield several
    for one in several:
        one.finish()


def active(served: Served) -> int:
    found = served.status().rollout
    return 1 if found is None else found.active


def promotions(served: Served, callers: list[Callers], count: int) -> None:
    for _ in range(count):
        version = active(served) % 3 + 1
        after = served.promote(version).rollout
        assert after is not None
        assert (after.active, read_state(served.root).models["quadrants"]) == (version, after)
        for one in callers:
            # One answer may have been under way; from then on the new version answers.
            one.wait_for(2)
            before = dict(one.answers)
            one.wait_for(5)
            assert {v for v, n in one.answers.items() if n != before.get(v, 0)} == {version}
    assert [one.problems for one in callers] == [[]] * len(callers)


def test_four_promotions_lose_no_request(served: Served, callers: list[Callers]) -> None:
    promotions(served, callers, 4)


@pytest.mark.slow
def test_twenty_promotions_lose_no_request(served: Served, callers: list[Callers]) -> None:
    began = time.monotonic()
    promotions(served, callers, 20)
    total = sum(one.total() for one in callers)
    print(f"20 promotions in {time.monotonic() - began:.0f} s, {total} requests, 0 failed or wrong")


def test_a_rollback_needs_no_loading(served: Served, callers: list[Callers]) -> None:
    before = active(served)
    served.promote(before % 3 + 1)
    outcome = rollout.rollback("quadrants", grpc_port=served.port)
    assert outcome.rollout is not None
    assert (outcome.rollout.active, outcome.load_s) == (before, 0.0)
    assert [one.problems for one in callers] == [[]] * 3


def test_with_a_gap_requests_wait_and_none_is_lost(served: Served, callers: list[Callers]) -> None:
    wanted = active(served) % 3 + 1
    served.promote(active(served) % 3 + 1)
    wanted = wanted % 3 + 1  # not loaded: the last two are
    outcome = served.promote(wanted, gap=True)
    assert outcome.gap_s > 0
    assert outcome.rollout is not None
    assert outcome.rollout.loaded == (wanted,)
    for one in callers:
        one.wait_for(3)
    assert [one.problems for one in callers] == [[]] * 3


def test_what_cannot_be_loaded_replaces_nothing(served: Served, callers: list[Callers]) -> None:
    before = active(served)
    broken = served.root / "quadrants" / "5"
    shutil.copytree(served.root / "quadrants" / "4", broken)
    (broken / "model.onnx").write_bytes(b"not a model")
    try:
        with pytest.raises(UserError, match="the doctor refuses quadrants version 5"):
            served.promote(5)
        # The server, too, where the gate was passed and the file broke after it.
        for gap in (False, True):
            order = Order(action="promote", model="quadrants", version=5, gap=gap)
            with pytest.raises(UserError, match="version 5 of 'quadrants' is not served"):
                control.ask(served.port, order)
            for one in callers:
                one.wait_for(3)
    finally:
        shutil.rmtree(broken)
    assert active(served) == before
    assert [one.problems for one in callers] == [[]] * 3
    assert served.process.lines_so_far() == []


def test_a_canary_answers_its_share_and_is_compared(served: Served, callers: list[Callers]) -> None:
    before = active(served)
    rollout.canary("quadrants", 4, 0.25, grpc_port=served.port, unjudged=True)
    start = [Counter(one.answers) for one in callers]
    for one in callers:
        one.wait_for(80)
    found = sum((one.answers - old for one, old in zip(callers, start, strict=True)), Counter())
    assert abs(found[4] / found.total() - 0.25) < 0.05
    compared = wait_for_rows(served, 10)
    # The negative gain turns every decision; 5 * (8 or 4 or 2 - -8) apart.
    assert (compared.same, compared.errors) == (0, 0)
    assert compared.largest == 5 * (GAINS[before] + 8)
    # Its end is a rollback.
    rollout.rollback("quadrants", grpc_port=served.port)
    assert active(served) == before
    assert [one.problems for one in callers] == [[]] * 3


def test_a_shadow_answers_nobody(served: Served, callers: list[Callers]) -> None:
    before = active(served)
    other = before % 3 + 1
    rollout.shadow("quadrants", other, 0.5, grpc_port=served.port, unjudged=True)
    start = [Counter(one.answers) for one in callers]
    compared = wait_for_rows(served, 20)
    found = sum((one.answers - old for one, old in zip(callers, start, strict=True)), Counter())
    assert set(+found) == {before}
    assert compared.rows == compared.same  # the same sign: the same decision
    assert compared.largest == 5 * abs(GAINS[before] - GAINS[other])
    # What was tried becomes what answers.
    assert served.promote(other).load_s == 0.0
    assert active(served) == other


def test_of_two_who_promote_at_once_one_wins(served: Served) -> None:
    outcomes: list[object] = []

    def order(version: int) -> None:
        try:
            outcomes.append(served.promote(version).rollout)
        except UserError as error:
            outcomes.append(error.problem)

    now = served.status().rollout
    # Versions to be loaded first, which takes a while.
    wanted = {1, 2, 3, 4} - set(now.loaded if now else (1,))
    both = [threading.Thread(target=order, args=(version,)) for version in wanted]
    supervisor, sent, read = served.process.process, list[socket.socket](), control._read

    def note(connection: socket.socket) -> str | bytes:
        sent.append(connection)
        return read(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "_read", note)
        supervisor.send_signal(signal.SIGSTOP)  # it finds both when it goes on
        for one in both:
            one.start()
        eventually(lambda: len(sent) == 2)
        supervisor.send_signal(signal.SIGCONT)
        for one in both:
            one.join()
    (told,) = [one for one in outcomes if isinstance(one, str)]
    assert "another command is under way on this server: promote quadrants" in told
    assert active(served) in wanted


def ask_over_http(
    served: Served, outputs: Sequence[dict[str, Any]] = (), **headers: str
) -> http.client.HTTPResponse:
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 1, 2, 2]}
    body: dict[str, Any] = {"inputs": [{**tensor, "data": [1, 2, 3, 5]}]}
    if outputs:
        body["outputs"] = outputs
    address = f"http://127.0.0.1:{served.http_port}/v2/models/quadrants/infer"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    found: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=PATIENCE_S)
    return found


def test_answers_over_http_are_compared_too(served: Served) -> None:
    before = active(served)
    other = before % 3 + 1
    rollout.shadow("quadrants", other, 1.0, grpc_port=served.port, unjudged=True)
    binary = [{"name": "logits", "parameters": {"binary_data": True}}]
    kinds: tuple[tuple[list[dict[str, Any]], dict[str, str]], ...] = (
        ([], {}),
        (binary, {}),
        ([], {"Accept-Encoding": "gzip"}),
        ([], {"Accept-Encoding": "deflate"}),
    )
    for outputs, headers in kinds:
        with ask_over_http(served, outputs, **headers) as answer:
            assert answer.headers.get("Content-Encoding") == headers.get("Accept-Encoding")
    compared = wait_for_rows(served, len(kinds))
    assert (compared.rows, compared.same, compared.errors) == (len(kinds), len(kinds), 0)
    assert compared.largest == 5 * abs(GAINS[before] - GAINS[other])
    rollout.rollback("quadrants", grpc_port=served.port)


def test_http_callers_get_the_same_version(served: Served) -> None:
    for version in (active(served) % 3 + 1, active(served)):
        if version != active(served):
            served.promote(version)
        with ask_over_http(served) as answer:
            found = json.load(answer)
        assert found["model_version"] == str(active(served))


def test_a_restart_serves_what_was_promoted(served: Served) -> None:
    version = active(served) % 3 + 1
    served.promote(version)
    served.process.end()
    served.start()
    assert active(served) == version
    one = Callers(served.process.url)
    one.start()
    one.wait_for(3)
    one.finish()
    assert set(+one.answers) == {version}


def wait_for_rows(served: Served, count: int) -> Comparison:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = served.status().comparison
        if found is not None and found.rows >= count:
            return found
        time.sleep(0.1)
    pytest.fail("nothing was compared")
