"""The families on the command line: generate, score, infer on expressions and on a segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.builders.exported import exported
from tests.cli.conftest import CHECKPOINTS, Bilateral
from tests.cli.test_bad_input import refused
from tests.serving.server.live_processes import free_ports
from torch import nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.ade20k import LABELS, PALETTE
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.registry import MODELS, build
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

HELDOUT = CHECKPOINTS / "pydoc_heldout.txt"


def segmenter(path: Path) -> Path:
    config = SegmenterConfig(image_size=32, patch_size=8, dim=24, depth=1, heads=3, num_classes=4)
    torch.manual_seed(0)
    model = build(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    how = SegmentationPreprocessing(
        window=32, stride=16, mean=(0.5,) * 3, std=(0.2,) * 3, palette=PALETTE[:4]
    )
    card = CheckpointCard(name="tiny", model=config, preprocessing=how, labels=LABELS[:4])
    save_checkpoint(path, model.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("families")
    sources = {
        "listops": exported("listops_bilateral", tmp_path_factory),
        "pydoc": exported("pydoc_bilateral", tmp_path_factory),
        "segmenter": export_onnx(
            load_checkpoint(segmenter(root / "segmenter.safetensors")), root / "segmenter.onnx"
        ).path,
    }
    for name, source in sources.items():
        settings = Settings(threads=1, stream=name == "pydoc")
        repository.add(name, source, root / "models", settings=settings)
    options = ServerOptions(
        root / "models", grpc_port=free_ports(1)[0], http_port=None, metrics_port=None
    )
    with running(options) as server:
        yield server.url


def test_generate_prints_the_same_words_for_the_same_seed(bilateral: Bilateral, url: str) -> None:
    options = ("generate", "pydoc", "The class", "--url", url, "--max-tokens", 12, "--seed", 5)
    first, second = bilateral(*options), bilateral(*options)
    assert first.code == 0
    assert first.out == second.out
    assert first.out.startswith("The class")
    words = bilateral(*options, "--json").json["words"]
    assert len(words) == 12
    assert "".join(word["text"] for word in words) in first.out


def test_score_prints_the_perplexity_of_a_text(bilateral: Bilateral, url: str) -> None:
    (document,) = bilateral("score", "pydoc", HELDOUT, "--url", url, "--json").json
    assert 20 < document["perplexity"] < 60
    table = bilateral("score", "pydoc", HELDOUT, "--url", url)
    assert f"{document['perplexity']:.2f}" in table.out


def test_infer_takes_an_expression(bilateral: Bilateral, url: str, tmp_path: Path) -> None:
    expression = tmp_path / "expression.txt"
    expression.write_text("[MAX 2 [MIN 4 7 ] 9 ]\n")
    (document,) = bilateral("infer", "listops", expression, "--url", url, "--json").json
    assert document["predictions"][0]["label"] == "9"


def test_infer_writes_a_segmenters_overlay(bilateral: Bilateral, url: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    source = tmp_path / "photo.jpg"
    Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(source)
    pictures = tmp_path / "pictures"
    options = ("infer", "segmenter", source, "--url", url, "--overlay", pictures, "--json")
    (document,) = bilateral(*options).json
    assert sum(one["share"] for one in document["classes"]) == pytest.approx(1)
    assert {one["label"] for one in document["classes"]} <= set(LABELS[:4])
    with Image.open(pictures / "photo.png") as picture:
        assert picture.size == (70, 50)
    assert "%" in bilateral("infer", "segmenter", source, "--url", url).out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("generate", "pydoc", "x", "--top-p", 0), "top_p 0.0"),
        (("generate", "listops", "x"), "not served as a stream of words"),
        (("score", "pydoc", "nowhere.txt"), "nowhere.txt"),
        (("infer", "pydoc", HELDOUT), "pydoc"),
        (("infer", "segmenter", "photo.jpg", "--top", 0), "--top"),
        (("infer", "listops", HELDOUT, "--overlay", "pictures"), "not a segmenter"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    bilateral: Bilateral, url: str, arguments: tuple[object, ...], named: str
) -> None:
    assert named in refused(bilateral(*arguments, "--url", url))


def test_a_plain_classifier_cannot_be_served_as_a_stream(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    outcome = bilateral(
        "repository", "add", "d", digits_onnx, "--stream", "--repository", tmp_path / "models"
    )
    assert "cannot be served as a stream of words" in refused(outcome)
    assert not (tmp_path / "models" / "d").exists()


def test_models_lists_every_family_with_its_size(bilateral: Bilateral) -> None:
    listing = bilateral("models").out
    assert all(f"│ {name} " in listing for name in MODELS)  # whole, however narrow the terminal
    document = bilateral("models", "--json").json
    assert set(document) == set(MODELS)
    assert document["wikitext103_small"]["parameters"] == 44_026_842
    assert {entry["family"] for entry in document.values()} == {
        "image-classifier",
        "sequence-classifier",
        "language-model",
        "segmenter",
    }
