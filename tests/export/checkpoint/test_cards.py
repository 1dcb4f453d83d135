"""Configurations and cards that cannot be: one line, soon, and before anything is allocated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bilateral_export.checkpoint import fit, load
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import MODELS, build, named

MODEL = "digits_plain"
Document = dict[str, Any]
IMAGE = {"kind": "image", "height": 8, "width": 8, "channels": 1, "resize": 8}
IMAGE |= {"mean": [0.5], "std": [0.5]}
TEXT = {"kind": "text", "vocabulary_sha256": "0" * 64, "context": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "c.safetensors"
    torch.manual_seed(0)
    save_file(build(named(MODEL)).state_dict(), path)
    return path


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusing must not build a model, not even one without memory."""

    def build(_config: object) -> object:
        raise AssertionError("a model was built")

    monkeypatch.setattr(fit, "build", build)


def document(**changes: Any) -> Document:
    said: Document = json.loads(CheckpointCard(name=MODEL, model=named(MODEL)).model_dump_json())
    return said | changes


def model(**changes: Any) -> Document:
    return document(model=document()["model"] | changes)


def refusal(call: Callable[[], object]) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as refused:
        call()
    assert time.monotonic() - start < 30  # minutes, before; a second here
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 900  # two long paths of a test's among them
    return message


IMPOSSIBLE: list[tuple[Document, str]] = [
    (model(depth=10**5), "depth: Input should be less than"),
    (model(depth=10**9), "depth: Input should be less than"),
    (model(depth=True), "depth: Input should be a valid integer"),
    (model(dim=10**12), "dim: Input should be less than"),
    (model(dim=10**30), "dim: Input should be less than"),
    (model(heads=10**9), "heads: Input should be less than"),
    (model(mlp_ratio=float("inf")), "mlp_ratio: Input should be a finite number"),
    (model(mlp_ratio=1e300), "mlp_ratio: Input should be less than"),
    (model(mlp_ratio=1e-9), "leaves no hidden layer"),
    (model(image_size=10**9), "image_size: Input should be less than"),
    (model(patch_size=10**9), "patch_size: Input should be less than"),
    (model(channels=10**9), "channels: Input should be less than"),
    (model(num_classes=10**9), "num_classes: Input should be less than"),
    (model(position_grid=10**9), "position_grid: Input should be less than"),
    (model(attention={"position_features": 10**9}), "position_features: Input should be less than"),
    (model(**{"a\x1b[31m" * 50: 1}), r"a\x1b[31m"),
    (model(**{f"k{number}": 1 for number in range(10_000)}), "and 9995 more"),
    (model(family="x"), "family 'x' is not registered: call models.registry.register, or"),
]
CARDS: list[tuple[Document, str]] = [
    (document(name=""), "name: String should have at least 1 character"),
    (document(name="  "), "cannot be shown in one line"),
    (document(name="a\x1b[31m\n"), r"'a\x1b[31m\n' cannot be shown"),
    (document(name="x" * 10**6), "name: String should have at most 200"),
    (document(preprocessing=TEXT), "'text' is not for the family 'image-classifier'"),
    (
        document(preprocessing={"kind": "pixels", "height": 8, "width": 8}),
        "'pixels' is not for the family 'image-classifier'",
    ),
    (document(preprocessing=IMAGE | {"resize": 10**12}), "resizes to 1000000000000 pixels to keep"),
    (document(labels=["\ufeffzero", *"bcdefghij"]), r"'\ufeffzero' begins with a byte-order mark"),
    (document(labels=["a\x1b[31m", *"bcdefghij"]), r"'a\x1b[31m' is not one line"),
]


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(("said", "problem"), IMPOSSIBLE + CARDS)
def test_a_card_that_cannot_be_is_refused(
    checkpoint: Path, tmp_path: Path, said: Document, problem: str
) -> None:
    text = json.dumps(said)
    beside = checkpoint.with_suffix(".json")
    (tmp_path / "card.json").write_text(text)
    try:
        beside.write_text(text)
        assert problem in refusal(lambda: load_checkpoint(checkpoint))
    finally:
        beside.unlink()
    asked = str(tmp_path / "card.json")
    assert problem in refusal(lambda: load_checkpoint(checkpoint, model=asked))


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(("said", "problem"), IMPOSSIBLE)
def test_a_configuration_that_cannot_be_is_refused(
    checkpoint: Path, tmp_path: Path, said: Document, problem: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(said["model"]))
    assert problem in refusal(lambda: load_checkpoint(checkpoint, model=str(path)))


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("pydoc_bilateral", {"context": 2**20, "dim": 4096}, "context 1048576 times dim 4096"),
        ("pydoc_bilateral", {"vocabulary": 10**12}, "vocabulary: Input should be less than"),
        ("pydoc_bilateral", {"hidden": 10**9}, "hidden: Input should be less than"),
        ("pydoc_bilateral", {"cutoffs": list(range(1, 2000))}, "cutoffs: Tuple should have at"),
        ("lra_text", {"length": 10**9}, "length: Input should be less than"),
        ("lra_image", {"grid": [10**9, 10**9]}, "grid.0: Input should be less than"),
        ("segmenter_tiny", {"decoder_depth": 10**9}, "decoder_depth: Input should be less than"),
    ],
)
def test_sizes_of_every_family_are_bounded(
    checkpoint: Path, tmp_path: Path, name: str, change: Document, problem: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(named(name).model_dump_json()) | change))
    assert problem in refusal(lambda: load_checkpoint(checkpoint, model=str(path)))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[" * 100_000, "recursion limit exceeded"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "recursion limit exceeded"),
        (json.dumps(document(name="caf\xe9"), ensure_ascii=False).encode("latin-1"), "not UTF-8"),
        (json.dumps(document()).encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (json.dumps(document(name="\ud800")).encode(), "hex escape"),
        (b"[1]", "Input should be"),
        (b"null", "Input should be"),
    ],
)
def test_a_document_that_is_not_a_card_is_refused(
    checkpoint: Path, tmp_path: Path, data: bytes, problem: str
) -> None:
    beside, asked = checkpoint.with_suffix(".json"), tmp_path / "card.json"
    asked.write_bytes(data)
    try:
        beside.write_bytes(data)
        assert problem in refusal(lambda: load_checkpoint(checkpoint))
    finally:
        beside.unlink()
    assert problem in refusal(lambda: load_checkpoint(checkpoint, model=str(asked)))


def test_a_document_too_large_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with (tmp_path / "card.json").open("wb") as stream:
        stream.truncate(1 << 32)  # takes no space
    message = refusal(lambda: load_checkpoint(checkpoint, model=str(tmp_path / "card.json")))
    assert "has more than 64 MB" in message


def test_a_byte_order_mark_before_a_card_is_dropped(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(document()), encoding="utf-8-sig")
    card = load_checkpoint(checkpoint, model=str(tmp_path / "card.json")).card
    assert card == CheckpointCard(name=MODEL, model=named(MODEL))


def test_a_card_beside_and_one_that_is_asked_for_must_agree(
    checkpoint: Path, tmp_path: Path
) -> None:
    beside, asked = checkpoint.with_suffix(".json"), tmp_path / "card.json"
    own = document(preprocessing=IMAGE, labels=list("abcdefghij"))
    try:
        beside.write_text(json.dumps(own))
        for said in (own, own | {"labels": []}, own | {"preprocessing": None}):
            asked.write_text(json.dumps(said))
            assert load_checkpoint(checkpoint, model=str(asked)).card.labels == tuple("abcdefghij")
        for part, value in (
            ("labels", list("jihgfedcba")),
            ("preprocessing", IMAGE | {"resize": 9}),
        ):
            asked.write_text(json.dumps(own | {part: value}))
            message = refusal(lambda: load_checkpoint(checkpoint, model=str(asked)))
            assert f"has a card with other {part} than --model" in message
    finally:
        beside.unlink()


def test_the_readmes_card_is_valid() -> None:
    readme = (Path(load.__file__).parent / "README.md").read_text()
    card = CheckpointCard.model_validate_json(readme.split("```")[1])
    assert card.preprocessing is not None


def test_a_name_with_markup_is_a_name(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(document(name="[bold]x[/red]")))
    card = load_checkpoint(checkpoint, model=str(tmp_path / "card.json")).card
    assert card.name == "[bold]x[/red]"


@pytest.mark.parametrize(
    ("name", "preprocessing", "problem"),
    [
        ("lra_text", {"kind": "pixels", "height": 64, "width": 64}, "the model takes None"),
        ("lra_image", {"kind": "bytes", "length": 1024}, "'bytes' is not for the family"),
        ("lra_retrieval", {"kind": "bytes", "length": 4096}, "1 documents, the model takes 2"),
        ("lra_text", {"kind": "listops", "length": 5000}, "up to 5000 tokens"),
        ("segmenter_tiny", IMAGE, "'image' is not for the family 'segmenter'"),
        ("pydoc_bilateral", {"kind": "bytes", "length": 8}, "'bytes' is not for the family"),
    ],
)
def test_preprocessing_of_another_kind_is_refused(
    name: str, preprocessing: Document, problem: str
) -> None:
    config = json.loads(MODELS[name].model_dump_json())
    with pytest.raises(ValueError, match=problem):
        CheckpointCard.model_validate(
            {"name": name, "model": config, "preprocessing": preprocessing}
        )


def test_windows_that_leave_gaps_and_missing_colours_are_refused() -> None:
    config = json.loads(MODELS["segmenter_tiny"].model_dump_json())
    how = {"kind": "segmentation", "window": 512, "stride": 341, "mean": [0, 0, 0]}
    how |= {"std": [1, 1, 1], "palette": [[0, 0, 0]] * 150}
    for change, problem in (
        ({"stride": 600}, "windows of 512 pixels every 600 leave gaps"),
        ({"palette": [[0, 0, 0]]}, "1 colours, the model 150 classes"),
    ):
        with pytest.raises(ValueError, match=problem):
            CheckpointCard.model_validate(
                {"name": "s", "model": config, "preprocessing": how | change}
            )
