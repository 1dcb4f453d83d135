"""Items to rows: bad ones have their reason, and what a row says can be relied on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.builders import tiny_models

pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra [ray]")

import pyarrow as pa
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import BytesPreprocessing
from bilateral_serving.scoring.attempts import KILLS, Attempts
from bilateral_serving.scoring.items import Item
from bilateral_serving.scoring.model import load_model
from bilateral_serving.scoring.parts import METADATA_KEY, write_part
from bilateral_serving.scoring.plan import FOLDER
from bilateral_serving.scoring.scorer import Scored, Scorer


def picture(path: Path, brightest: int) -> Item:
    pixels = np.zeros(4, dtype=np.uint8)
    pixels[brightest] = 255
    Image.fromarray(pixels.reshape(2, 2)).save(path)
    return Item(str(path))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Item]:
    """Of each quadrant; between them a text, a cut-off file, and none."""
    good = [picture(tmp_path / f"{quadrant}.png", quadrant) for quadrant in range(4)]
    (tmp_path / "text.png").write_text("a text")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [Item(str(tmp_path / name)) for name in ("text.png", "cut.png", "none.png")]
    return [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3]]


@pytest.mark.parametrize("readers", [0, 2])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_bad_items_have_their_reason_and_the_others_their_scores(
    tmp_path: Path, pictures: list[Item], batch: int | str, readers: int
) -> None:
    model = load_model(tiny_models.quadrants(tmp_path / "m.onnx", batch=batch))
    with Scorer(model, threads=1, batch=2, readers=readers) as scorer:
        scored = scorer.score(pictures)
    write_part(tmp_path / "part.parquet", pictures, scored, model)
    table = pq.read_table(tmp_path / "part.parquet")
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [item.path for item in pictures]
    assert [row["decision"] for row in rows][::2] == list(tiny_models.QUADRANTS)
    assert [row["decision_index"] for row in rows][::2] == [0, 1, 2, 3]
    for row, reason in zip(rows[1::2], ("not an image", "damaged", "does not exist"), strict=True):
        assert reason in row["error"]
        assert (row["decision"], row["probability"], row["probabilities"]) == (None, None, None)
    expected = np.exp([8.0, 0, 0, 0]) / np.exp([8.0, 0, 0, 0]).sum()
    assert rows[0]["probabilities"] == pytest.approx(expected, rel=1e-5)
    assert rows[0]["probability"] == pytest.approx(expected[0], rel=1e-5)
    about = json.loads(table.schema.metadata[METADATA_KEY])
    assert about["model_sha256"] == model.sha256 == rows[0]["model_sha256"]
    assert about["labels"] == list(tiny_models.QUADRANTS)
    assert rows[0]["parity"] == "not judged"
    assert "onnxruntime" in rows[0]["versions"]


def test_the_best_classes_alone(tmp_path: Path, pictures: list[Item]) -> None:
    model = load_model(tiny_models.quadrants(tmp_path / "m.onnx"))
    with Scorer(model, 1, 4) as scorer:
        write_part(tmp_path / "p.parquet", pictures, scorer.score(pictures), model, top=2)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert rows[0]["top_labels"] == ["top left", "top right"]
    assert rows[0]["top_probabilities"][0] == rows[0]["probability"]
    assert rows[1]["top_labels"] is rows[1]["top_probabilities"] is None


def test_features_are_kept_as_they_are(tmp_path: Path, pictures: list[Item]) -> None:
    model = load_model(tiny_models.features(tmp_path / "m.onnx"))
    with Scorer(model, 1, 4) as scorer:
        write_part(tmp_path / "p.parquet", pictures, scorer.score(pictures), model)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert rows[2]["features"] == [0, 1, 0, 0]
    assert rows[1]["features"] is None
    assert "decision" not in rows[0]


def texts(tmp_path: Path, rows: list[Any]) -> list[Item]:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": rows}), path, row_group_size=2)
    return [Item(f"row {number}", str(path), number) for number in range(len(rows))]


def test_content_comes_from_the_rows(tmp_path: Path) -> None:
    """Of a row group in the middle, too; the model fails on bytes that its table does not have."""
    how = BytesPreprocessing(length=2)
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [
            tiny_models.helper.make_node("Gather", ["table", "ids"], ["wide"]),
            tiny_models.helper.make_node("Squeeze", ["wide", "axis"], ["logits"]),
        ],
        {"ids": (tiny_models.TensorProto.INT64, ["batch", "length"])},
        {"logits": (tiny_models.TensorProto.FLOAT, ["batch", "length"])},
        {"table": np.arange(120, dtype=np.float32)[:, None], "axis": np.array([2])},
        tiny_models.metadata(preprocessing=how, labels=("first", "second")),
    )
    model = load_model(path)
    rows = ["ab", "ba", None, "", "aé", "bb", "ab"]
    with Scorer(model, 1, 4, content="text") as scorer:
        scored = scorer.score(texts(tmp_path, rows)[1:])
        with pytest.raises(UserError, match="cannot run"):  # not the items' fault
            scorer.score(texts(tmp_path, ["é", "è"]))
        (gone,) = scorer.score([Item("x", str(tmp_path / "none.parquet"), 0)])
    assert scored[0].output is not None
    assert scored[0].output.tolist() == [99, 98]
    assert "no content" in scored[1].error
    assert "empty" in scored[2].error
    assert "cannot run" in scored[3].error  # "é" is bytes beyond the table
    assert [one.error for one in scored[4:]] == ["", ""]
    assert "none.parquet" in gone.error


def test_an_answer_that_is_not_a_number_is_a_reason(tmp_path: Path) -> None:
    narrow = tiny_models.PREPROCESSING.model_copy(update={"std": (1e-10,)})
    model = load_model(tiny_models.quadrants(tmp_path / "m.onnx", gain=3e38, preprocessing=narrow))
    with Scorer(model, 1, 4) as scorer:
        (one,) = scorer.score([picture(tmp_path / "one.png", 2)])
    assert one.error == "the model's answer holds NaN or infinity"


def test_another_file_at_the_model_s_place_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny_models.quadrants(tmp_path / "m.onnx"))
    tiny_models.quadrants(tmp_path / "m.onnx", gain=2)
    with pytest.raises(UserError, match="not the file that this run began with"):
        Scorer(model, 1, 4)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it, and what is on the disk stays."""


class Deadly:
    """Scores numbers; a 13 ends the process."""

    def score(self, items: list[Item]) -> list[Scored]:
        if any(item.path == "13" for item in items):
            raise Killed
        return [Scored(np.array([float(item.path)])) for item in items]


def test_an_item_that_ends_its_process_gets_a_row_that_says_so(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    items = [Item(str(number)) for number in range(20)]
    scorer: Any = Deadly()
    ended = 0
    while True:
        attempts = Attempts(tmp_path, "part-0000-000000.parquet")
        try:
            scored = attempts.score(scorer, items)
            break
        except Killed:
            ended += 1
    assert ended == 4  # twice whole, twice item by item
    assert [number for number, one in enumerate(scored) if one.error] == [13]
    assert scored[13].error == KILLS
    attempts.end()
    assert not list((tmp_path / FOLDER).iterdir())
