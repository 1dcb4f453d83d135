"""Routes, comparisons, the gate and the memory of a rollout, without a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.builders.parity_report import written
from tritonclient.grpc import service_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.files import sha256
from bilateral_export.parity.report.document import read_report
from bilateral_serving import repository, rollout
from bilateral_serving.config import Settings
from bilateral_serving.front_door import requests, routing
from bilateral_serving.front_door.routing import ROUTES_FILE, Router
from bilateral_serving.front_door.shadow import Comparison
from bilateral_serving.rollout.gate import check_gate
from bilateral_serving.rollout.report import agreement, described, distance
from bilateral_serving.server.rollouts.memory import available_bytes, needed_bytes
from bilateral_serving.server.rollouts.messages import Outcome


def test_a_share_is_exact(tmp_path: Path) -> None:
    routes = '{"models": {"m": {"active": 1, "candidate": 2, "share": 0.05}}}'
    (tmp_path / ROUTES_FILE).write_text(routes)
    router = Router(tmp_path)
    chosen = [router.choose("m") for _ in range(2000)]
    assert sum(one.version == 2 for one in chosen) == 100
    # Each of its answers is compared with the other version's, and no other is.
    assert {(one.version, one.other) for one in chosen} == {(1, None), (2, 1)}


def test_routes_that_cannot_be_read_stay_as_they_were(tmp_path: Path) -> None:
    (tmp_path / ROUTES_FILE).write_text('{"models": {"m": {"active": 3}}}')
    router = Router(tmp_path)
    assert router.choose("m").version == 3
    (tmp_path / "new").write_text("{")
    (tmp_path / "new").replace(tmp_path / ROUTES_FILE)
    assert router.choose("m").version == 3
    assert router.choose("other").version is None


@pytest.mark.parametrize("method", sorted(routing.ROUTED))
def test_a_message_is_given_a_version_without_being_parsed(method: str) -> None:
    infer = method == requests.INFER
    message = pb.ModelInferRequest(model_name="m", id="7") if infer else pb.ModelReadyRequest()
    if isinstance(message, pb.ModelReadyRequest):
        message.name = "m"
    text = message.SerializeToString()
    assert routing.named(method, text) == ("m", False)
    changed = routing.with_version(text, 12)
    assert routing.named(method, changed) == ("m", True)
    back = type(message).FromString(changed)
    assert (back.model_version if infer else back.version) == "12"


def test_a_path_with_a_version_stays() -> None:
    assert routing.path_model("/v2/models/m/versions/1/infer") is None
    assert routing.path_model("/v2/models/m/infer") == "m"
    assert routing.path_with_version("/v2/models/m/infer", 2) == "/v2/models/m/versions/2/infer"
    assert routing.path_with_version("/v2/models/m", 2) == "/v2/models/m/versions/2"


def test_the_intervals_are_those_of_the_books() -> None:
    found = Comparison(active=1, candidate=2)
    for number in range(10):
        found.add(number != 0, float(number % 2))
    # Wilson's interval of 9 of 10; the mean of five 0 and five 1 with s = 0.527.
    assert agreement(found) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)
    assert distance(found) == pytest.approx((0.5, 0.3266), abs=1e-4)


def test_a_report_without_rows_says_why() -> None:
    found = Comparison(active=1, candidate=2, errors=3)
    lines = list(described("m", Outcome(rollout=None, comparison=found)))
    assert lines == ["m: served as its config.pbtxt says; nothing was rolled out"]


@pytest.mark.parametrize("text", ["0", "0%", "101%", "nan", "five", "-1"])
def test_a_share_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="is not a share"):
        rollout.read_share(text)
    assert rollout.read_share("5%") == 0.05


def test_loading_takes_what_the_served_version_takes_each() -> None:
    own = needed_bytes([os.getpid()], [1], {1: 1000, 2: 1000})
    # This process once for each of the two.
    assert own > 2 * 10 << 20
    assert needed_bytes([os.getpid()], [1], {1: 1000, 2: 1000 + (1 << 30)}) >= own // 2 + (2 << 30)
    assert needed_bytes([], [1], {1: 1000, 2: 3000}) == 8000
    assert (available_bytes() or 0) > 0


def test_the_gate_wants_a_verdict_and_a_version(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    settings = Settings(threads=1, warmup=False)
    repository.add("m", models.quadrants(tmp_path / "m.onnx"), root, settings=settings)
    with pytest.raises(UserError, match="has no version 7"):
        check_gate(root, "m", 7, parity=None)
    with pytest.raises(UserError, match="nothing says whether version 1 of 'm' computes"):
        check_gate(root, "m", 1, parity=None)
    check_gate(root, "m", 1, parity=None, unjudged=True)


def test_the_gate_takes_a_report_on_the_very_file_only(tmp_path: Path) -> None:
    root, file = tmp_path / "repository", models.quadrants(tmp_path / "m.onnx")
    other = models.quadrants(tmp_path / "other.onnx", checkpoint_sha256="1" * 64)
    settings = Settings(threads=1, warmup=False)
    repository.add("m", file, root, settings=settings)
    # Of the same checkpoint, so only the hash of the file tells.
    told = written(tmp_path / "told.json", judged=sha256(file))
    check_gate(root, "m", 1, parity=told)
    with pytest.raises(UserError, match=r"judges .*, and version 1 of 'm' is"):
        check_gate(root, "m", 1, parity=written(tmp_path / "a.json", judged=sha256(other)))
    with pytest.raises(UserError, match="judges no file that it names"):
        check_gate(root, "m", 1, parity=written(tmp_path / "b.json", judged=""))
    with pytest.raises(UserError, match="parity failed: the file"):
        check_gate(root, "m", 1, parity=written(tmp_path / "c.json", judged=sha256(file), ok=False))


def test_a_version_that_was_added_with_its_report_needs_no_other(tmp_path: Path) -> None:
    root, file = tmp_path / "repository", models.quadrants(tmp_path / "m.onnx")
    settings = Settings(threads=1, warmup=False)
    wrong = read_report(written(tmp_path / "a.json", judged="1" * 64))
    failed = read_report(written(tmp_path / "b.json", judged=sha256(file), ok=False))
    for report, why in ((wrong, "the parity report judges 1{12}"), (failed, "parity failed")):
        with pytest.raises(UserError, match=why):
            repository.add("m", file, root, settings=settings, parity=report)
    assert not (root / "m").exists()
    report = read_report(written(tmp_path / "c.json", judged=sha256(file)))
    entry = repository.add("m", file, root, settings=settings, parity=report)
    assert entry.versions[0].document["provenance"]["parity"] == "passed"
    check_gate(root, "m", 1, parity=None)


def test_without_a_server_it_says_so() -> None:
    with pytest.raises(UserError, match="no server of this user takes rollouts on port 1"):
        rollout.status("m", grpc_port=1)
