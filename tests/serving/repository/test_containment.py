"""What a model is served from lies in the repository: no link and no name leads out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.builders import tiny_models as models

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import CONFIG_FILE, Settings
from bilateral_serving.doctor.diagnose import diagnose
from bilateral_serving.doctor.machine import read_machine
from bilateral_serving.repository.containment import check_contained
from bilateral_serving.server import ServerOptions
from bilateral_serving.server.preflight import check


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a model in a repository of its own."""
    root = tmp_path / "models"
    repository.add("m", models.quadrants(tmp_path / "m.onnx"), root, settings=Settings(threads=1))
    return root / "m"


def refused_everywhere(model: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_contained(model)
    with pytest.raises(UserError, match=message):
        check(ServerOptions(model.parent, metrics_port=None))
    found = diagnose(model.parent, read_machine(), run=False).findings
    assert "m" in {finding.subject.split()[0] for finding in found if finding.severity == "error"}


def test_what_add_writes_is_contained(model: Path) -> None:
    check_contained(model)


@pytest.mark.parametrize("what", ["1/model.onnx", "1", "labels.txt"])
def test_a_link_that_leads_out_is_refused(model: Path, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    path = model / what
    if path.exists():
        shutil.move(path, outside)
    else:
        outside.write_text("a secret\n")
    path.symlink_to(outside)
    refused_everywhere(model, "leads out of the repository")


def test_links_within_the_repository_are_followed(model: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts a volume, and as a repository that is reached by a link."""
    shutil.move(model / "1", model.parent / "..data")
    (model / "1").symlink_to(model.parent / "..data")
    check_contained(model)
    (tmp_path / "link").symlink_to(model.parent)
    check_contained(tmp_path / "link" / "m")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../secret"])
@pytest.mark.parametrize("field", ["default_model_filename", "label_filename"])
def test_a_name_that_leads_out_is_refused(model: Path, name: str, field: str) -> None:
    path = model / CONFIG_FILE
    text = path.read_text()
    line = f'{field}: "{name}"\n'
    if field == "label_filename":
        head, output, tail = text.partition("output {\n")
        text = head + output + line + tail.replace("label_filename", "# label_filename", 1)
    else:
        text += line
    path.write_text(text)
    refused_everywhere(model, "not inside the model's directory")
