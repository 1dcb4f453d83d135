"""The registry of families: one name a family, and families that other packages bring."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError
from tests.builders.outside_family import PixelLabels, PixelLabelsConfig

from bilateral_export.models.classifier import ImageClassifier
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.registry import MODELS, build, parse_config, register

INSTALLED = """
from typing import Literal
from tests.builders.outside_family import PixelLabels, PixelLabelsConfig
from bilateral_export.models.registry import register

class Config(PixelLabelsConfig):
    family: Literal["installed-labels"] = "installed-labels"

register(Config, PixelLabels)
"""


@pytest.mark.parametrize("name", MODELS)
def test_a_document_becomes_the_configuration_it_was_written_from(name: str) -> None:
    assert parse_config(MODELS[name].model_dump(mode="json")) == MODELS[name]


def test_a_registered_family_is_read_and_built() -> None:
    config = parse_config({"family": "pixel-labels", "side": 4})
    assert config == PixelLabelsConfig(side=4)
    assert isinstance(build(config), PixelLabels)


def test_a_name_belongs_to_one_family() -> None:
    class Taken(FamilyConfig):
        family: Literal["image-classifier"] = "image-classifier"

    class Nameless(FamilyConfig):
        pass

    with pytest.raises(ValueError, match="'image-classifier' is already registered"):
        register(Taken, ImageClassifier)
    with pytest.raises(ValueError, match=r"Nameless\.family has no default"):
        register(Nameless, ImageClassifier)
    register(PixelLabelsConfig, PixelLabels)  # again: nothing changes


def test_an_unknown_family_is_refused_with_how_to_register_it() -> None:
    for document in ({"family": "nowhere"}, {"family": "nowhere", "dim": -1}):
        with pytest.raises(ValidationError, match=r"'nowhere' is not registered: call models\.reg"):
            parse_config(document)
    for document in ({}, {"family": 1}):
        with pytest.raises(ValidationError, match="it names no 'family'"):
            parse_config(document)


def test_an_installed_package_brings_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_labels.py").write_text(INSTALLED)
    about = tmp_path / "installed_labels-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-labels\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[bilateral.families]\ninstalled-labels = installed_labels\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config({"family": "installed-labels", "side": 3})
    assert type(config).__module__ == "installed_labels"
    assert isinstance(build(config), PixelLabels)
