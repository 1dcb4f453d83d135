"""A file declares models: applied once, twice, wrongly, and verified on a real server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import tiny_models as models
from tests.builders.exported import exported
from tests.serving.server.live_processes import free_ports

from bilateral_export.errors import UserError
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving import declared, repository
from bilateral_serving.declared.document import Declared
from bilateral_serving.server import ServerOptions, running

ROOT = Path(__file__).parents[3]
CHECKPOINTS = ROOT / "export" / "checkpoints"


def written(folder: Path, document: object) -> Path:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two models."""
    models.quadrants(tmp_path / "one.onnx")
    models.quadrants(tmp_path / "two.onnx", gain=4.0)
    return tmp_path


def one(file: str = "one.onnx", **settings: object) -> dict[str, object]:
    return {"file": file, "settings": {"threads": 1, **settings}}


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_applied_twice_changes_nothing(folder: Path) -> None:
    path = written(folder, {"models": {"a": one(), "b": one("two.onnx", instances=2)}})
    first = declared.apply(declared.read(path), folder / "r")
    assert [(item.name, item.version, item.change) for item in first] == [
        ("a", 1, "added"),
        ("b", 1, "added"),
    ]
    assert repository.show("b", folder / "r").instances == 2
    before = snapshot(folder / "r")
    again = declared.apply(declared.read(path), folder / "r")
    assert {item.change for item in again} == {"unchanged"}
    assert snapshot(folder / "r") == before


def test_what_differs_becomes_a_new_version_and_the_rest_stays(folder: Path) -> None:
    path = written(folder, {"models": {"a": one(), "b": one("two.onnx")}})
    declared.apply(declared.read(path), folder / "r")
    repository.add("own", folder / "one.onnx", folder / "r")
    changed = written(folder, {"models": {"a": one("two.onnx"), "b": one("two.onnx")}})
    done = declared.apply(declared.read(changed), folder / "r")
    assert [(item.version, item.change) for item in done] == [(2, "added"), (1, "unchanged")]
    assert repository.list_names(folder / "r") == ("a", "b", "own")


def test_other_settings_of_the_same_file_are_said_to_be_that(folder: Path) -> None:
    for settings, change in (({}, "added"), ({"instances": 2}, "settings changed")):
        path = written(folder, {"models": {"a": one(**settings)}})
        (done,) = declared.apply(declared.read(path), folder / "r")
        assert done.change == change
    assert repository.show("a", folder / "r").instances == 2


def test_what_was_added_by_other_means_since_is_not_taken_for_what_was_applied(
    folder: Path,
) -> None:
    path = written(folder, {"models": {"a": one()}})
    declared.apply(declared.read(path), folder / "r")
    repository.add("a", folder / "two.onnx", folder / "r")
    (done,) = declared.apply(declared.read(path), folder / "r")
    assert (done.version, done.change) == (3, "added")
    (done,) = declared.apply(declared.read(path), folder / "r")
    assert (done.version, done.change) == (3, "unchanged")


def test_another_file_under_the_applied_number_is_not_taken_for_it(folder: Path) -> None:
    path = written(folder, {"models": {"a": one()}})
    declared.apply(declared.read(path), folder / "r")
    repository.remove("a", folder / "r")
    repository.add("a", folder / "two.onnx", folder / "r")
    (done,) = declared.apply(declared.read(path), folder / "r")
    assert (done.version, done.change) == (2, "added")


def test_weights_in_another_file_are_part_of_the_model(folder: Path) -> None:
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(folder / "one.onnx"), folder / "apart.onnx", **options)
    document = declared.read(written(folder, {"models": {"a": one("apart.onnx")}}))
    weights = folder / "weights"
    for change in ("added", "unchanged"):
        assert [item.change for item in declared.apply(document, folder / "r")] == [change]
    weights.write_bytes((np.frombuffer(weights.read_bytes(), np.float32) / 2).tobytes())
    (done,) = declared.apply(document, folder / "r")
    assert (done.version, done.change) == (2, "added")


def test_pruning_leaves_what_was_added_to_by_other_means(folder: Path) -> None:
    declared.apply(
        declared.read(written(folder, {"models": {"a": one(), "b": one()}})), folder / "r"
    )
    repository.add("b", folder / "two.onnx", folder / "r")
    less = declared.read(written(folder, {"models": {"a": one()}}))
    done = declared.apply(less, folder / "r", prune=True)
    assert [(item.name, item.change) for item in done] == [("a", "unchanged"), ("b", "left")]
    assert repository.list_names(folder / "r") == ("a", "b")
    assert len(declared.apply(less, folder / "r", prune=True)) == 1


def test_what_was_added_is_recorded_though_pruning_fails(folder: Path) -> None:
    declared.apply(declared.read(written(folder, {"models": {"b": one()}})), folder / "r")
    (folder / "r" / "b" / "config.pbtxt").write_text("damaged {")
    other = declared.read(written(folder, {"models": {"a": one()}}))
    with pytest.raises(UserError, match=r"b.config\.pbtxt"):
        declared.apply(other, folder / "r", prune=True)
    (done,) = declared.apply(other, folder / "r")
    assert (done.version, done.change) == (1, "unchanged")


def test_a_model_that_is_refused_takes_back_the_others(folder: Path) -> None:
    path = written(folder, {"models": {"a": one()}})
    declared.apply(declared.read(path), folder / "r")
    before = snapshot(folder / "r")
    bad = {"a": one("two.onnx", instances=2), "new": one(), "c": one(runtime="openvino")}
    bad["c"]["target"] = "onnxruntime"
    with pytest.raises(UserError, match=r"models\.c: .*runtime"):
        declared.apply(declared.read(written(folder, {"models": bad})), folder / "r")
    assert snapshot(folder / "r") == before


def test_pruned_is_what_was_applied_and_is_declared_no_more(folder: Path) -> None:
    declared.apply(
        declared.read(written(folder, {"models": {"a": one(), "b": one()}})), folder / "r"
    )
    repository.add("own", folder / "one.onnx", folder / "r")
    less = declared.read(written(folder, {"models": {"a": one()}}))
    assert [item.change for item in declared.apply(less, folder / "r")] == ["unchanged"]
    done = declared.apply(less, folder / "r", prune=True)
    assert [(item.name, item.change) for item in done] == [("a", "unchanged"), ("b", "removed")]
    assert repository.list_names(folder / "r") == ("a", "own")
    assert len(declared.apply(less, folder / "r", prune=True)) == 1


def test_of_two_who_apply_at_once_the_second_waits(folder: Path) -> None:
    document = declared.read(written(folder, {"models": {"a": one(), "b": one("two.onnx")}}))
    with ThreadPoolExecutor(2) as both:
        changes = list(both.map(lambda _: declared.apply(document, folder / "r"), range(2)))
    found = sorted([item.change for item in done] for done in changes)
    assert found == [["added", "added"], ["unchanged", "unchanged"]]


def test_a_first_application_that_is_refused_leaves_no_repository(folder: Path) -> None:
    bad = {"a": {**one(runtime="openvino"), "target": "onnxruntime"}}
    with pytest.raises(UserError, match="runtime"):
        declared.apply(declared.read(written(folder, {"models": bad})), folder / "r")
    assert not (folder / "r").exists()
    (folder / "r").mkdir()  # an empty directory of somebody's stays
    with pytest.raises(UserError, match="runtime"):
        declared.apply(declared.read(written(folder, {"models": bad})), folder / "r")
    assert (folder / "r").is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not YAML"),
        ("models: {}", "models"),
        ("model: {}", "models"),
        ("models: {a: {file: one.onnx, setings: {}}}", "setings"),
        ("models: {a: {file: none.onnx}}", "none.onnx is no file"),
        ("models: {'../a': {file: one.onnx}}", "cannot name a model"),
        ("models: {a: {file: one.onnx, settings: {instances: 0}}}", r"models\.a: .*instances is 0"),
        ("models: {a: {file: one.onnx, cases: [{input: one.onnx}]}}", "input and label"),
        ("models: {a: {file: one.onnx, cases: [{label: x, tensors: a}]}}", "input and label"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(folder: Path, text: str, message: str) -> None:
    path = folder / "models.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        declared.read(path)
    assert "\n" not in str(refused.value)


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
MODELS = st.fixed_dictionaries(
    {"file": st.just("m.onnx")},
    optional={
        "target": st.sampled_from(["python", "onnxruntime", "tensorrt"]),
        "settings": st.fixed_dictionaries(
            {},
            optional={
                "threads": st.integers(0, 64),
                "versions": st.just("latest:2"),
                "raw": st.booleans(),
            },
        ),
        "cases": st.lists(
            st.fixed_dictionaries({"input": st.just("x.png"), "label": NAMES}), max_size=2
        ),
    },
)


@given(st.dictionaries(NAMES, MODELS, min_size=1, max_size=4))
def test_a_document_survives_being_written_and_fits_the_published_schema(
    found: dict[str, object],
) -> None:
    document = Declared.model_validate({"models": found})
    text = yaml.safe_dump(json.loads(document.model_dump_json(exclude_none=True)))
    assert Declared.model_validate(yaml.safe_load(text)) == document
    jsonschema.validate(yaml.safe_load(text), declared.schema())


@pytest.mark.parametrize("kind", ["text", "truncated", "one array", "no array", "pickle"])
def test_tensors_that_cannot_be_read_are_refused_before_anything_is_asked(
    folder: Path, kind: str
) -> None:
    good, bad = folder / "good.npz", folder / "bad.npz"
    np.savez(good, image=np.zeros(3))
    if kind == "text":
        bad.write_text("no arrays")
    elif kind == "truncated":
        bad.write_bytes(good.read_bytes()[:-30])
    elif kind == "one array":
        with bad.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "no array":
        np.savez(bad)
    else:
        np.savez(bad, image=np.array([{}], dtype=object))
    case = {"tensors": "good.npz", "outputs": "bad.npz"}
    path = written(folder, {"models": {"a": {**one(), "cases": [case]}}})
    with pytest.raises(UserError, match=r"bad\.npz is not an \.npz file"):
        declared.verify(declared.read(path), ("127.0.0.1:1",))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, tuple[str, str]]]:
    """A folder with a digits model, a picture and tensors, and the addresses that serve it."""
    root = tmp_path_factory.mktemp("declared")
    shutil.copy(exported("digits_bilateral", tmp_path_factory), root / "d.onnx")
    (root / "three.png").write_bytes(next((CHECKPOINTS / "digits").glob("3-*.png")).read_bytes())
    image = np.zeros((1, 1, 8, 8), np.float32)
    np.savez(root / "in.npz", image=image)
    with OnnxRuntimeRunner(root / "d.onnx") as runner:
        np.savez(root / "out.npz", **runner.run({"image": image}))
    np.savez(root / "wrong.npz", logits=np.zeros((1, 10), np.float32))
    path = written(root, {"models": {"digits": one("d.onnx")}})
    declared.apply(declared.read(path), root / "r")
    grpc, http = free_ports(2)
    options = ServerOptions(root / "r", grpc_port=grpc, http_port=http, metrics_port=None)
    with running(options) as server:
        yield root, (server.url, f"http://{server.http_url}")


def verdicts(root: Path, urls: tuple[str, ...], case: dict[str, object]) -> list[str]:
    path = written(root, {"models": {"digits": {**one("d.onnx"), "cases": [case]}}})
    return [found.problem for found in declared.verify(declared.read(path), urls)]


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({"input": "three.png", "label": "3"}, ""),
        ({"input": "three.png", "label": "4"}, "not 4"),
        ({"input": "three.png", "label": "3", "probability": 0.0}, "which is"),
        ({"tensors": "in.npz", "outputs": "out.npz"}, ""),
        ({"tensors": "in.npz", "outputs": "wrong.npz"}, "differs by up to"),
        ({"tensors": "wrong.npz", "outputs": "out.npz"}, "image"),
    ],
)
def test_cases_are_asked_over_grpc_and_http(
    served: tuple[Path, tuple[str, str]], case: dict[str, object], problem: str
) -> None:
    found = verdicts(*served, case)
    assert len(found) == 2
    for text in found:
        assert (text == "") == (problem == "")
        assert problem in text


def test_the_example_of_the_readme_is_applied_and_verified(
    served: tuple[Path, tuple[str, str]], tmp_path: Path
) -> None:
    root, urls = served
    text = (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
    example = text.split("```yaml\nmodels:\n", 1)[1].split("```", 1)[0]
    names = {
        "digits.onnx": "d.onnx",
        "three.png": "three.png",
        "inputs.npz": "in.npz",
        "outputs.npz": "out.npz",
    }
    for name, source in names.items():
        (tmp_path / name).write_bytes((root / source).read_bytes())
    (tmp_path / "models.yaml").write_text(f"models:\n{example}")
    document = declared.read(tmp_path / "models.yaml")
    (done,) = declared.apply(document, tmp_path / "r")
    assert (done.name, done.change) == ("digits", "added")
    found = declared.verify(document, urls)
    assert [item.problem for item in found] == [""] * 4


def test_no_cases_and_no_server_are_refused(served: tuple[Path, tuple[str, str]]) -> None:
    root, _ = served
    bare = declared.read(written(root, {"models": {"digits": one("d.onnx")}}))
    with pytest.raises(UserError, match="no cases"):
        declared.verify(bare, ("127.0.0.1:1",))
    with pytest.raises(UserError, match="no Triton server answers"):
        verdicts(root, ("127.0.0.1:1",), {"input": "three.png", "label": "3"})
