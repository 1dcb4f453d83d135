"""Plans in the repository: read from their manifests, checked, launched with their plugin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders.plans import plugin_record, write_plan

from bilateral_export.engine.plan.manifest import manifest_path
from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.repository import Entry
from bilateral_serving.repository.plan import launch_arguments


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def add(plan: Path, root: Path, **settings: int) -> Entry:
    chosen = Settings(**settings) if settings else None
    return repository.add("model", plan, root, target="tensorrt", settings=chosen)


def test_a_plan_needs_no_onnx_file_beside_it(tmp_path: Path, root: Path) -> None:
    entry = add(write_plan(tmp_path / "digits.plan"), root)
    assert [str(tensor) for tensor in entry.inputs] == ["image float32[batch, 3, 8, 8]"]
    assert [str(tensor) for tensor in entry.outputs] == ["logits float32[batch, 10]"]
    assert entry.device == "gpu"


def test_the_manifest_goes_with_the_plan(tmp_path: Path, root: Path) -> None:
    add(write_plan(tmp_path / "digits.plan"), root)
    names = sorted(path.name for path in (root / "model" / "1").iterdir())
    assert names == ["model.plan", "model.plan.json"]


def test_batches_above_the_profile_are_refused(tmp_path: Path, root: Path) -> None:
    plan = write_plan(tmp_path / "digits.plan", max_batch=16)
    with pytest.raises(UserError, match=r"max_batch_size 17.*up to a batch of 16"):
        add(plan, root, max_batch_size=17)
    assert add(plan, root, max_batch_size=16).max_batch_size == 16


def test_the_default_batch_is_within_the_profile(tmp_path: Path, root: Path) -> None:
    assert add(write_plan(tmp_path / "digits.plan", max_batch=4), root).max_batch_size == 4


def test_a_later_version_must_accept_the_batches_already_configured(
    tmp_path: Path, root: Path
) -> None:
    add(write_plan(tmp_path / "first.plan", max_batch=32), root, max_batch_size=32)
    with pytest.raises(UserError, match="up to a batch of 8"):
        add(write_plan(tmp_path / "second.plan", max_batch=8), root)
    assert [path.name for path in (root / "model").iterdir() if path.is_dir()] == ["1"]


def test_a_plan_that_changed_since_it_was_built_is_refused(tmp_path: Path, root: Path) -> None:
    plan = write_plan(tmp_path / "digits.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="SHA-256"):
        add(plan, root)
    assert not root.exists() or not list(root.iterdir())


def test_metadata_of_another_form_is_refused(tmp_path: Path, root: Path) -> None:
    plan = write_plan(tmp_path / "digits.plan")
    path = manifest_path(plan)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {"name": "x"}}))
    with pytest.raises(UserError, match="not understood"):
        add(plan, root)


def test_the_server_is_told_of_the_plugin_where_a_plan_needs_it(tmp_path: Path) -> None:
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"library")
    plain = write_plan(tmp_path / "plain.plan")
    using = write_plan(tmp_path / "using.plan", plugin=plugin_record(library))
    carrying = write_plan(tmp_path / "carrying.plan", plugin=plugin_record(library, embedded=True))
    assert launch_arguments([plain]) == ()
    assert launch_arguments([plain, using], library) == (
        f"--backend-config=tensorrt,plugins={library.resolve()}",
    )
    compatible = write_plan(tmp_path / "compatible.plan", version_compatible=True)
    for plan in (carrying, compatible):
        assert launch_arguments([plan]) == ("--backend-config=tensorrt,version-compatible=true",)


def test_a_plan_is_checked_before_the_server_loads_it(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plain.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="SHA-256"):
        launch_arguments([plan])


def test_a_plan_of_tensorrt_for_rtx_is_not_given_to_triton(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "rtx.plan")
    path = manifest_path(plan)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"library": "tensorrt_rtx"}))
    with pytest.raises(UserError, match="full TensorRT only"):
        launch_arguments([plan])


def test_a_plan_added_for_another_target_is_told_its_own(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--target tensorrt"):
        repository.add("planned", write_plan(tmp_path / "p.plan"), root)


def test_a_plugin_that_is_not_built_is_said_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"library")
    using = write_plan(tmp_path / "using.plan", plugin=plugin_record(library))
    monkeypatch.setattr("bilateral_export.engine.installation.plugin.find_plugin", lambda: None)
    with pytest.raises(UserError, match="not built"):
        launch_arguments([using])
